"""Ranks of the truth among draws: what is ranked, how it is ranked, and whether the ranks are uniform."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import exp, log
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import solve_triangular

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.proposals import Draws, Proposal, shares_of
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import Sites, replay

__all__ = ["POINTS", "Probe", "band", "proposal_of", "uniformity"]

Blocks = Iterable[tuple[Batch, dict[str, Tensor]]]
COORDINATES, WIDEST = 32, 256  # most coordinates that are ranked, and that enter a direction
EXTREME, RANDOM, PILOT = 2, 2, 10  # directions of a kind, and draws per datum that they are found by
ROUNDING = 5e-7  # values that differ by less, relative to their size, differ by rounding in float32
POINTS = np.arange(1, 100) / 100  # where an ECDF is compared with the uniform distribution


class Probe:
    """The test quantities of one subset: `matrix` (D, C) on the guide's latents side by side, and log-densities.

    Directions come from a second simulation: those chosen on the data that are ranked would find fault with any guide.
    """

    def __init__(self, model: Program, guide: Program, group: tuple[str, ...], pilot: Blocks) -> None:
        self.model, self.guide, self.group = model, guide, group
        apart: Any = 0.0
        spread: Any = 0.0
        known: Any = False
        for block, exact in pilot:
            proposal, sites = proposal_of(model, guide, block), replay(particles(model, 1), block, exact)
            draws = proposal.draw(block, proposal.assign(PILOT))
            self.latents, self.prior_sites = list(draws.values), draws.prior_sites
            if not self.latents:
                raise ValueError(f"the guide samples no latent given {', '.join(group)}: there is nothing to rank")
            z, seen = self.columns(draws.values, sites)
            wide = _some(torch.arange(z.shape[-1]), WIDEST)
            off, step = self.columns(exact, sites)[0] - z, z[1:] - z[:-1]
            apart, spread = apart + _outer(off[..., wide]), spread + _outer(step[..., wide])
            known = known | seen.any(0)
        single = _some(known.nonzero().flatten().cpu(), COORDINATES)
        names, lines = _directions(apart, spread)
        self.matrix = z.new_zeros(z.shape[-1], len(single) + len(names))
        self.matrix[single, range(len(single))] = 1.0
        self.matrix[wide, len(single) :] = lines
        labels = [label for n in self.latents for label in _labels(n, draws.values[n], sites[n].fn.event_dim)]
        self.coordinates = len(single), int(known.sum())
        self.names = [labels[i] for i in single] + names + ["log p(x, z)", *(f"log p({m} | z)" for m in group)]

    def columns(self, values: dict[str, Tensor], sites: Sites) -> tuple[Tensor, Tensor]:
        """Latents side by side `(K, N, D)`, 0 where they are masked, and where they are not `(N, D)`."""
        columns, seen = [], []
        for name in self.latents:
            value, mask, event = values[name], sites[name].mask, sites[name].fn.event_dim
            mask = torch.as_tensor(True if mask is None else mask, device=value.device)
            mask = mask.reshape([*mask.shape, *[1] * event]).expand(value.shape)
            columns.append(_flat(value.double().where(mask, 0.0), event))
            seen.append(_flat(mask, event)[0])
        return torch.cat(columns, -1), torch.cat(seen, -1)

    def of(self, draws: Draws, sites: Sites, block: Batch) -> tuple[Tensor, Tensor]:
        """Every quantity `(K, N, Q)`, and the rows in which it exists `(N, Q)`."""
        z, seen = self.columns(draws.values, sites)
        logs = [_log_joint(draws, draws.log_likelihood)]
        logs += [_log_joint(draws, [m]) - _log_joint(draws, []) for m in self.group]
        values = torch.cat([z @ self.matrix, torch.stack(logs, -1)], -1)
        linear = seen.double() @ (self.matrix != 0).double() > 0
        rows = torch.stack([block.mask[m] for m in self.group], -1)
        return values, torch.cat([linear, rows.any(-1, True), rows], -1)

    def ranks(
        self, block: Batch, exact: dict[str, Tensor], draws: int, plan: Plan, weighted: bool
    ) -> tuple[Tensor, Tensor]:
        """Ranks of the truth in (0, 1) `(N, Q)`, and the rows in which they mean something."""
        proposal, sites = proposal_of(self.model, self.guide, block), replay(particles(self.model, 1), block, exact)
        truth, seen = self.of(proposal.at(block, exact), sites, block)
        tally = _Tally(truth[0])
        for which in plan.slices(proposal.assign(draws)):
            drawn = proposal.draw(block, which)
            log_w = drawn.log_weight() if weighted else torch.zeros_like(drawn.log_q)
            tally.add(self.of(drawn, sites, block)[0], log_w.double())
        return tally.ranks(), seen


class _Tally:
    """Weights of the draws below the truth and level with it, relative to the largest so far, `(N, Q)`."""

    def __init__(self, truth: Tensor) -> None:
        self.truth, self.top = truth, truth.new_full((len(truth), 1), -torch.inf)
        self.below, self.level = torch.zeros_like(truth), torch.zeros_like(truth)
        self.total, self.square = torch.zeros_like(self.top), torch.zeros_like(self.top)

    def add(self, values: Tensor, log_w: Tensor) -> None:
        """Take in quantities `(K, N, Q)` and log-weights `(K, N)`."""
        log_w = log_w.unsqueeze(-1)
        top = torch.maximum(self.top, log_w.amax(0)).clamp(min=-1e300)  # all -inf so far: weights of 0
        fade, w = (self.top - top).exp(), (log_w - top).exp()
        level = (values == self.truth) | ((values - self.truth).abs() < ROUNDING * self.truth.abs())
        self.below = self.below * fade + (w * (~level & (values < self.truth))).sum(0)
        self.level = self.level * fade + (w * level).sum(0)
        self.total, self.square = self.total * fade + w.sum(0), self.square * fade**2 + (w * w).sum(0)
        self.top = top

    def ranks(self) -> Tensor:
        """The truth among draws that weigh 1 / ESS in the mean, placed at random between those it ties with."""
        own = self.square / self.total
        return (self.below + torch.rand_like(self.below) * (self.level + own)) / (self.total + own)


def proposal_of(model: Program, guide: Program, block: Batch) -> Proposal:
    """The guide alone, with independent draws."""
    return Proposal(model, [(guide, block)], shares_of(1, 0.0), independent=True)


def uniformity(u: Tensor) -> float:
    """p-value of independent values `(n,)` for the uniform distribution on (0, 1), two-sided, exact for any n.

    How likely is a binomial count of values <= t as far from n t as the most extreme one here, at any t of `POINTS`?
    """
    n = len(u)
    counts = np.searchsorted(np.sort(u.cpu().numpy()), POINTS, side="right")
    cdf, rows = _binomial(n), np.arange(len(POINTS))
    return _escape(float(np.minimum(cdf[rows, counts], cdf[rows[::-1], n - counts]).min()), n)


@lru_cache(maxsize=64)
def band(n: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest values at `POINTS` of an ECDF of n uniform values, left anywhere with probability <= `level`.

    The simultaneous band of Säilynoja, Bürkner & Vehtari (2022): equal tail probability at every point.
    """
    low, high = log(level) - 2 * log(len(POINTS)), log(0.5)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _escape(exp(middle), n) <= level else (low, middle)
    counts = _limits(exp(low), n)
    return counts[0] / n, counts[1] / n


@lru_cache(maxsize=8)
def _binomial(n: int) -> np.ndarray:
    """P(C <= c) for C ~ Binomial(n, t), `(points, n + 1)`."""
    c, t = np.arange(n + 1), POINTS[:, None]
    factorial = _log_factorial(n)
    choose = factorial[n] - factorial - factorial[::-1]
    return np.exp(choose + c * np.log(t) + (n - c) * np.log1p(-t)).cumsum(1)


def _log_factorial(n: int) -> np.ndarray:
    return np.concatenate([[0.0], np.log(np.arange(1, n + 1)).cumsum()])


def _limits(tail: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest count at every point with more than `tail` probability on either side."""
    low = (_binomial(n) <= tail).sum(1)
    return low, n - low[::-1]


def _escape(tail: float, n: int) -> float:
    """Probability that n uniform values have a count outside `_limits(tail, n)` at some point.

    The counts are a Poisson process given its total, so that a step is a convolution.  What leaves is summed instead of
    subtracted from 1, so that small probabilities keep their digits.
    """
    cells, factorial = len(POINTS) + 1, _log_factorial(n)

    def poisson(counts: np.ndarray, rate: float) -> np.ndarray:
        return np.exp(counts * log(rate) - rate - factorial[counts])

    step = poisson(np.arange(n + 1), n / cells)
    step = step[: np.flatnonzero(step > 1e-100)[-1] + 1]
    mass, first, left = np.ones(1), 0, 0.0
    for i, (low, high) in enumerate(zip(*_limits(tail, n), strict=True), 1):
        mass = np.convolve(mass, step)[: n + 1 - first]
        counts = first + np.arange(len(mass))
        gone = (counts < low) | (counts > high)
        left += mass[gone] @ poisson(n - counts[gone], n * (1 - i / cells))
        mass, first = mass[~gone], max(first, int(low))
        if not len(mass):
            break
    return min(1.0, float(left / poisson(np.array([n]), n)[0]))


def _directions(apart: Tensor, spread: Tensor) -> tuple[list[str], Tensor]:
    """Names of directions, and the directions `(D, C)` in which the truth is farthest from draws, for their own spread.

    Args:
        apart: covariance-like (D, D) of truth - draw.
        spread: the same of draw - draw: equal to it when the guide is exact.
    """
    apart, spread = apart.nan_to_num(), spread.nan_to_num()
    total = (apart + spread).diagonal()
    moves = (total > 0).nonzero().flatten()
    extreme, some = min(EXTREME, len(moves) // 2), RANDOM * (len(moves) > 1)
    lines = apart.new_zeros(len(apart), 2 * extreme + some)
    if not some:
        return [], lines
    a, b = apart[moves][:, moves], spread[moves][:, moves]
    root = torch.linalg.cholesky(b + 1e-6 * total[moves].diag())  # a guide may have no spread at all
    white = solve_triangular(root, solve_triangular(root, a, upper=False).T, upper=False)
    vectors = torch.linalg.eigh((white + white.T) / 2).eigenvectors  # from the guide too wide to too narrow
    random = torch.randn(len(moves), some, dtype=a.dtype, device=a.device)
    best = torch.cat([vectors.flip(-1)[:, :extreme], vectors[:, :extreme], random], -1)
    lines[moves] = solve_triangular(root.T, best, upper=True)
    kinds = (("narrow", extreme), ("wide", extreme), ("random", some))
    return [f"{kind} {i + 1}" for kind, count in kinds for i in range(count)], lines


def _outer(values: Tensor) -> Tensor:
    """Mean over particles and sum over rows of v v', `(K, N, D)` to `(D, D)`."""
    flat = values.flatten(0, 1)
    return flat.T @ flat / len(values)


def _some(indices: Tensor, most: int) -> Tensor:
    """At most so many of them, evenly spread."""
    return indices if len(indices) <= most else indices[torch.linspace(0, len(indices) - 1, most).round().long()]


def _flat(value: Tensor, event: int) -> Tensor:
    """`(K, N, D)`: plates inside the datum and event dimensions flattened."""
    batch = value.dim() - event
    return value.movedim((batch - 3, batch - 1), (0, 1)).flatten(2)


def _labels(name: str, value: Tensor, event: int) -> Iterator[str]:
    """`z`, or `z[0]`, `z[1]`, ... in the order of `_flat`."""
    batch = value.dim() - event
    shape = [d for d in value.movedim((batch - 3, batch - 1), (0, 1)).shape[2:] if d > 1]
    return (f"{name}[{','.join(map(str, i))}]" if i else name for i in np.ndindex(*shape))


def _log_joint(draws: Draws, names: Iterable[str]) -> Tensor:
    """log p(z, x_names) `(K, N)`, enumerated latents summed over."""
    total = draws.log_prior.double()
    for m in names:
        total = total + draws.log_likelihood[m]
    return total.flatten(0, -3).logsumexp(0) if total.dim() > 2 else total
