"""An interpolation goes straight from one row's posterior means to another's: against means worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.plots import interpolation
from tests.plots.test_traversals import LINK, NAMES, OWN, PAIR, SHIFT, A, Above, Apart, B, Seen

STEPS = 5


@pytest.fixture
def rows() -> Batch:
    noise = torch.Generator().manual_seed(3)
    return Batch({"a": torch.randn(4, 3, generator=noise), "b": torch.randn(4, 4, generator=noise)})


def line(axes: dict[Any, Any], pair: tuple[int, int], m: str) -> np.ndarray:
    """What the cells of one line show, `(steps, *event)`."""
    return np.stack([axes[pair, m, i].lines[0].get_ydata() for i in range(STEPS)])


def between(first: Tensor, second: Tensor) -> Tensor:
    share = torch.arange(STEPS)[:, None] / (STEPS - 1)
    return first + share * (second - first)


def seen(rows: Batch, row: int, *names: str) -> Tensor:
    """The posterior mean of z: the sum of the first two elements of what is seen."""
    return torch.stack([rows.x[m][row, :2] for m in names]).sum(0)


def test_all_latents_go_from_one_rows_means_to_the_others(rows: Batch) -> None:
    pairs = [(0, 1), (3, 2)]
    _, axes = interpolation(Apart(), Seen("w_a", "w_b"), PAIR, rows, between=pairs, steps=STEPS)
    assert set(axes) == {(pair, m, i) for pair in pairs for m in NAMES for i in range(STEPS)}
    for first, second in pairs:
        z = between(seen(rows, first, *NAMES), seen(rows, second, *NAMES))
        for m in NAMES:
            w = between(rows.x[m][first, :2], rows.x[m][second, :2])
            assert np.allclose(line(axes, (first, second), m), z @ A[m].T + w @ B[m].T, atol=1e-5)


def test_what_is_below_the_site_follows_it(rows: Batch) -> None:
    guide = Seen("z_a", "z_b", "z_a_2", "z_b_2")
    _, axes = interpolation(Above(), guide, PAIR, rows, between=[(1, 2)], steps=STEPS)
    z = between(seen(rows, 1, *NAMES), seen(rows, 2, *NAMES))
    for m in NAMES:
        assert np.allclose(line(axes, (1, 2), m), 2 * (z @ LINK[m].T + SHIFT[m]) @ A[m].T, atol=1e-4)


def test_only_what_is_given_is_looked_at(rows: Batch) -> None:
    """The latent of a hidden modality is at its prior's mean, in every step."""
    _, axes = interpolation(Apart(), Seen("w_a", "w_b"), PAIR, rows, between=[(0, 1)], given=["b"], steps=STEPS)
    z = between(seen(rows, 0, "b"), seen(rows, 1, "b"))
    assert np.allclose(line(axes, (0, 1), "a"), z @ A["a"].T + torch.tensor(OWN[0]) @ B["a"].T, atol=1e-5)


def test_a_latent_that_one_row_lacks_is_the_models_in_both(rows: Batch) -> None:
    part = Batch(rows.x, {"b": torch.tensor([False, True, True, True])})
    _, axes = interpolation(Apart(), Seen("w_a", "w_b"), PAIR, part, between=[(0, 1)], steps=STEPS)
    z = between(seen(rows, 0, "a"), seen(rows, 1, *NAMES))
    assert np.allclose(line(axes, (0, 1), "b"), z @ A["b"].T + torch.tensor(OWN[0]) @ B["b"].T, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"steps": 1}, {"steps": 13}, {"between": []}])
def test_impossible_lines_are_refused(rows: Batch, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="2 to 12 steps and one pair or more"):
        interpolation(Apart(), Seen(), PAIR, rows, **wrong)


def test_an_unknown_row_or_site_is_named(rows: Batch) -> None:
    with pytest.raises(ValueError, match="there is no row 9"):
        interpolation(Apart(), Seen(), PAIR, rows, between=[(0, 9)])
    with pytest.raises(ValueError, match="no latent 'y'"):
        interpolation(Apart(), Seen(), PAIR, rows, site="y")
