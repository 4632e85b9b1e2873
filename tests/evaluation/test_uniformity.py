"""The test of uniform ranks: p-values and bands against binomial counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_mm.evaluation.ranks import POINTS, band, uniformity


@pytest.mark.parametrize("n", [1, 7, 60])
def test_p_values_are_those_of_the_most_extreme_binomial_count(n: int) -> None:
    """P(p <= a) <= a, with equality up to the steps of a discrete statistic."""
    torch.manual_seed(0)
    p = np.array([uniformity(torch.rand(n)) for _ in range(600)])
    for level in (0.02, 0.1, 0.5):
        share = (p <= level).mean()
        assert share <= level + 4 * (level * (1 - level) / 600) ** 0.5
        assert n < 60 or share >= 0.8 * level - 4 * (level * (1 - level) / 600) ** 0.5


def test_small_p_values_keep_their_digits() -> None:
    """All of n values below .01, or all above .99: nothing is more extreme, so p = 2 * .01^n."""
    for n in (1, 2, 5, 40):
        assert uniformity(torch.full((n,), 0.004)) == pytest.approx(2 * 0.01**n, rel=1e-9)
    assert uniformity(torch.full((1000,), torch.nan)) == 0.0


@pytest.mark.parametrize("level", [0.3, 0.01])
def test_a_curve_leaves_the_band_exactly_when_its_p_value_is_below_the_level(level: float) -> None:
    torch.manual_seed(1)
    low, high = band(80, level)
    outside = 0
    for _ in range(400):
        u = torch.rand(80) ** 1.15
        ecdf = (u.numpy()[:, None] <= POINTS).mean(0)
        leaves = bool(((ecdf < low - 1e-9) | (ecdf > high + 1e-9)).any())
        assert leaves == (uniformity(u) <= level)
        outside += leaves
    assert 4 < outside < 396
