"""The batched Pareto fit against ArviZ, which does one datum at a time, and against a known tail."""

from __future__ import annotations

import arviz
import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_mm.evaluation.psis import khat, tail_size, threshold


def noise(k: int, n: int = 200, seed: int = 0) -> Tensor:
    return torch.randn(k, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ours(log_w: Tensor) -> Tensor:
    return khat(log_w.topk(min(tail_size(len(log_w)) + 1, len(log_w)), 0).values)


def theirs(log_w: Tensor) -> np.ndarray:
    return arviz.psislw(log_w.T.numpy().copy())[1]


SHAPES = {
    "narrow proposal": lambda z: 0.375 * z**2,
    "log-normal": lambda z: 3 * z,
    "tied": lambda z: (2 * z).round(),
    "underflowing": lambda z: 2000 * z,  # a prior proposal on images: most weights are 0 beside the largest
    "flat-topped": lambda z: -800 * z.abs(),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [10, 21, 25, 100, 1000, 10_000])
def test_equals_arviz_datum_by_datum(shape: str, k: int) -> None:
    log_w = SHAPES[shape](noise(k))
    same = ours(log_w).where(ours(log_w) > -torch.inf, torch.inf)  # flat tops: see below
    np.testing.assert_allclose(same.numpy(), theirs(log_w), rtol=0, atol=1e-6)
    assert shape == "tied" or bool((ours(log_w) > -torch.inf).all())


def test_no_datum_depends_on_its_neighbours() -> None:
    """Data whose tails have different sizes are fitted in groups."""
    log_w = torch.cat([SHAPES[s](noise(1000, 20)) for s in SHAPES], 1)
    single = torch.cat([ours(log_w[:, i : i + 1]) for i in range(log_w.shape[1])])
    torch.testing.assert_close(ours(log_w), single, rtol=0, atol=1e-12)
    shuffled = log_w.topk(96, 0).values[torch.randperm(96)]
    torch.testing.assert_close(khat(shuffled), ours(log_w), rtol=0, atol=1e-12)


def test_infinite_without_a_tail() -> None:
    assert all(torch.isinf(ours(noise(k))).all() for k in (1, 2, 5, 20)), "at most 4 draws in the tail"
    assert torch.isfinite(ours(noise(21))).all(), "5 draws in the tail"
    rows = torch.zeros(1000, 3, dtype=torch.float64)
    rows[:, 0] = -torch.inf  # every weight is 0
    rows[5, 1] = torch.nan
    rows[5, 2] = 1000.0  # one weight is everything
    assert ours(rows).tolist() == [torch.inf] * 3


def test_a_flat_top_is_no_heavy_tail() -> None:
    """ArviZ says inf of equal weights, and so calls a perfect proposal unreliable."""
    rows = torch.zeros(1000, 3, dtype=torch.float64)
    rows[:, 1] = 1e-14 * noise(1000, 1)[:, 0]  # rounding
    rows[:700, 2] = -3 * noise(700, 1)[:, 0].abs()  # bounded weights, many at the bound
    assert ours(rows).tolist() == [-torch.inf] * 3
    assert theirs(rows)[[0, 2]].tolist() == [np.inf] * 2


def test_threshold_depends_on_the_number_of_draws() -> None:
    figures = {5: 0.0, 10: 0.0, 200: 0.57, 1000: 0.667, 2200: 0.70, 100_000: 0.70}
    for k, figure in figures.items():
        assert threshold(k) == pytest.approx(figure, abs=0.005)


@pytest.mark.parametrize("s", [0.5, 0.7, 0.9])
def test_known_tail(s: float) -> None:
    """Target N(0, 1), proposal N(0, s^2): the weights' tail has shape 1 - s^2."""
    z = s * noise(10_000, 40, seed=1)
    log_w = -0.5 * z**2 + 0.5 * (z / s) ** 2
    assert ours(log_w).mean().item() == pytest.approx(1 - s**2, abs=0.15)
