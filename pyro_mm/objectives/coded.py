"""Objectives of a second model whose data are the latents of a first one."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.handlers import Program
from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.objectives.formula import tex
from pyro_mm.weights import run

__all__ = ["coded", "codes_of"]


def coded(objective: Objective, guide: Program) -> Objective:
    """E_{z_m ~ q(z_m | x_m)} objective({z_m}): `objective` of a model in which the latents z_m are the modalities.

    z_m carry no gradient: nothing of this reaches the guide that draws them (the stop-gradients of NEXUS, Vasco et al.
    2022).  A modality that is missing has a missing code.

    Args:
        objective: of a pair whose observations are named after the modalities.
        guide: has the sites `z_<m>`: `Unimodal`.
    """
    return Objective([(1.0, Coded(objective, guide))])


class Coded(Term):
    """See `coded`."""

    label = "coded"

    def __init__(self, objective: Objective, guide: Program) -> None:
        super().__init__()
        self.objective, self.guide = objective, guide

    def forward(self, batch: Batch) -> Tensor:
        loss = self.objective(codes_of(self.guide, batch))
        self.report = {"": -loss.detach(), **self.objective.parts()}
        return loss

    def formula(self) -> str:
        inside = self.objective._join(lambda t: t.formula(), "{w} ", " ")
        return f"E_q(z_m | x_m)[{inside}, x_m := z_m]"

    def latex(self) -> str:
        return tex(self.formula())


def codes_of(guide: Program, batch: Batch) -> Batch:
    """One draw of every modality's latent `z_<m>` as a batch of modalities, without gradients."""
    with torch.no_grad():
        sites = run(guide, batch)
    codes = {m: _where_seen(sites[f"z_{m}"].value, batch.mask[m]) for m in batch.names if f"z_{m}" in sites}
    if not codes:
        raise ValueError(f"coded(...) needs a guide with sites z_<modality>; this one has {list(sites)}")
    return Batch._view(codes, {m: batch.mask[m] for m in codes}, batch.hidden)


def _where_seen(code: Tensor, mask: Tensor) -> Tensor:
    """Zero where the modality is missing: statistics of a batch must not know it either."""
    return torch.where(mask.unsqueeze(-1), code, 0.0)
