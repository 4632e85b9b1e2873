"""A joint encoder for complete rows, and a flow for every modality by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import Flowed, MixtureOf
from pyro_mm.guides.surrogate import in_one_view, never_complete
from pyro_mm.models.joint import presence
from pyro_mm.models.priors import as_prior

__all__ = ["FlowSurrogate"]


class FlowSurrogate(nn.Module):
    """z ~ q(z | x_1, ..., x_M) for complete rows, a flow q_m(z | x_m) where one modality is present (JNF, Senellart et
    al. 2025): f_m(z) ~ N(loc_m(x_m), scale_m(x_m)^2), f_m the modality's own flow.

    Several modalities, short of all, have as posterior  p(z)^(1-|S|) prod_{m in S} q_m(z | x_m), whose normaliser is
    unknown: `evaluation.product_of_flows` draws from it by HMC.  This guide, whose density has to be known, has the
    equal mixture of the q_m there, and the prior where nothing is present.

    Args:
        joint: a guide with a `posterior(batch)` method for complete rows.
        encoders: name -> network x_m -> Normal; flows: name -> `MaskedFlow`.
        prior: the model's prior module, or a dimension for N(0, I).

    Raises:
        ValueError: the names of encoders and flows differ.
    """

    joint: Any

    def __init__(
        self,
        joint: nn.Module,
        encoders: Mapping[str, nn.Module],
        flows: Mapping[str, nn.Module],
        prior: int | nn.Module,
    ) -> None:
        super().__init__()
        if set(encoders) != set(flows):
            raise ValueError(f"encoders of {list(encoders)}, but flows of {list(flows)}")
        self.joint = joint
        self.encoders, self.flows = nn.ModuleDict(encoders), nn.ModuleDict({m: flows[m] for m in encoders})
        self.prior = as_prior(prior)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return tuple(self.encoders)

    def expert(self, m: str, x: Tensor) -> Flowed:
        """q_m(z | x_m), batch shape `(N,)`."""
        return Flowed(self.encoders[m](x), self.flows[m])

    def presence(self, batch: Batch) -> Tensor:
        """Which modalities each row has `(..., N, M)`, in the order of `names`."""
        return torch.stack(torch.broadcast_tensors(*(presence(batch, m) for m in self.names)), -1)

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        """q(z | the present modalities), batch shape `(N,)` or `(S, N)`."""
        mask = self.presence(batch)
        complete = mask.all(-1, keepdim=True)
        seen = [m for m in self.names if m in batch.x and m not in batch.hidden]
        parts: list[Any] = [self.expert(m, batch.x[m]) for m in seen]
        kept = mask[..., [self.names.index(m) for m in seen]] & ~complete
        chosen = [kept, ~mask.any(-1, keepdim=True)]
        parts.append(self.prior().expand((len(batch),)))
        if len(seen) == len(self.names) and not never_complete(batch, self.names):
            parts.append(self.joint.posterior(in_one_view(batch)))
            chosen.append(complete)
        return MixtureOf(parts, torch.cat(chosen, -1))

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))
