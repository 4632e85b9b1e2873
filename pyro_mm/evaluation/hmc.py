"""Hamiltonian Monte Carlo for many chains of many data at once, each accepted by itself.

States are `(K, N, D)`: chain, datum, coordinate.  The density is a geometric path between an explicit q and the
posterior, log f_b = (1 - b) log q + b log p(x, u); at b = 1 it is plain HMC for the posterior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

__all__ = ["Look", "State", "adapted", "first_step", "transition"]

GOAL = 0.65  # acceptance, near the optimum for HMC (Beskos et al. 2013)
JITTER = 0.3  # the share by which a step may be shorter or longer


@dataclass(frozen=True)
class State:
    """Points `(K, N, D)` and what both densities say there: values `(K, N)`, gradients `(K, N, D)`."""

    u: Tensor
    log_p: Tensor
    slope_p: Tensor
    log_q: Tensor
    slope_q: Tensor

    def value(self, b: float) -> Tensor:
        """log f_b."""
        return (1 - b) * self.log_q + b * self.log_p

    def slope(self, b: float) -> Tensor:
        """Its gradient."""
        return (1 - b) * self.slope_q + b * self.slope_p

    def where(self, keep: Tensor, other: State) -> State:
        """This state where `keep` `(K, N)`, the other one elsewhere."""
        deep = keep.unsqueeze(-1)
        return State(
            torch.where(deep, self.u, other.u),
            torch.where(keep, self.log_p, other.log_p),
            torch.where(deep, self.slope_p, other.slope_p),
            torch.where(keep, self.log_q, other.log_q),
            torch.where(deep, self.slope_q, other.slope_q),
        )


Look = Callable[[Tensor], State]


def transition(
    state: State, look: Look, root: Tensor, step: Tensor, leaps: int, b: float = 1.0
) -> tuple[State, Tensor]:
    """One HMC transition of every chain, and its acceptance probability `(K, N)`.

    u moves along root r, r ~ N(0, I): a mass matrix (root root')^-1 per datum.  A point of infinite or undefined
    density is never accepted.

    Args:
        root: `(N, D, D)`; rows of zeros hold coordinates where they are.
        step: leapfrog step per datum `(N,)`.
        leaps: leapfrog steps.
    """
    # The same for all, whatever the state: a fixed length would resonate with some directions and hardly move there.
    jitter = 1 + JITTER * (2 * torch.rand(state.u.shape[:2], device=state.u.device) - 1)
    size = (step * jitter).to(state.u.dtype).unsqueeze(-1)
    root = root.to(state.u.dtype)
    r = torch.randn_like(state.u)
    kinetic = 0.5 * r.square().sum(-1)
    new, u = state, state.u
    r = r + 0.5 * size * _pull(root, state.slope(b))
    for i in range(leaps):
        u = u + size * torch.einsum("nij,knj->kni", root, r)
        new = look(u)
        r = r + (size if i < leaps - 1 else 0.5 * size) * _pull(root, new.slope(b))
    change = (new.value(b) - state.value(b)) - (0.5 * r.square().sum(-1) - kinetic)
    rate = torch.where(torch.isfinite(change), change.clamp(max=0.0).exp(), 0.0)
    return new.where(torch.rand_like(rate) < rate, state), rate


def first_step(dim: int, n: int, device: torch.device | None = None) -> Tensor:
    """A step to start from, `(N,)`: for a standard normal in D dimensions."""
    return torch.full((n,), dim**-0.25, dtype=torch.float64, device=device)


def adapted(step: Tensor, rate: Tensor, leaps: int) -> Tensor:
    """The step per datum, longer where chains were accepted more often than the goal, up to a quarter of a period.

    In coordinates in which the posterior is about a standard normal, a quarter of a period (pi / 2) forgets the start.
    """
    return (step * torch.exp(0.5 * (rate.mean(0).double() - GOAL))).clamp(max=0.5 * pi / leaps)


def _pull(root: Tensor, slope: Tensor) -> Tensor:
    return torch.einsum("nij,kni->knj", root, slope.to(root.dtype))
