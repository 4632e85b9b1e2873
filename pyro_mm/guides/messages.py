"""q(z | messages): every modality sends a vector, the present ones are combined, one network reads the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.links import Link
from pyro_mm.modality import Modality
from pyro_mm.models.priors import as_prior
from pyro_mm.networks import MLP, Net

__all__ = ["Attention", "Messages", "Sender", "mean_of_messages", "sum_of_messages"]

Combine = Callable[[Tensor, Tensor], Tensor]


def mean_of_messages(messages: Tensor, mask: Tensor) -> Tensor:
    """c = 1/|S| sum_{m in S} c_m: `(..., M, W)`, `(..., M)` to `(..., W)` (Vasco et al. 2022)."""
    return sum_of_messages(messages, mask) / mask.sum(-1, keepdim=True).clamp(min=1)


def sum_of_messages(messages: Tensor, mask: Tensor) -> Tensor:
    """c = sum_{m in S} c_m: the longer, the more modalities there are."""
    return torch.where(mask.unsqueeze(-1), messages, 0.0).sum(-2)


class Attention(nn.Module):
    """c = sum_{m in S} a_m V c_m, a = softmax over S of <u, K c_m> / sqrt(W) for a learnt query u; in several heads.

    Args:
        width: W.
        heads: a divisor of W.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.query = nn.Parameter(torch.randn(heads, width // heads))
        self.keys, self.values = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, messages: Tensor, mask: Tensor) -> Tensor:
        split = (*messages.shape[:-1], self.heads, -1)
        seen = mask.unsqueeze(-1)
        # What is absent is zero before any product, so that no value of it, however wild, reaches a gradient.
        inside = torch.where(seen, messages, 0.0)
        keys, values = self.keys(inside).view(split), self.values(inside).view(split)
        score = (keys * self.query).sum(-1) / keys.shape[-1] ** 0.5
        # Where nothing is present all weights are equal; the caller does not look.
        score = torch.where(seen | ~mask.any(-1)[..., None, None], score, -torch.inf)
        return (score.softmax(-2).unsqueeze(-1) * values).sum(-3).flatten(-2)


class Sender(nn.Module):
    """x_m `(..., *shape)` -> message `(..., width)`, by the modality's own network."""

    def __init__(self, modality: Modality, width: int) -> None:
        super().__init__()
        self.modality = modality
        self.net = modality.net.encoder(modality.likelihood.feature_shape(modality.shape), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.modality.apply_net(self.net, x)


class Messages(nn.Module):
    """z ~ q(z | c), c = combine({A_m h_m + b_m}, presence), h_m the data or the latent of modality m.

    A row with nothing present gets the prior.

    Args:
        senders: name -> network h_m -> message `(..., W)`, or the size of h_m for one affine map.
        dim: of z.
        width: W.
        net: blueprint of the network that reads c.
        combine: `mean_of_messages` (the paper's), `sum_of_messages`, an `Attention`, or your own.
        prior: the model's prior module, or None for N(0, I).
    """

    combine: Any

    def __init__(
        self,
        senders: Mapping[str, int | nn.Module],
        dim: int,
        width: int = 512,
        net: Net | None = None,
        combine: Combine = mean_of_messages,
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        made = {m: nn.Linear(s, width) if isinstance(s, int) else s for m, s in senders.items()}
        self.senders = nn.ModuleDict(made)
        self.combine = combine
        self.head = Link(width, dim, net or MLP((512, 512)))
        self.prior = as_prior(dim if prior is None else prior)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return tuple(self.senders)

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        """q(z | the present modalities)."""
        seen = [m for m in self.senders if m in batch.x]
        if not seen:
            raise ValueError(f"the guide reads {list(self.senders)}, the batch holds {list(batch.x)}")
        sent = torch.stack([self.senders[m](batch.x[m]) for m in seen], -2)
        mask = torch.stack(torch.broadcast_tensors(*(batch.mask[m] for m in seen)), -1)
        q, p = self.head(self.combine(sent, mask)).base_dist, self.prior().base_dist
        some = mask.any(-1, keepdim=True)
        loc, scale = torch.where(some, q.loc, p.loc), torch.where(some, q.scale, p.scale)
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))
