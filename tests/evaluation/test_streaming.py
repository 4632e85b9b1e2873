"""Sums over weights that arrive in pieces: the same numbers for any pieces, and error bars that mean what they say."""

from __future__ import annotations

from itertools import pairwise
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyro_mm.evaluation.psis import khat, tail_size
from pyro_mm.evaluation.streaming import RatioSums, WeightSums

K, N = 300, 7


def weights(seed: int = 0, k: int = K, n: int = N, spread: float = 2.0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return -500 + spread * torch.randn(k, n, generator=source, dtype=torch.float64)


cuts = st.lists(st.integers(1, K - 1), max_size=6).map(lambda ends: [0, *sorted(set(ends)), K])


@given(cuts)
def test_any_partition_of_the_weights_gives_the_same_numbers(ends: list[int]) -> None:
    log_u, log_w = weights(1), weights()
    whole, parts = RatioSums(K), RatioSums(K)
    whole.add(log_u, log_w)
    for a, b in pairwise(ends):
        parts.add(log_u[a:b], log_w[a:b])
    for name in ("estimate", "variance"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-10)
    for name in ("estimate", "concentration", "variance", "khat"):
        one, other = getattr(parts.denominator, name), getattr(whole.denominator, name)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_sums_equal_the_formulas() -> None:
    log_w = weights()
    sums = WeightSums(K)
    sums.add(log_w)
    w = log_w.softmax(0)
    torch.testing.assert_close(sums.estimate, torch.logsumexp(log_w, 0) - log(K))
    torch.testing.assert_close(sums.concentration, (w**2).sum(0))
    torch.testing.assert_close(sums.variance, (w**2).sum(0) - 1 / K)
    torch.testing.assert_close(sums.khat, khat(log_w.sort(0, descending=True).values[: tail_size(K) + 1]))


def test_ratio_equals_the_formulas() -> None:
    log_u, log_w = weights(1), weights()
    sums = RatioSums(K)
    sums.add(log_u, log_w)
    torch.testing.assert_close(sums.estimate, torch.logsumexp(log_u, 0) - torch.logsumexp(log_w, 0))
    torch.testing.assert_close(sums.variance, ((log_u.softmax(0) - log_w.softmax(0)) ** 2).sum(0))


def test_a_ratio_of_equal_sums_has_no_error() -> None:
    sums = RatioSums(K)
    for part in weights().split(100):
        sums.add(part, part)
    assert torch.equal(sums.estimate, torch.zeros(N, dtype=torch.float64))
    assert torch.equal(sums.variance, torch.zeros(N, dtype=torch.float64))


def test_standard_errors_are_those_of_repeats() -> None:
    """The reported variance, averaged, is the variance over 4000 repeats; also where u and w share their draws."""
    log_w = weights(3, 200, 4000, 0.7)
    log_u = 0.8 * log_w + 0.3 * weights(4, 200, 4000, 0.7)
    sums = RatioSums(200)
    sums.add(log_u, log_w)
    for part in (sums.denominator, sums.numerator, sums):
        assert part.variance.mean().item() == pytest.approx(part.estimate.var().item(), rel=0.1)
    bias = -sums.denominator.variance.mean().item() / 2
    exact = -500 + 0.7**2 / 2
    error = sums.denominator.estimate.mean().item() - exact
    assert error == pytest.approx(bias, rel=0.5), "bias ~ -variance / 2"


def test_single_precision_weights_are_summed_in_double() -> None:
    """A million equal weights: float32 sums would lose them."""
    sums = WeightSums(1_000_000)
    for _ in range(10):
        sums.add(torch.full((100_000, 1), -1234.5))
    assert sums.estimate.item() == pytest.approx(-1234.5, abs=1e-9)
    assert 1 / sums.concentration.item() == pytest.approx(1e6)


def test_weights_of_zero_are_no_evidence_at_all() -> None:
    sums = WeightSums(100)
    log_w = torch.zeros(100, 2).double()
    log_w[:, 0], log_w[1:, 1] = -torch.inf, -torch.inf
    sums.add(log_w)
    assert sums.estimate.tolist() == [-torch.inf, pytest.approx(-log(100))]
    assert (1 / sums.concentration).tolist() == [0.0, 1.0]
    assert torch.isinf(sums.variance[0]) and torch.isinf(sums.khat).all()
