"""Pareto k-hat of importance weights, for many data at once (Vehtari et al. 2024; Zhang & Stephens 2009)."""

from __future__ import annotations

from math import ceil, floor, log, log10, sqrt

import torch
from torch import Tensor, finfo, float64

__all__ = ["khat", "tail_size", "threshold"]

SAME = 1e-10  # weights that differ by less, relative to the largest, differ by rounding


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

    The tail of a datum are the weights above the smallest of these and above the smallest number that a float64 can
    hold.  Equal to ArviZ's, but for a tail whose weights are all equal: ArviZ says inf, here it is -inf, since a flat
    top is no heavy tail.  inf where fewer than 5 weights are in the tail, and where a weight is NaN.
    """
    if len(largest) < 6:
        return largest.new_full(largest.shape[1:], torch.inf)
    top = largest.double().sort(0).values
    top = (top - top[-1]).clamp(min=log(finfo(float64).tiny)).exp()
    t = top[1:] - top[:1]
    size, flat = (t > 0).sum(0), t[-1] <= SAME
    k = torch.full_like(t[0], torch.inf)
    for m in size.unique().tolist():  # one, but for ties and underflow
        if m >= 5:
            rows = (size == m) & ~flat
            k[rows] = _fit(t[-m:, rows], m)
    return torch.where(flat, -torch.inf, torch.where(torch.isfinite(k), k, torch.inf)).to(largest.dtype)


def _fit(t: Tensor, m: int) -> Tensor:
    """Empirical Bayes fit to ascending exceedances `(M, N)`, with the weak prior of 10 pseudo-observations at 0.5."""
    j = 30 + floor(sqrt(m))
    grid = torch.arange(1, j + 1, dtype=t.dtype, device=t.device).unsqueeze(-1)
    quarter = t[floor(m / 4 + 0.5) - 1]
    b = 1 / t[-1] + (1 - (j / (grid - 0.5)).sqrt()) / (3 * quarter)
    k = torch.stack([torch.log1p(-row * t).mean(0) for row in b])  # a loop: `(J, M, N)` at once would not fit
    profile = m * ((-b / k).log() - k - 1)
    b = (profile.softmax(0) * b).sum(0)
    shape = torch.log1p(-b * t).mean(0)
    return (m * shape + 5) / (m + 10)
