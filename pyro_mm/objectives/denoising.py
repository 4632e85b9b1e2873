"""What diffusions over latents are trained by: the squared error of their velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions.diffused import END, evenly, noised
from pyro_mm.handlers import Program, rows_of
from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.objectives.formula import q_of
from pyro_mm.weights import run

__all__ = ["Denoising", "denoising", "denoising_data", "masked_denoising"]

Latents = Callable[[Batch], tuple[Tensor, Tensor]]
"""batch -> z `(N, D)`, and which parts of it there are, bool `(N, M)`."""


def denoising(guide: Program, velocity: nn.Module) -> Objective:
    """E_{q(z|x)} of the mean over angles phi of |v_phi - v(z_phi, phi)|^2, v_phi = cos(phi) eps - sin(phi) z, a loss.

    Every angle counts alike, which makes better samples, and a better density of the probability flow, than the weight
    cot(phi) of the evidence bound.  Rows in which nothing is present are left out.  The guide gets no gradient.

    Args:
        guide: with a site `z` of event shape `(D,)`.
        velocity: `(z (..., D), phi (..., 1)) -> (..., D)`, such as `DiffusionPrior(dim).velocity`.
    """
    return Objective([(1.0, Denoising(Drawn(guide), velocity, None, 0.0, f"E_{q_of(guide)}"))])


def masked_denoising(latents: nn.Module, velocity: nn.Module, sizes: dict[str, int], share: float = 0.5) -> Objective:
    """The same over the latents of all modalities side by side, some of them often given: MLD's objective.

    In a share of the rows a random part of the modalities there are, neither none nor all, stays as it is, at angle 0,
    and the rest is diffused; the error counts over the rest, times D over its size.  A modality that a row lacks is
    noise, at angle pi/2, and does not count (Bounoua et al. 2024, section 4, here with velocities and angles).

    Args:
        latents: batch -> z `(N, D)` and presence `(N, M)`.
        velocity: `(z (..., D), phi (..., M)) -> (..., D)`.
        sizes: of every modality's part of z, in order.
        share: d, of rows in which something is given.

    Raises:
        ValueError: `share` is no share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of rows in which something is given lies in [0, 1], got {share:g}")
    return Objective([(1.0, Denoising(latents, velocity, sizes, share, "E"))])


class Denoising(Term):
    """See `denoising` and `masked_denoising`."""

    label, sign = "velocity", 1

    def __init__(
        self, latents: Latents, velocity: nn.Module, sizes: dict[str, int] | None, share: float, mean: str
    ) -> None:
        super().__init__()
        self.latents, self.velocity, self.share, self.mean = latents, velocity, share, mean
        self.sizes = None if sizes is None else list(sizes.values())

    def forward(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            z, there = self.latents(batch)
            given = self._given(there)
            angle = END * evenly(z[..., :1])
            angles = torch.where(given, 0.0, torch.where(there, angle, END))
            noisy, v = noised(z, self._wide(angles, z.shape[-1]))
            counted = self._wide((there & ~given).to(z.dtype), z.shape[-1])
        learning: Any = getattr(self.velocity, "learning", None)
        velocity = self.velocity if learning is None else learning()
        error = (velocity(noisy, angles) - v).square()
        size = counted.sum(-1, keepdim=True).clamp(min=1)
        loss: Tensor = (torch.where(counted > 0, error, 0.0) * z.shape[-1] / size).sum() / len(z)
        self.report = {"": loss.detach()}
        return loss

    def _given(self, there: Tensor) -> Tensor:
        """A part of what is there, neither none nor all of it, in a share of the rows; bool `(N, M)`."""
        if not self.share:
            return torch.zeros_like(there)
        n, m = there.shape
        number = there.sum(-1, keepdim=True)
        order = torch.rand(n, m, device=there.device).masked_fill(~there, 2.0).argsort(-1).argsort(-1)
        size = 1 + (torch.rand(n, 1, device=there.device) * (number - 1)).long()  # 1 .. number - 1, each alike
        chosen = (torch.rand(n, 1, device=there.device) < self.share) & (number > 1)
        return chosen & (order < size) & there

    def _wide(self, each: Tensor, dim: int) -> Tensor:
        """Of every modality `(N, M)`, of every coordinate `(N, D)`."""
        if self.sizes is None:
            return each.expand(-1, dim)
        return each.repeat_interleave(torch.tensor(self.sizes, device=each.device), -1)

    def formula(self) -> str:
        return f"{self.mean} |v - v(z_phi, phi)|^2"

    def latex(self) -> str:
        return rf"\mathbb{{{self.mean[0]}}}{self.mean[1:]} |v - v(z_\varphi, \varphi)|^2"


def denoising_data(guide: Program, decoder: Any, name: str) -> Objective:
    """E_{q(z|x)} |v_phi - v(x_phi, phi, z)|^2 of one modality x given z, a loss: what a `DiffusionDecoder` learns by.

    Angles as in `denoising`, the squared error as a sum over the image; rows that have the modality count.  The guide
    gets no gradient.
    """
    return Objective([(1.0, DataDenoising(guide, decoder, name))])


class DataDenoising(Term):
    """See `denoising_data`."""

    label, sign = "velocity", 1

    def __init__(self, guide: Program, decoder: Any, name: str) -> None:
        super().__init__()
        self.guide, self.decoder, self.name = guide, decoder, name

    def forward(self, batch: Batch) -> Tensor:
        rows = batch.mask[self.name]
        with torch.no_grad():
            z = run(self.guide, batch)["z"].value
            x = self.decoder.scaled(batch.x[self.name].to(z.dtype))
            angle = END * evenly(z[..., 0])
            noisy, v = noised(x, angle.view(-1, *[1] * (x.dim() - 1)))
        error = (self.decoder.velocity.learning()(noisy, angle, z) - v).square().flatten(1).sum(-1)
        loss: Tensor = torch.where(rows, error, 0.0).sum() / len(batch)
        self.report = {"": loss.detach()}
        return loss

    def formula(self) -> str:
        return f"E_{q_of(self.guide)} |v - v({self.name}_phi, phi, z)|^2"

    def latex(self) -> str:
        return rf"\mathbb{{E}} |v - v(\mathrm{{{self.name}}}_\varphi, \varphi, z)|^2"


class Drawn(nn.Module):
    """A guide's draw of z, and the rows that count."""

    def __init__(self, guide: Program) -> None:
        super().__init__()
        self.guide, self.rows = guide, rows_of(guide)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        z = run(self.guide, batch)["z"].value
        there, rows = batch.present(), self.rows(batch)
        return z, (there if rows is None else there & rows)[:, None]
