"""One network over all modalities together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.modality import Modality, names_of, positive
from pyro_mm.models.priors import as_prior
from pyro_mm.sharing import once

__all__ = ["Concatenation", "JointEncoder"]


class JointEncoder(nn.Module):
    """z ~ q(z | x_1, ..., x_M) from one network; missing modalities enter as zeros (JMVAE-zero, Suzuki et al. 2016).

    A row with nothing present gets the prior.  For partial rows a better rule is `Surrogate`.

    Args:
        net: `batch -> Normal` over z, for example `Concatenation`.
        prior: the model's prior module, or a dimension for N(0, I).
    """

    net: Any

    def __init__(self, net: nn.Module, prior: int | nn.Module) -> None:
        super().__init__()
        self.net = net
        self.prior = as_prior(prior)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return tuple(self.net.names)

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        """q(z | the present modalities, zeros elsewhere), batch shape `(N,)` or `(S, N)`."""
        q, p = self.net(batch).base_dist, self.prior().base_dist
        some = batch.present(self.names).unsqueeze(-1)
        loc, scale = torch.where(some, q.loc, p.loc), torch.where(some, q.scale, p.scale)
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))


class Concatenation(nn.Module):
    """Per-modality networks of `width` outputs, concatenated, one more hidden layer, then loc and scale of z.

    The joint encoder of JMVAE's paper: x -> 512, w -> 512, concatenation -> 512 -> (loc, scale).  What the networks
    see of a missing modality is zero.
    """

    def __init__(self, modalities: Sequence[Modality], dim: int, width: int = 512) -> None:
        super().__init__()
        self.names = names_of(modalities)
        self.modalities = {m.name: m for m in modalities}
        self.bodies = nn.ModuleDict(
            {m.name: m.net.encoder(m.likelihood.feature_shape(m.shape), width) for m in modalities}
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(width * len(modalities), width), nn.ReLU())
        self.out = nn.Linear(width, 2 * dim)

    def hidden(self, batch: Batch) -> Tensor:
        """The layer before the last `(..., N, width)`."""
        parts = tuple(self.modalities[m].apply_net(body, batch.x[m], batch.mask[m]) for m, body in self.bodies.items())
        return once(self.head, parts, None, lambda: self._joined(parts))

    def _joined(self, parts: tuple[Tensor, ...]) -> Tensor:
        lead = torch.broadcast_shapes(*(h.shape[:-1] for h in parts))
        out: Tensor = self.head(torch.cat([h.expand(*lead, h.shape[-1]) for h in parts], -1))
        return out

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        hidden = self.hidden(batch)
        loc, raw = once(self.out, hidden, None, lambda: self.out(hidden)).chunk(2, -1)
        return dist.Normal(loc, positive(raw), validate_args=False).to_event(1)
