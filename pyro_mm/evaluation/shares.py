"""Shares of rows with intervals that know which rows show the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.collapse import finite

__all__ = ["Share", "distinct", "share_of", "wilson"]

Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class Share:
    """A share of `n` rows in `groups` groups, its standard error, and the ends of its 95 % interval."""

    value: float
    se: float
    low: float
    high: float
    n: int
    groups: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; None for what is not a number."""
        return {k: finite(v) for k, v in vars(self).items()}


def share_of(right: Tensor, groups: Tensor | None = None) -> Share:
    """The share of True in `(N,)`, where rows of one group, numbered by `groups` `(N,)`, may all be right together.

    Wilson's interval of as many independent rows as would have the variance between groups,
    sum_g (sum_{i in g} (y_i - p))^2 / N^2 times G / (G - 1); of G rows where all are right, or none.
    """
    n, p = len(right), right.double().mean().item()
    count = n if groups is None else int(groups.max()) + 1 if n else 0
    own = float(n)
    if groups is not None and 1 < count < n:
        sums = torch.zeros(count, dtype=torch.float64).index_add_(0, groups.cpu(), right.double().cpu() - p)
        variance = sums.square().sum().item() / n**2 * count / (count - 1)
        own = min(float(n), p * (1 - p) / variance) if variance else float(count)
    low, high = wilson(p, own)
    return Share(p, sqrt(p * (1 - p) / own) if own else float("nan"), low, high, n, count)


def wilson(p: float, n: float) -> tuple[float, float]:
    """The ends of Wilson's 95 % interval of a share p of n rows: never of length 0."""
    if not n:
        return 0.0, 1.0
    middle, half = p + Z**2 / (2 * n), Z * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return (middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)


def distinct(batch: Batch, names: Sequence[str]) -> Tensor | None:
    """Numbers of groups of rows `(N,)` that share the modality, of these, with the fewest different values.

    One recording that stands in several rows is one piece of evidence.  Labels do not count: they are all there are.
    None where nothing is shared, or nothing but labels is given.
    """
    found = [_numbered(batch.x[m]) for m in names if batch.x[m].is_floating_point() and batch.x[m].dim() > 1]
    fewest = min(found, key=lambda groups: int(groups.max()), default=None) if len(batch) else None
    return None if fewest is None or int(fewest.max()) + 1 == len(batch) else fewest


def _numbered(x: Tensor) -> Tensor:
    numbers: dict[bytes, int] = {}
    rows = x.detach().cpu().contiguous().flatten(1).float().numpy()
    return torch.tensor([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])
