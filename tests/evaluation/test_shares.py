"""Intervals of shares: Wilson's against scipy's, and rows that show the same thing."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from pyro_mm.batch import Batch
from pyro_mm.evaluation.ranking import bootstrapped, mean, median
from pyro_mm.evaluation.shares import distinct, share_of, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 20), (20, 20), (7, 20), (480, 1000)])
def test_wilsons_interval_is_scipys(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    share = share_of(torch.arange(n) < k)
    assert (share.value, share.n, share.groups) == (k / n, n, n)
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_rows_that_are_all_alike_in_a_group_count_as_one() -> None:
    """Each of 100 recordings stands in 5 rows, right in all or in none: the error is that of 100 rows."""
    groups = torch.arange(100).repeat_interleave(5)
    right = (torch.arange(100) < 30).repeat_interleave(5)
    share, alone = share_of(right, groups), share_of(torch.arange(100) < 30)
    assert share.value == 0.3 and (share.n, share.groups) == (500, 100)
    assert share.se == pytest.approx(alone.se, rel=0.01) and share.low == pytest.approx(alone.low, abs=1e-3)
    perfect = share_of(torch.ones(500, dtype=torch.bool), groups)
    assert (perfect.low, perfect.high) == pytest.approx(wilson(1.0, 100))


def test_the_standard_error_is_the_spread_over_repetitions() -> None:
    """Groups of 1 to 6 rows, whose chances differ: the mean of the variances told is the variance of the shares."""
    noise = torch.Generator().manual_seed(0)
    groups = torch.arange(120).repeat_interleave(torch.arange(120) % 6 + 1)
    found = []
    for _ in range(600):
        chance = torch.rand(120, generator=noise) ** 2
        found.append(share_of(torch.rand(len(groups), generator=noise) < chance[groups], groups))
    spread = torch.tensor([s.value for s in found]).std()
    told = torch.tensor([s.se for s in found]).square().mean().sqrt()
    plain = torch.tensor([(s.value * (1 - s.value) / s.n) ** 0.5 for s in found]).mean()
    assert 0.9 < told / spread < 1.1 and plain / spread < 0.8
    inside = [s.low < 1 / 3 < s.high for s in found]
    assert 0.92 < sum(inside) / len(inside) < 0.98


def test_groups_are_the_distinct_values_of_the_modality_with_the_fewest() -> None:
    sound = torch.randn(3, 4)[torch.tensor([0, 1, 0, 2, 1])]
    batch = Batch({"sound": sound, "image": torch.randn(5, 2, 2), "label": torch.tensor([0, 0, 1, 1, 1])})
    for names in (("sound",), ("image", "sound"), ("label", "sound")):
        groups = distinct(batch, names)
        assert groups is not None and groups.tolist() == [0, 1, 0, 2, 1]
    assert distinct(batch, ("image", "label")) is None and distinct(batch, ("label",)) is None


@pytest.mark.parametrize("statistic", [mean, median])
def test_a_bootstrap_over_groups_is_that_of_its_groups(statistic) -> None:
    """Copies add nothing: the interval of 60 values that stand 4 times each is that of the 60."""
    values = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = bootstrapped(values, statistic, 0.0)
    groups = torch.arange(60).repeat(4)
    together = bootstrapped(values.repeat(4), statistic, 0.0, groups=groups)
    assert together.value == pytest.approx(alone.value)
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(1.0, abs=0.15)
    careless = bootstrapped(values.repeat(4), statistic, 0.0)
    assert (careless.high - careless.low) / (alone.high - alone.low) < 0.7
