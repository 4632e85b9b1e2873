"""Laplace's approximation with full covariance, for all rows at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from pyro_mm.evaluation.refine.ascent import ascend
from pyro_mm.evaluation.refine.density import Refined
from pyro_mm.evaluation.target import Target

__all__ = ["Laplace", "curvature", "inverse_root", "mode"]

PRIOR = 4000  # draws from the prior, over all rows, that say how wide it is
NARROW = 0.05  # of the prior's width: the least that a coordinate is measured in
TRIED = 20  # of the guide's draws as starting points


@dataclass(frozen=True)
class Laplace:
    """u ~ N(u*, c^2 (-H)^-1), u* the posterior's mode and H the curvature of log p(x, u) there.

    H is taken from differences of the gradient over half a standard deviation: right for a Gaussian posterior, and what
    a proposal wants for one with kinks (ReLU decoders), whose curvature at the mode itself is that of one linear piece.
    Coordinates about which the data say nothing are left as in the prior: errors in many of them would add up.

    Args:
        steps: of Adam towards the mode, from the best of the guide's draws.
        inflate: c; by default 1 + 1 / (2 sqrt D): rather too wide than too narrow, but what that costs grows with D.
        dof: degrees of freedom of a Student t in place of the Gaussian.
    """

    steps: int = 30
    inflate: float | None = None
    dof: float = inf

    def __call__(self, target: Target, pilots: Tensor, before: Refined | None = None) -> Refined:
        """From the guide's draws of u `(P, N, D)`; what came `before` is not used."""
        prior = target.prior(max(2, PRIOR // len(pilots[0])))
        along = informed(target, pilots, prior)
        # A guide far too narrow would set units in which the mode is out of reach.
        scale = torch.maximum(spread_of(pilots), NARROW * prior.std((0, 1)))
        u = mode(target, best_of(target, pilots[:TRIED]), scale, self.steps)
        precision = curvature(target, u, scale, along)
        u = newton(target, u, precision)
        root = (inflation(self.inflate, len(along)) * inverse_root(precision)).to(u.dtype)
        return Refined(target.coordinates, *as_prior_elsewhere(u, root, along, prior), self.dof, "Laplace")


def inflation(asked: float | None, dim: int) -> float:
    """By how much standard deviations are widened.

    A Gaussian that is too wide by c in each of D directions has an efficiency of (sqrt(2 c^2 - 1) / c^2)^D.
    """
    return 1 + 0.5 * dim**-0.5 if asked is None else asked


def best_of(target: Target, points: Tensor) -> Tensor:
    """The point of highest density of every row, `(N, D)` of `(P, N, D)`."""
    index = target(points).nan_to_num(nan=-torch.inf).argmax(0)
    return points.gather(0, index.view(1, -1, 1).expand(1, *points.shape[1:])).squeeze(0)


def spread_of(pilots: Tensor) -> Tensor:
    """Standard deviations `(N, D)` of the guide's draws, away from 0."""
    return pilots.std(0).clamp(min=1e-3)


def mode(target: Target, start: Tensor, scale: Tensor, steps: int, rate: float = 0.3) -> Tensor:
    """Ascend log p(x, u) by Adam in units of `scale`; the best point seen of every row, `(N, D)`."""
    best, best_value = start, target(start.unsqueeze(0))[0]

    def slope(v: Tensor) -> Tensor:
        nonlocal best, best_value
        u = start + scale * v
        value, gradient = (part[0] for part in target.gradient(u.unsqueeze(0)))
        better = value > best_value
        best, best_value = torch.where(better.unsqueeze(-1), u, best), torch.where(better, value, best_value)
        return gradient * scale

    last = start + scale * ascend(torch.zeros_like(start), slope, steps, rate)
    return best_of(target, torch.stack([best, last]))


def informed(target: Target, pilots: Tensor, prior: Tensor, least: float = 0.02) -> Tensor:
    """Indices of the coordinates about which the data say something: KL(guide || prior) of `least` nats, rows' mean.

    All of them where the guide is the prior throughout: then it cannot tell.
    """
    loc, spread = prior.mean((0, 1)), prior.std((0, 1)).clamp(min=1e-6)
    ratio = (pilots.std(0) / spread).square().clamp(min=1e-6)
    divergence = 0.5 * (ratio + ((pilots.mean(0) - loc) / spread).square() - 1 - ratio.log())
    seen = target.coordinates.seen
    mean = (divergence * seen).sum(0) / seen.sum(0).clamp(min=1)
    found = mean > least + 1 / len(pilots)  # of moments from P draws: 1/P of noise
    return (found | ~found.any()).nonzero().flatten()


def as_prior_elsewhere(u: Tensor, root: Tensor, along: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Location and root with the prior's own mean and width in all but the informed coordinates."""
    free = torch.ones(u.shape[-1], dtype=torch.bool, device=u.device).index_fill(0, along, False)
    width = torch.diag(prior.std((0, 1)))
    outside = (free.unsqueeze(-1) | free.unsqueeze(-2)).unsqueeze(0)
    return torch.where(free, prior.mean((0, 1)), u), torch.where(outside, width, root)


def curvature(
    target: Target, u: Tensor, scale: Tensor, along: Tensor | None = None, step: float = 0.5, floor: float = 1e-3
) -> Tensor:
    """Precision -H `(N, D, D)` of the posterior near u, positive definite, float64.

    From central differences of the gradient over `step` times `scale`.  In units of `scale` eigenvalues are replaced
    by their absolute values, at least `floor`: along a direction of upward curvature the density is wide, not absent.

    Args:
        along: coordinates to look along; the others have precision 1 / scale^2 and correlate with none.
    """
    along = torch.arange(u.shape[-1], device=u.device) if along is None else along
    wide, seen = scale.double(), target.coordinates.seen
    offsets = torch.diag_embed(step * scale).transpose(0, 1)[along]  # (A, N, D)
    change = target.gradient(u - offsets)[1].double() - target.gradient(u + offsets)[1].double()
    scaled = torch.eye(u.shape[-1], dtype=wide.dtype, device=u.device).repeat(len(u), 1, 1)
    rows = (change * wide).transpose(0, 1)[..., along] / (2 * step)  # scale_i (g_i(u - h_j) - g_i(u + h_j)) / 2 step
    both = (seen.unsqueeze(-1) & seen.unsqueeze(-2))[:, along][..., along]
    inner = torch.where(both, 0.5 * (rows + rows.mT), torch.eye(len(along)).to(rows))
    value, vectors = torch.linalg.eigh(inner)
    fixed = (vectors * value.abs().clamp(min=floor).unsqueeze(-2)) @ vectors.mT
    scaled[:, along.unsqueeze(-1), along] = fixed
    return scaled / (wide.unsqueeze(-1) * wide.unsqueeze(-2))


def newton(target: Target, u: Tensor, precision: Tensor) -> Tensor:
    """One Newton step, or the half or quarter of it, where it raises log p(x, u)."""
    slope = target.gradient(u.unsqueeze(0))[1][0]
    root = torch.linalg.cholesky(precision)
    step = torch.cholesky_solve(slope.double().unsqueeze(-1), root).squeeze(-1).to(u.dtype)
    tried = torch.stack([u, *(u + size * step for size in (1.0, 0.5, 0.25))])
    return best_of(target, tried)


def inverse_root(precision: Tensor) -> Tensor:
    """Lower triangular R with R R' = precision^-1."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precision)))
