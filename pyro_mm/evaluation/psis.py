"""Pareto smoothing and k-hat of importance weights, many data at once (Vehtari et al. 2024; Zhang & Stephens 2009)."""

from __future__ import annotations

from math import ceil, floor, log, log10, sqrt

import torch
from torch import Tensor, finfo, float64

__all__ = ["khat", "psis", "psis_estimate", "tail_size", "threshold"]

SAME = 1e-10  # weights that differ by less, relative to the largest, differ by rounding


def tail_size(k: int) -> int:
    """How many of K weights form the tail: ceil(min(0.2 K, 3 sqrt K))."""
    return ceil(min(0.2 * k, 3 * sqrt(k)))


def threshold(k: int) -> float:
    """Above min(1 - 1/log10 K, 0.7) an estimate and its standard error are unreliable (Vehtari et al. 2024)."""
    return min(1 - 1 / log10(k), 0.7) if k > 10 else 0.0


def psis(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Pareto-smoothed normalised log-weights `(K, N)`, and k-hat `(N,)`, from log-weights `(K, N)`.

    The M = `tail_size(K)` largest weights of a datum become the quantiles (i - 1/2)/M, i = 1..M, of the generalised
    Pareto distribution fitted to them, cut at the largest raw weight (Vehtari et al. 2024).  Weights are
    left as they are where nothing could be fitted (k-hat not finite).  Equal to ArviZ's, but that order among equal
    weights may differ, and that -inf, not NaN, is what all have where every weight is 0.
    """
    smooth, shape = _smoothed(log_w)
    total = torch.logsumexp(smooth, 0)
    return torch.where(total == -torch.inf, -torch.inf, smooth - total).to(log_w.dtype), shape


def psis_estimate(log_w: Tensor) -> Tensor:
    """log of the mean Pareto-smoothed weight, `(N,)`, from log-weights `(K, N)`.

    It is no bound: smoothing takes noise from the mean of heavy-tailed weights and makes it biased, either way.
    """
    return (torch.logsumexp(_smoothed(log_w)[0], 0) - log(len(log_w))).to(log_w.dtype)


def khat(largest: Tensor) -> Tensor:
    """Shape of the generalised Pareto distribution fitted to the tail, `(N,)`.

    Args:
        largest: the M + 1 largest log-weights of every datum, `(M + 1, N)`, in any order.

    The tail of a datum are the weights above the smallest of these and above the smallest number that a float64 can
    hold.  Equal to ArviZ's, but for a tail whose weights are all equal: ArviZ says inf, here it is -inf, since a flat
    top is no heavy tail.  inf where fewer than 5 weights are in the tail, and where a weight is NaN.
    """
    return _tail(largest.double().sort(0).values)[0].to(largest.dtype)


def _smoothed(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Smoothed log-weights `(K, N)` in float64, not normalised, and k-hat `(N,)`."""
    out = log_w.double()
    found = out.topk(min(tail_size(len(out)) + 1, len(out)), 0)
    top, index = found.values.flip(0), found.indices.flip(0)
    shape, scale, cut, size = _tail(top)
    for m in size[torch.isfinite(shape)].unique().tolist():
        rows = (torch.isfinite(shape) & (size == m)).nonzero().flatten()
        step = (torch.arange(m, dtype=out.dtype, device=out.device).unsqueeze(-1) + 0.5) / m
        tail = (_quantile(step, shape[rows], scale[rows]) + cut[rows]).log().clamp(max=0.0)
        out = out.index_put((index[-m:, rows], rows.expand(m, -1)), tail + top[-1, rows])
    return out, shape.to(log_w.dtype)


def _tail(top: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of ascending log-weights `(M + 1, N)`, all `(N,)`: k-hat, the scale, where the tail begins, how many are in it.

    Scale and cut are of weights relative to the largest.
    """
    weight = (top - top[-1]).clamp(min=log(finfo(float64).tiny)).exp()
    t = weight[1:] - weight[:1]
    size, flat = (t > 0).sum(0), weight[-1] - weight[0] <= SAME
    k, scale = torch.full_like(weight[0], torch.inf), torch.ones_like(weight[0])
    for m in size.unique().tolist():  # one, but for ties and underflow
        if m >= 5:
            rows = (size == m) & ~flat
            k[rows], scale[rows] = _fit(t[-m:, rows], m)
    enough = len(top) > 5
    k = torch.where(flat & enough, -torch.inf, torch.where(torch.isfinite(k), k, torch.inf))
    return k, scale, weight[0], size


def _fit(t: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Shape and scale for ascending exceedances `(M, N)`, empirical Bayes.

    The shape has the weak prior of 10 pseudo-observations at 0.5.
    """
    j = 30 + floor(sqrt(m))
    grid = torch.arange(1, j + 1, dtype=t.dtype, device=t.device).unsqueeze(-1)
    quarter = t[floor(m / 4 + 0.5) - 1]
    b = 1 / t[-1] + (1 - (j / (grid - 0.5)).sqrt()) / (3 * quarter)
    k = torch.stack([torch.log1p(-row * t).mean(0) for row in b])  # a loop: `(J, M, N)` at once would not fit
    profile = m * ((-b / k).log() - k - 1)
    b = (profile.softmax(0) * b).sum(0)
    shape = torch.log1p(-b * t).mean(0)
    return (m * shape + 5) / (m + 10), -shape / b


def _quantile(p: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
    """scale ((1 - p)^-k - 1) / k, the generalised Pareto distribution's quantiles; exponential at k = 0."""
    e = -torch.log1p(-p)
    flat = shape.abs() < finfo(float64).eps
    k = torch.where(flat, 1.0, shape)
    return scale * torch.where(flat, e, torch.expm1(k * e) / k)
