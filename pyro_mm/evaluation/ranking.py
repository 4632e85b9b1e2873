"""How good is a ranking?  Recall, ranks and average precision of scores `(Q, G)`, larger first.

Equal scores (exactly equal) say nothing of the order of their rows: every measure is its expectation over all orders of
them, so that a model that scores all rows alike gets what chance gets, not the first place or the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mm.evaluation.collapse import finite

__all__ = ["Measure", "Places", "average_precision", "bootstrapped", "mean", "median", "places"]

RESAMPLES, AT_ONCE = 1000, 50
BLOCK = 1 << 20  # elements of a score matrix that are sorted at once

Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measure:
    """A mean or median over queries, the ends of its bootstrap interval, and what random scores get on average."""

    value: float
    low: float
    high: float
    chance: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; None for what is not a number."""
        return {k: finite(v) for k, v in vars(self).items()}


@dataclass(frozen=True)
class Places:
    """Where the right row stands: `above` rows score higher, and `tied` others the same; int `(Q,)`."""

    above: Tensor
    tied: Tensor

    @property
    def rank(self) -> Tensor:
        """The mean place over all orders of the tied rows, from 1; float64 `(Q,)`."""
        return self.above + 1 + self.tied.double() / 2

    def within(self, k: int) -> Tensor:
        """The probability that the right row is among the first k, float64 `(Q,)`: their mean is R@k."""
        return ((k - self.above.double()) / (self.tied + 1)).clamp(0.0, 1.0)


def places(scores: Tensor, target: Tensor) -> Places:
    """Of column `target[i]` in row i of `scores` `(Q, G)`."""
    own = scores.gather(1, target.unsqueeze(1))
    return Places((scores > own).sum(1), (scores == own).sum(1) - 1)


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """Mean over relevant rows of the share of relevant ones among all down to it, `(Q,)`; NaN where none is relevant.

    Without ties it is scikit-learn's `average_precision_score`.  That takes a tie's rows in together; this is the
    expectation over their orders (McSherry & Najork 2008): in a tie of n rows, r of them relevant, behind N rows, R of
    them relevant, place i adds  r/n (R + 1 + (i - 1)(r - 1)/(n - 1)) / (N + i).

    Args:
        scores: `(Q, G)`.
        relevant: bool `(Q, G)`.
    """
    step = max(1, BLOCK // max(1, scores.shape[1]))
    pairs = zip(scores.split(step), relevant.split(step), strict=True)
    return torch.cat([_average_precision(s, r) for s, r in pairs])


def _average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    sorted_, order = scores.sort(1, descending=True)
    hit = relevant.gather(1, order).double()
    place = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    first = torch.ones_like(relevant)
    first[:, 1:] = sorted_[:, 1:] != sorted_[:, :-1]
    start = torch.where(first, place, 0).cummax(1).values
    tie = first.long().cumsum(1) - 1
    n = torch.zeros_like(hit).scatter_add(1, tie, torch.ones_like(hit)).gather(1, tie)
    r = torch.zeros_like(hit).scatter_add(1, tie, hit).gather(1, tie)
    before = (hit.cumsum(1) - hit).gather(1, start)
    here = before + 1 + (place - start) * (r - 1) / (n - 1).clamp(min=1)
    return (r / n * here / (place + 1)).sum(1) / hit.sum(1)


def mean(values: Tensor) -> Tensor:
    """Over the last dimension."""
    return values.mean(-1)


def median(values: Tensor) -> Tensor:
    """Over the last dimension; of an even number the middle of the two."""
    return values.quantile(0.5, -1)


def bootstrapped(
    values: Tensor,
    statistic: Statistic,
    chance: float,
    level: float = 0.95,
    seed: int = 0,
    groups: Tensor | None = None,
) -> Measure:
    """A statistic of one value per query `(Q,)` with its percentile bootstrap interval, queries drawn anew.

    It says how far the measure depends on which queries there are; the gallery, the model and its draws are held fixed.
    Queries of one group, numbered by `groups` `(Q,)`, are drawn together.
    """
    source = torch.Generator().manual_seed(seed)
    values = values.double().cpu()
    found = []
    if groups is None:
        for _ in range(0, RESAMPLES, AT_ONCE):
            found.append(statistic(values[torch.randint(len(values), (AT_ONCE, len(values)), generator=source)]))
    else:
        for rows in _by_group(groups.cpu(), source):
            found.append(statistic(values[rows]).reshape(1))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.cat(found).quantile(tails).tolist()
    return Measure(statistic(values).item(), low, high, chance)


def _by_group(groups: Tensor, source: torch.Generator) -> Iterator[Tensor]:
    """Rows of as many groups as there are, drawn with replacement."""
    sizes = groups.unique(return_counts=True)[1]
    order, starts = groups.argsort(stable=True), sizes.cumsum(0) - sizes
    for _ in range(RESAMPLES):
        drawn = torch.randint(len(sizes), (len(sizes),), generator=source)
        counts = sizes[drawn]
        within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        yield order[starts[drawn].repeat_interleave(counts) + within]
