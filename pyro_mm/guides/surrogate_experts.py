"""A product of experts in which a surrogate stands in for every missing one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.guides.experts import opinions
from pyro_mm.models.joint import presence
from pyro_mm.models.priors import StandardNormal, moments_of
from pyro_mm.tracing import is_traced

__all__ = ["SurrogateExperts"]


class SurrogateExperts(nn.Module):
    """z ~ prod_{m in S} q_m(z | x_m) prod_{n not in S} q'_n(z | x_S), normalised; no prior among the factors.

    q'_n, the surrogate of the missing n, is the geometric mean over m in S of experts q'_nm(z | x_m): of two modalities
    q(z | x_1) = q_1(z | x_1) q'_2(z | x_1) (Kutuzova et al. 2021), and a complete row has no surrogate.  A row with
    nothing present gets the prior.

    Args:
        encoders: name m -> network x_m -> Normal over z, q_m.
        surrogates: name n -> {name m -> network x_m -> Normal over z, q'_nm}, for every m other than n.
        prior: the model's prior module when it is not N(0, I): location-scale.

    Raises:
        ValueError: the names of `surrogates` do not fit, saying which are missing or too many.
    """

    surrogates: Any

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        surrogates: Mapping[str, Mapping[str, nn.Module]],
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for n in encoders:
            if wrong := (set(encoders) - {n}) ^ set(surrogates.get(n, {})):
                raise ValueError(f"the surrogate of '{n}' needs networks of all other modalities; see {sorted(wrong)}")
        if unknown := sorted(set(surrogates) - set(encoders)):
            raise ValueError(f"surrogates of {unknown}, which have no encoder; there are {list(encoders)}")
        self.encoders = nn.ModuleDict(encoders)
        self.surrogates = nn.ModuleDict({n: nn.ModuleDict(surrogates[n]) for n in encoders})
        self.prior = None if prior is None or isinstance(prior, StandardNormal) else prior

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return tuple(self.encoders)

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        """q(z | the present modalities), batch shape `(N,)` or `(S, N)`."""
        precision, moment, mask = _factors(self.encoders, batch)
        total, first = precision.sum(-2), moment.sum(-2)
        for n, encoders in self.surrogates.items():
            missing = ~presence(batch, n)
            if not any(m in batch.x for m in encoders) or (not is_traced() and not bool(missing.any())):
                continue  # no row has use for it
            more, pull, seen = _factors(encoders, batch)
            # Absent where n itself is there; a mean over those of S where it is not.
            share = (missing / seen.sum(-1).clamp(min=1)).unsqueeze(-1).to(more)
            total, first = total + share * more.sum(-2), first + share * pull.sum(-2)
        some = mask.any(-1, keepdim=True)
        loc0, scale0 = (0.0, 1.0) if self.prior is None else moments_of(self.prior)
        total = torch.where(some, total, 1.0)
        loc, scale = torch.where(some, first / total, loc0), torch.where(some, total**-0.5, scale0)
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))


def _factors(encoders: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Precision and precision times location `(..., N, M, D)`, 0 where a modality is absent, and presence."""
    loc, scale, mask = opinions(encoders, batch)
    seen = mask.unsqueeze(-1)
    precision = torch.where(seen, torch.where(seen, scale, 1.0) ** -2, 0.0)
    return precision, precision * torch.where(seen, loc, 0.0), mask
