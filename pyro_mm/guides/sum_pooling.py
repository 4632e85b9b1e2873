"""A joint encoder that adds up what it sees, so that any modalities may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.modality import Modality, names_of, positive
from pyro_mm.sharing import once

__all__ = ["SumPooling"]


class SumPooling(nn.Module):
    """rho(sum_{m in S} chi(h_m(x_m))): a net for `JointEncoder` (deep sets; Hirt et al. 2023).

    h_m is the modality's own network, with `width` outputs; chi and rho, one hidden layer each, are common to all.  The
    sum does not depend on the order of the modalities, and what is missing is not in it.
    """

    def __init__(self, modalities: Sequence[Modality], dim: int, width: int = 512) -> None:
        super().__init__()
        self.names, self.width = names_of(modalities), width
        self.modalities = {m.name: m for m in modalities}
        self.bodies = nn.ModuleDict(
            {m.name: m.net.encoder(m.likelihood.feature_shape(m.shape), width) for m in modalities}
        )
        self.chi = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.rho = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2 * dim))

    def pooled(self, batch: Batch) -> Tensor:
        """The sum over what is present `(..., N, width)`."""
        total: Tensor | float = 0.0
        for m, body in self.bodies.items():
            if m not in batch.x or m in batch.hidden:
                continue
            seen = self.modalities[m].apply_net(body, batch.x[m])
            part = once(self.chi, seen, None, partial(self.chi, seen))
            total = total + torch.where(batch.mask[m].unsqueeze(-1), part, 0.0)
        if isinstance(total, Tensor):
            return total
        return next(self.rho.parameters()).new_zeros(len(batch), self.width)

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        loc, raw = self.rho(self.pooled(batch)).chunk(2, -1)
        return dist.Normal(loc, positive(raw), validate_args=False).to_event(1)
