"""Certificates as intervals: what is drawn is what was found."""

from __future__ import annotations

import pytest
import torch

from pyro_mm import plots
from pyro_mm.batch import Batch
from pyro_mm.evaluation import Certificate

DATA = Batch({"x": torch.zeros(3)})


def made(lower: float, width: list[float], quantity: str = "log p(x)", **settings: object) -> Certificate:
    low = torch.full((3,), lower)
    method = "BDMC" if settings else "sandwich"
    return Certificate(low, low + torch.tensor(width), DATA, 100, method, quantity, settings=settings)


def test_lines_reach_from_the_lower_to_the_upper_end_around_the_narrowest(tmp_path) -> None:
    wide, narrow = made(-10.0, [1.0, 2.0, 3.0]), made(-9.0, [0.1, 0.3, 0.2], temperatures=50)
    figure, axes = plots.certificates({"log p(x)": [wide, narrow]}, path=tmp_path / "c.png")
    ends = [line.get_xdata() for line in axes["log p(x)"].get_lines() if line.get_linewidth() == 3.0]
    middle = -9.0 + 0.1
    assert [list(e) for e in ends] == [
        pytest.approx([-10.0 - middle, -8.0 - middle], abs=1e-6),
        pytest.approx([-0.1, 0.1], abs=1e-6),
    ]
    texts = [t.get_text() for t in axes["log p(x)"].texts]
    assert texts == ["gap 2 +- 0.6", "gap 0.2 +- 0.06"]
    assert [t.get_text() for t in axes["log p(x)"].get_yticklabels()] == ["sandwich, K=100", "BDMC, T=50"]
    assert (tmp_path / "c.png").stat().st_size > 5000
    plots.close(figure)


def test_one_and_lists_are_grouped_by_quantity() -> None:
    _, axes = plots.certificates([made(0.0, [1, 1, 2]), made(0.0, [1, 1, 2], "log p(y)"), made(1.0, [1, 1, 2])])
    assert list(axes) == ["log p(x)", "log p(y)"]
    assert len([line for line in axes["log p(x)"].get_lines() if line.get_linewidth() == 3.0]) == 2
    assert list(plots.certificates(made(0.0, [1, 1, 2]))[1]) == ["log p(x)"]
    with pytest.raises(ValueError, match="no certificates"):
        plots.certificates({})
