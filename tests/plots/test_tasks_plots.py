"""Curves of accuracy and charts of retrieval show the numbers that they are given."""

from __future__ import annotations

import pytest

from pyro_mm import plots


def accuracy(given: list[str], noise: float, value: float) -> dict:
    return {"given": given, "noise": noise, "accuracy": value, "low": value - 0.1, "high": value + 0.05}


def measure(value: float, chance: float) -> dict:
    return {"value": value, "low": value - 0.02, "high": value + 0.03, "chance": chance}


def test_a_curve_for_every_set_of_inputs(tmp_path) -> None:
    found = [accuracy(g, x, 0.9 - x / 2) for g in (["image"], ["image", "sound"]) for x in (0.5, 0.0)]
    figure, axes = plots.accuracy_curves(found, chance=0.1, path=tmp_path / "a.png")
    first, second, guess = axes["accuracy"].lines
    assert first.get_xdata().tolist() == [0.0, 0.5] and first.get_ydata().tolist() == pytest.approx([90, 65])
    assert (first.get_label(), second.get_label()) == ("image", "image, sound")
    assert guess.get_ydata()[0] == pytest.approx(10)
    band = axes["accuracy"].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((55, 95))
    assert (tmp_path / "a.png").stat().st_size > 5000
    plots.close(figure)
    with pytest.raises(ValueError, match="no accuracies"):
        plots.accuracy_curves([])


def test_every_direction_has_its_values_intervals_and_chance(tmp_path) -> None:
    pair = {"given": ["image"], "of": ["sound"], "score": "by_cosine", "mean_precision": measure(0.4, 0.1)}
    recall = {"1": measure(0.2, 0.01), "5": measure(0.5, 0.05), "10": measure(0.6, 0.1)}
    found = [{**pair, "recall": recall}, {**pair, "of": ["label"], "recall": {}}]
    figure, axes = plots.retrieval_chart([*found, {**pair, "score": "by_kl", "recall": {}}], path=tmp_path / "r.png")
    points = [line.get_xdata() for line in axes["recall"].lines]
    assert [p[0] for p in points[1::3]] == pytest.approx([20, 50, 60])
    assert [tuple(p) for p in points[::3]] == [
        pytest.approx((18, 23)),
        pytest.approx((48, 53)),
        pytest.approx((58, 63)),
    ]
    assert [p[0] for p in points[2::3]] == pytest.approx([1, 5, 10])
    names = [t.get_text() for t in axes["precision"].get_yticklabels()]
    assert names == ["image → sound", "image → label"] and len(axes["precision"].lines) == 6
    plots.close(figure)
    with pytest.raises(ValueError, match="no retrieval by 'by_kl'"):
        plots.retrieval_chart(found, score="by_kl")
