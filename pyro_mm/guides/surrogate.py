"""A joint encoder where everything is present, unimodal encoders in its place where something is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.guides.experts import Experts
from pyro_mm.guides.fusion import product_of_posteriors
from pyro_mm.sharing import once
from pyro_mm.tracing import is_traced

__all__ = ["Surrogate"]


class Surrogate(nn.Module):
    """z ~ q(z | x_1, ..., x_M) for complete rows, else the product of the present surrogates with the prior.

    One present modality gives its own encoder, q(z | x_m); none gives the prior; several, short of all, give
    p(z) prod_m q(z | x_m) / p(z).  `given(guide, "image")` is therefore q(z | image).

    Args:
        joint: a guide with a `posterior(batch)` method for complete rows.
        encoders: name -> unimodal encoder; their names say what "complete" means.
    """

    joint: Any

    def __init__(self, joint: nn.Module, encoders: Mapping[str, nn.Module], prior: nn.Module | None = None) -> None:
        super().__init__()
        self.joint = joint
        self.unimodal = Experts(encoders, product_of_posteriors, prior)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return self.unimodal.names

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        """q(z | the present modalities), batch shape `(N,)` or `(S, N)`; made once for all terms of an objective."""
        seen = tuple(t for m in self.names if m in batch.x for t in (batch.x[m], batch.mask[m]))
        return once(self, seen, None, lambda: self._posterior(batch))

    def _posterior(self, batch: Batch) -> dist.TorchDistribution:
        if batch.hidden.intersection(self.names) or never_complete(batch, self.names):
            return self.unimodal.posterior(batch)
        full = torch.stack(torch.broadcast_tensors(*(batch.mask[m] for m in self.names))).all(0)
        if not is_traced():  # a graph must serve any batch
            if not bool(full.any()):
                return self.unimodal.posterior(batch)
            if bool(full.all()):
                return self.joint.posterior(in_one_view(batch)).expand(full.shape)  # type: ignore[no-any-return]
        a, b = self.joint.posterior(in_one_view(batch)).base_dist, self.unimodal.posterior(batch).base_dist
        pick = full.unsqueeze(-1)
        loc, scale = torch.where(pick, a.loc, b.loc), torch.where(pick, a.scale, b.scale)
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))


def in_one_view(batch: Batch) -> Batch:
    """Every row once, with all that some view shows of it: complete rows look the same in every view that shows them,
    so that a joint encoder need not see them S times.
    """
    if all(mask.dim() == 1 for mask in batch.mask.values()):
        return batch
    return Batch._view(batch.x, {m: v if v.dim() == 1 else v.any(0) for m, v in batch.mask.items()}, batch.hidden)


def never_complete(batch: Batch, names: Sequence[str]) -> bool:
    """It is known that no stacked view shows all of these, whatever the rows have."""
    shown = [batch.views[m] for m in names if m in batch.views]
    return bool(shown) and not any(all(view) for view in zip(*shown, strict=True))
