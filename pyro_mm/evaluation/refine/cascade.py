"""Several refiners, the costlier ones only for rows that need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyro_mm.evaluation.refine.density import Refined
from pyro_mm.evaluation.refine.gradient import GradientSteps
from pyro_mm.evaluation.refine.laplace import Laplace
from pyro_mm.evaluation.target import Target

__all__ = ["Cascade", "Refiner", "efficiency"]


class Refiner(Protocol):
    """From the posterior, some of the guide's draws of u `(P, N, D)` and what an earlier refiner found to a density."""

    def __call__(self, target: Target, pilots: Tensor, before: Refined | None = None) -> Refined: ...


@dataclass(frozen=True)
class Cascade:
    """The first refiner for every row, the next ones for rows in which those before are poor, and the best per row.

    A mode with its curvature is cheap and good where the data say much (an image); where they say little (a label) the
    posterior is broad and curved, and matching it under the KL divergence pays.

    Args:
        refiners: all of one family (`dof`).
        draws: of each density, to judge it by the effective share of its own draws.
        enough: a share that is not worth improving.
    """

    refiners: Sequence[Refiner] = (Laplace(), GradientSteps(50, 4))
    draws: int = 50
    enough: float = 0.2

    def __call__(self, target: Target, pilots: Tensor, before: Refined | None = None) -> Refined:
        """From the guide's draws of u `(P, N, D)`."""
        best = self.refiners[0](target, pilots, before)
        share = efficiency(best, target, self.draws)
        for refiner in self.refiners[1:]:
            rows = (share < self.enough).nonzero().flatten()
            if not len(rows):
                break
            part = target[rows]
            other = refiner(part, pilots[:, rows], best[rows])
            found = efficiency(other, part, self.draws)
            wins = found > share[rows]
            best, share = best.replaced(rows[wins], other[wins.nonzero().flatten()]), share.clone()
            share[rows[wins]] = found[wins]
        return best


def efficiency(density: Refined, target: Target, draws: int) -> Tensor:
    """Effective share of K draws per row, `(N,)`: 1 / (K sum of squared normalised weights)."""
    u = density.sample(draws)
    log_w = (target(u) - density.log_density(u)).nan_to_num(nan=-torch.inf)
    normal = log_w - log_w.logsumexp(0)
    return (1 / (2 * normal).exp().sum(0) / draws).nan_to_num(nan=0.0)
