"""A density fitted to the draws of a short Hamiltonian Monte Carlo run."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from pyro_mm.evaluation.hmc import Look, State, adapted, first_step, transition
from pyro_mm.evaluation.refine.density import Refined
from pyro_mm.evaluation.refine.laplace import curvature, inflation, inverse_root, mode, spread_of
from pyro_mm.evaluation.target import Target

__all__ = ["HMCFit", "posterior_look"]


@dataclass(frozen=True)
class HMCFit:
    """u ~ t_nu(mean, c^2 covariance) of the draws of a short HMC run, a moment match rather than a mode.

    The draws themselves are never scored: a chain's density is unknown, and scoring them with the guide's is a
    well-known way to a wrong likelihood.

    Args:
        chains: per row, started from the guide's draws.
        warmup: transitions that adapt the step and are thrown away.
        draws: transitions that are kept.
        leaps: leapfrog steps in one.
        inflate: c.
        dof: nu.
    """

    chains: int = 16
    warmup: int = 30
    draws: int = 30
    leaps: int = 5
    inflate: float | None = None
    dof: float = inf

    def __call__(self, target: Target, pilots: Tensor, before: Refined | None = None) -> Refined:
        """From the guide's draws of u `(P, N, D)`; what came `before` is not used."""
        kept = self.sample(target, pilots)
        mean = kept.mean((0, 1))
        centred = (kept - mean).flatten(0, 1).double()
        covariance = torch.einsum("kni,knj->nij", centred, centred) / (len(centred) - 1)
        # Chains are short and alike: their covariance is drawn towards its diagonal.
        weight = 1 / (1 + mean.shape[-1] / len(centred))
        diagonal = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1) + 1e-10)
        root = torch.linalg.cholesky(weight * covariance + (1 - weight) * diagonal)
        return Refined(
            target.coordinates,
            mean,
            (inflation(self.inflate, mean.shape[-1]) * root).to(mean.dtype),
            self.dof,
            "HMC fit",
        )

    def sample(self, target: Target, pilots: Tensor) -> Tensor:
        """The kept states, `(draws, chains, N, D)`."""
        look, scale = posterior_look(target), spread_of(pilots)
        top = mode(target, pilots[0], scale, 20)
        root = inverse_root(curvature(target, top, scale))
        both = target.coordinates.seen.unsqueeze(-1) & target.coordinates.seen.unsqueeze(-2)
        root = torch.where(both, root, 0.0)
        start = pilots[torch.arange(self.chains, device=pilots.device) % len(pilots)]
        state, step, kept = look(start), first_step(pilots.shape[-1], pilots.shape[1], pilots.device), []
        for t in range(self.warmup + self.draws):
            state, rate = transition(state, look, root, step, self.leaps)
            if t < self.warmup:
                step = adapted(step, rate, self.leaps)
            else:
                kept.append(state.u)
        return torch.stack(kept)


def posterior_look(target: Target) -> Look:
    """The posterior alone, at b = 1."""

    def look(u: Tensor) -> State:
        value, slope = target.gradient(u)
        return State(u, value, slope, torch.zeros_like(value), torch.zeros_like(slope))

    return look
