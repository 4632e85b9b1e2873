"""Pareto k-hat of importance weights, for many data at once (Vehtari et al. 2024; Zhang & Stephens 2009)."""

from __future__ import annotations

from math import ceil, floor, log10, sqrt

import torch
from torch import Tensor

__all__ = ["khat", "tail_size", "threshold"]


def tail_size(k: int) -> int:
    """How many of K weights form the tail: ceil(min(0.2 K, 3 sqrt K))."""
    return ceil(min(0.2 * k, 3 * sqrt(k)))


def threshold(k: int) -> float:
    """Above min(1 - 1/log10 K, 0.7) an estimate and its standard error are unreliable (Vehtari et al. 2024)."""
    return min(1 - 1 / log10(k), 0.7) if k > 10 else 0.0


def khat(largest: Tensor) -> Tensor:
    """Shape of the generalised Pareto distribution fitted to the tail, `(N,)`.

    Args:
        largest: the M + 1 largest log-weights of every datum, `(M + 1, N)`, in any order.

    Infinite where M < 5 or the tail is constant, as in ArviZ.
    """
    m = len(largest) - 1
    if m < 5:
        return largest.new_full(largest.shape[1:], torch.inf)
    top = largest.double().sort(0).values
    top = (top - top[-1]).exp()
    t = top[1:] - top[:1]
    usable = (t[-1] > 0) & torch.isfinite(t[-1])
    t = torch.where(usable, t, torch.linspace(0.1, 1, m, dtype=t.dtype, device=t.device).unsqueeze(-1))
    k = _fit(t, m)
    return torch.where(usable, k, torch.inf).to(largest.dtype)


def _fit(t: Tensor, m: int) -> Tensor:
    """Empirical Bayes fit to ascending exceedances `(M, N)`, with the weak prior of 10 pseudo-observations at 0.5."""
    j = 30 + floor(sqrt(m))
    grid = torch.arange(1, j + 1, dtype=t.dtype, device=t.device).unsqueeze(-1)
    quarter = t[floor(m / 4 + 0.5) - 1]
    b = 1 / t[-1] + (1 - (j / (grid - 0.5)).sqrt()) / (3 * quarter)
    k = torch.log1p(-b.unsqueeze(1) * t).mean(1)
    profile = m * ((-b / k).log() - k - 1)
    b = (profile.softmax(0) * b).sum(0)
    shape = torch.log1p(-b * t).mean(0)
    return (m * shape + 5) / (m + 10)
