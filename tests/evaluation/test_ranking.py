"""Measures of a ranking against counting over every order of what is tied."""

from itertools import pairwise, permutations

import pytest
import torch
from sklearn.metrics import average_precision_score

from pyro_mm.evaluation.ranking import average_precision, bootstrapped, mean, median, places

TIED = [
    [3.0, 1.0, 2.0, 0.0, -1.0],
    [1.0, 1.0, 2.0, 1.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 0.0],
    [5.0, 5.0, -torch.inf, -torch.inf, -torch.inf],
]
RELEVANT = [[0, 1, 1, 0, 0], [1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [0, 1, 0, 1, 0]]


def orders(scores):
    """Every order of the columns, larger first, ties in all orders."""
    return [o for o in permutations(range(len(scores))) if all(scores[i] >= scores[j] for i, j in pairwise(o))]


def precision(order, relevant):
    hits = [relevant[j] for j in order]
    return sum(sum(hits[: i + 1]) / (i + 1) for i, h in enumerate(hits) if h) / sum(hits)


@pytest.mark.parametrize("row", range(len(TIED)))
def test_every_measure_is_the_mean_over_all_orders_of_what_is_tied(row):
    every = orders(TIED[row])
    scores = torch.tensor([TIED[row]])
    for target in range(5):
        where = [o.index(target) + 1 for o in every]
        found = places(scores, torch.tensor([target]))
        assert found.rank.item() == pytest.approx(sum(where) / len(where))
        for k in range(1, 7):
            assert found.within(k).item() == pytest.approx(sum(w <= k for w in where) / len(where))
    expected = sum(precision(o, RELEVANT[row]) for o in every) / len(every)
    assert average_precision(scores, torch.tensor([RELEVANT[row]]).bool()).item() == pytest.approx(expected)


def test_without_ties_average_precision_is_scikit_learns():
    noise = torch.Generator().manual_seed(0)
    scores, relevant = torch.randn(20, 30, generator=noise), torch.rand(20, 30, generator=noise) < 0.2
    relevant[:, 0] = True
    expected = [average_precision_score(r, s) for r, s in zip(relevant.numpy(), scores.numpy(), strict=True)]
    torch.testing.assert_close(average_precision(scores, relevant), torch.tensor(expected, dtype=torch.float64))
    assert average_precision(scores[:1], torch.zeros(1, 30).bool()).isnan().all()


def test_a_bootstrap_interval_is_that_of_the_normal_approximation():
    values = torch.linspace(0, 1, 400, dtype=torch.float64)
    found = bootstrapped(values, mean, 0.5)
    half = 1.96 * values.std(correction=0).item() / 400**0.5
    assert (found.value, found.chance) == (pytest.approx(0.5), 0.5)
    assert found.low == pytest.approx(0.5 - half, abs=0.1 * half)
    assert found.high == pytest.approx(0.5 + half, abs=0.1 * half)
    assert bootstrapped(torch.tensor([1.0, 2.0, 9.0, 4.0]), median, 0.0).value == 3.0
    same = bootstrapped(torch.ones(5), mean, 0.0)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
