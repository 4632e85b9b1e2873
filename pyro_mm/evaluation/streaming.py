"""Per-datum sums over importance weights that arrive in chunks: O(N sqrt K) memory, the same for any chunking."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from pyro_mm.evaluation.psis import khat, tail_size

__all__ = ["RatioSums", "WeightSums"]


class WeightSums:
    """log sum w, log sum w^2 and, for `khat`, the largest log-weights of every datum, for K draws in all."""

    def __init__(self, k: int, tails: bool = True) -> None:
        self.k, self.tails = k, tails
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self.top: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Take in log-weights `(k, N)`."""
        log_w = log_w.double()
        self.first = _log_add(self.first, torch.logsumexp(log_w, 0))
        self.second = _log_add(self.second, torch.logsumexp(2 * log_w, 0))
        if self.tails:
            seen = log_w if self.top is None else torch.cat([self.top, log_w])
            self.top = seen.topk(min(tail_size(self.k) + 1, len(seen)), 0).values

    @property
    def estimate(self) -> Tensor:
        """log of the mean weight."""
        assert self.first is not None, "no weights were added"
        return self.first - log(self.k)

    @property
    def concentration(self) -> Tensor:
        """Sum of squared normalised weights, 1 / ESS; infinite where every weight is 0."""
        assert self.first is not None and self.second is not None, "no weights were added"
        return torch.where(self.first == -torch.inf, torch.inf, (self.second - 2 * self.first).exp())

    @property
    def variance(self) -> Tensor:
        """Of `estimate`, by the delta method."""
        return (self.concentration - 1 / self.k).clamp(min=0.0)

    @property
    def khat(self) -> Tensor:
        """Pareto shape of the tail."""
        assert self.top is not None, "no weights were added, or no tails were kept"
        return khat(self.top)


class RatioSums:
    """For log (sum u / sum w) on the same draws: both sums and their cross term."""

    def __init__(self, k: int, tails: bool = True) -> None:
        self.numerator, self.denominator = WeightSums(k, tails), WeightSums(k, tails)
        self.cross: Tensor | None = None

    def add(self, log_u: Tensor, log_w: Tensor) -> None:
        """Take in both log-weights `(k, N)`."""
        self.numerator.add(log_u)
        self.denominator.add(log_w)
        self.cross = _log_add(self.cross, torch.logsumexp(log_u.double() + log_w.double(), 0))

    @property
    def estimate(self) -> Tensor:
        """log (mean u / mean w)."""
        return self.numerator.estimate - self.denominator.estimate

    @property
    def variance(self) -> Tensor:
        """sum_k (u_k - w_k)^2 of the normalised weights."""
        u, w = self.numerator, self.denominator
        assert u.first is not None and w.first is not None and self.cross is not None, "no weights were added"
        cross = (self.cross - u.first - w.first).exp()
        return (u.concentration + w.concentration - 2 * cross).clamp(min=0.0)


def _log_add(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else torch.logaddexp(a, b)
