"""Curves hold the history's numbers; k-hat histograms count every datum."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_mm import plots
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.psis import threshold
from pyro_mm.plots.style import colours

ROWS: list[dict[str, Any]] = [
    {"stage": "training", "epoch": e, "step": 10 * e, "seconds": 0.1, "lr": 1e-3, "gradient_norm": 2.0, "loss": 9.0 - e}
    | {"elbo": e - 9.0, "elbo/image": e - 8.0, "elbo/label": -1.0 / e, "elbo/kl": 0.5 * e}
    | {
        "validation": 9.5 - e,
        "validation/elbo": e - 9.5,
        "validation/elbo/image": e - 8.5,
        "validation/elbo/kl": 0.4 * e,
    }
    for e in range(1, 6)
]
TERMS = ["loss", "elbo", "elbo/image", "elbo/label", "elbo/kl"]


def lines(ax: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}


def test_every_term_is_drawn_as_it_is() -> None:
    _, axes = plots.loss_curves(ROWS)
    assert list(axes) == TERMS
    for term, ax in axes.items():
        check = "validation" if term == "loss" else f"validation/{term}"
        found = lines(ax)
        assert set(found) == {term} | ({check} if check in ROWS[0] else set())
        for column, (x, y) in found.items():
            assert x == [1, 2, 3, 4, 5]
            assert y == [row[column] for row in ROWS]


def test_validation_is_dashed_and_said_so_once() -> None:
    figure, axes = plots.loss_curves(ROWS)
    assert [line.get_linestyle() for line in axes["elbo"].lines] == ["-", "--"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training", "validation"]
    figure, _ = plots.loss_curves(ROWS, ["elbo/label"])
    assert not figure.legends


def test_a_log_file_gives_the_same_curves(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    extra = [*ROWS, {"epoch": 6, "loss": 2.0}]  # a stage without the other terms
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(extra)
    _, from_file = plots.loss_curves(path)
    _, from_rows = plots.loss_curves(extra)
    assert list(from_file) == list(from_rows) == TERMS
    for term in TERMS:
        for column, (x, y) in lines(from_rows[term]).items():
            assert np.array_equal(lines(from_file[term])[column], (x, y), equal_nan=True)
    assert math.isnan(lines(from_file["elbo"])["elbo"][1][-1])


def test_a_modality_has_its_colour_of_the_other_figures() -> None:
    from matplotlib.colors import to_hex

    _, axes = plots.loss_curves(ROWS, modalities=["label", "image"])
    want = colours(["label", "image"])
    for m in want:
        assert to_hex(axes[f"elbo/{m}"].lines[0].get_color()) == want[m].lower()


def test_stages_follow_each_other_and_are_named() -> None:
    rows = [row | {"stage": "first"} for row in ROWS] + [row | {"stage": "second"} for row in ROWS]
    _, axes = plots.loss_curves(rows, ["loss", "elbo"])
    assert lines(axes["elbo"])["elbo"][0] == list(range(1, 11))
    assert [t.get_text() for t in axes["loss"].texts] == ["first", "second"]
    for ax in axes.values():
        assert ax.lines[-1].get_xdata() == [5.5, 5.5]


def test_the_first_epochs_can_be_left_out() -> None:
    _, axes = plots.loss_curves(ROWS, ["loss"], skip=2)
    assert lines(axes["loss"])["loss"] == ([3, 4, 5], [6, 5, 4])


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(ValueError, match=r"no column \['elbo/sound'\]; there are \['loss', 'elbo', 'elbo/image'"):
        plots.loss_curves(ROWS, ["elbo/sound"])
    with pytest.raises(ValueError, match="no epochs"):
        plots.loss_curves([])
    with pytest.raises(ValueError, match="after the first 5"):
        plots.loss_curves(ROWS, skip=5)
    with pytest.raises(ValueError, match="no loss and no terms"):
        plots.loss_curves([{"epoch": 1, "note": "x"}])
    with pytest.raises(FileNotFoundError):
        plots.loss_curves("nowhere.csv")


def evidence(khat: torch.Tensor, k: int = 1000) -> Evidence:
    zero = torch.zeros_like(khat)
    return Evidence("log p(image)", zero, zero, zero, khat, zero, k, "guide")


def test_the_histogram_counts_every_datum() -> None:
    khat = torch.cat([torch.linspace(-0.2, 0.9, 45), torch.tensor([torch.inf, torch.nan, 7.0, -4.0])]).double()
    _, axes = plots.khat_histogram(evidence(khat), bins=20)
    (ax,) = axes.values()
    *bars, beyond = ax.patches
    assert beyond.get_height() == 3  # infinite, NaN, and 7
    edges = [bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()]
    assert -1.1 < edges[0] < -0.9 and 0.9 < edges[-1] < 1.0  # what is far away does not stretch the scale
    inside = khat[torch.isfinite(khat) & (khat <= 3)].clamp(min=-1).numpy()
    assert [bar.get_height() for bar in bars] == np.histogram(inside, edges)[0].tolist()
    assert sum(bar.get_height() for bar in ax.patches) == len(khat)


def test_the_threshold_and_the_share_above_it() -> None:
    found = evidence(torch.tensor([0.1, 0.2, 0.3, 0.9], dtype=torch.float64), k=300)
    _, axes = plots.khat_histogram({"mine": found, "yours": dataclasses.replace(found, k=10_000)})
    assert list(axes) == ["mine", "yours"]
    for name, k in (("mine", 300), ("yours", 10_000)):
        assert list(axes[name].lines[0].get_xdata()) == [threshold(k)] * 2
        assert axes[name].get_title(loc="right") == f"25.0% above {threshold(k):.2f}  (K={k})"
    assert len(axes["mine"].patches) == 30  # and no bar for what is beyond the range


def test_a_list_of_one_quantity_twice_has_two_panels() -> None:
    found = evidence(torch.rand(9))
    _, axes = plots.khat_histogram([found, found])
    assert list(axes) == ["log p(image)", "log p(image) #2"]
    for nothing in ({}, {"none": evidence(torch.zeros(0))}):
        with pytest.raises(ValueError, match="no k-hats"):
            plots.khat_histogram(nothing)
