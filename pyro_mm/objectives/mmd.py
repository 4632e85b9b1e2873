"""The maximum mean discrepancy between the latents that a guide draws and the model's prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.handlers import Program
from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.objectives.formula import prior_of, q_of, tex
from pyro_mm.weights import Site, run

__all__ = ["discrepancy", "mmd"]

WIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def mmd(model: Program, guide: Program, *, widths: Sequence[float] = WIDTHS) -> Objective:
    """sum over latents of MMD^2(q(z), p(z)), q(z) = mean over the batch's rows of q(z | x), as a loss.

    The unbiased estimate from one draw of each for every row, with inverse multiquadratic kernels k(a, b) = sum_c C_c /
    (C_c + |a - b|^2), C_c = 2 D c (Tolstikhin et al. 2018, section 4): it pulls the batch's latents as a whole towards
    the prior, and may be slightly negative.  It depends on the rows of a batch together, so it has no value per datum.
    Rows in which a latent is masked, or in which nothing is present, are left out.

    Args:
        widths: c.
    """
    return Objective([(1.0, Discrepancy(model, guide, widths))])


class Discrepancy(Term):
    """See `mmd`."""

    label, sign = "mmd", 1

    def __init__(self, model: Program, guide: Program, widths: Sequence[float]) -> None:
        super().__init__()
        self.model, self.guide, self.widths = model, guide, tuple(widths)

    def forward(self, batch: Batch) -> Tensor:
        drawn, prior = run(self.guide, batch), run(self.model, batch)
        parts, some = [], batch.present()
        for name, site in drawn.items():
            rows = _rows(site, len(batch)) & some
            if int(rows.sum()) > 1:
                parts.append(discrepancy(site.value[rows].flatten(1), prior[name].value[rows].flatten(1), self.widths))
        loss = torch.stack(parts).sum() if parts else next(iter(drawn.values())).value.sum() * 0.0
        self.report = {"": loss.detach()}
        return loss

    def formula(self) -> str:
        return f"MMD({q_of(self.guide)}, {prior_of(self.model, self.guide)})"

    def latex(self) -> str:
        return tex(self.formula())


def discrepancy(a: Tensor, b: Tensor, widths: Sequence[float] = WIDTHS) -> Tensor:
    """The unbiased estimate of MMD^2 from draws `(N, D)` and `(M, D)` of two distributions."""
    n, m = len(a), len(b)
    within = (_kernel(a, a, widths).sum() - n * len(widths)) / (n * (n - 1))
    within = within + (_kernel(b, b, widths).sum() - m * len(widths)) / (m * (m - 1))
    return within - 2 * _kernel(a, b, widths).mean()


def _kernel(a: Tensor, b: Tensor, widths: Sequence[float]) -> Tensor:
    square = (a.unsqueeze(1) - b.unsqueeze(0)).square().sum(-1)
    scales = [2 * a.shape[-1] * c for c in widths]
    return torch.stack([s / (s + square) for s in scales]).sum(0)


def _rows(site: Site, n: int) -> Tensor:
    """Bool `(N,)`: rows in which the latent is not masked."""
    if isinstance(site.mask, Tensor):
        return site.mask.expand(n)
    return torch.full((n,), site.mask is not False, device=site.value.device)
