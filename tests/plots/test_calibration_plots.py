"""Curves are the ranks' ECDFs, bands hold what they say, and dots stand at the bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch import Tensor

from pyro_mm.evaluation.calibration import Calibration, Divergence, sbc
from pyro_mm.evaluation.ranks import POINTS, band
from pyro_mm.plots.calibration import BANDS, LABELLED, bounds_by_subset, calibration_ecdf
from pyro_mm.plots.style import GREY, INK, PALETTE
from tests.helpers.estimates import Stretched, truth

GRID = (torch.arange(300) + 0.5).double() / 300
LG = truth()


def known() -> Calibration:
    """`good` is uniform; the others are not, the worse the higher their power."""
    bad = {f"bad {p}": GRID**p for p in (2, 3, 4, 5, 6)}
    return Calibration({("a",): {"good": GRID, "flat": GRID.flip(0)}, ("a", "b"): {"good": GRID} | bad}, 99, 300)


def lines(ax: Any) -> dict[str, Any]:
    return {line.get_label().lstrip("_"): line for line in ax.lines}


def test_every_curve_is_the_difference_of_its_ecdf_from_the_uniform_one() -> None:
    _, axes = calibration_ecdf(known())
    assert list(axes) == [("a",), ("a", "b")]
    for group, of in known().ranks.items():
        found = lines(axes[group])
        assert set(found) == set(of)
        for name, u in of.items():
            x, y = found[name].get_data()
            assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 0)
            exact = [(u <= t).double().mean().item() - t for t in x[1:-1]]
            np.testing.assert_allclose(y[1:-1], exact, atol=1e-12)


def test_bands_are_those_of_one_curve_and_of_all_together() -> None:
    calibration = known()
    _, axes = calibration_ecdf(calibration, level=0.02)
    for ax in axes.values():
        for shade, level, patch in zip(BANDS, (0.02 / calibration.tests, 0.05), ax.collections, strict=True):
            assert to_hex(patch.get_facecolor()[0]) == shade.lower()
            low, high = (edge - POINTS for edge in band(300, level))
            corners = patch.get_paths()[0].vertices
            for t, y in [*zip(POINTS, low, strict=True), *zip(POINTS, high, strict=True)]:
                assert np.abs(corners - [t, y]).sum(1).min() < 1e-12


def test_the_light_band_holds_every_curve_of_an_exact_guide_and_what_leaves_it_is_flagged() -> None:
    for q in (LG.exact_guide(), Stretched(LG, 0.8)):
        calibration = sbc(LG.model(), q, LG.sample(250, seed=1), 40, subsets=["a", "c"], seed=0)
        _, axes = calibration_ecdf(calibration, level=0.05)
        low, high = (edge - POINTS for edge in band(250, 0.05 / calibration.tests))
        for group, ax in axes.items():
            left = set()
            for name, line in lines(ax).items():
                y = line.get_ydata()[1:-1]
                left |= {name} if ((y < low - 1e-9) | (y > high + 1e-9)).any() else set()
            assert left == set(calibration.flagged(0.05)[group])
            assert bool(left) == isinstance(q, Stretched)


def test_what_fails_is_coloured_and_named_worst_first() -> None:
    figure, axes = calibration_ecdf(known())
    passing, failing = axes[("a",)], axes[("a", "b")]
    assert {to_hex(line.get_color()) for line in passing.lines} == {GREY.lower()}
    assert passing.get_legend() is None and passing.get_title(loc="right") == "adjusted p 1"
    assert failing.get_title(loc="right") == "5 of 6 fail" and failing.get_title(loc="left") == "given a, b"
    names = [text.get_text() for text in failing.get_legend().get_texts()]
    assert names == known().flagged()[("a", "b")][:LABELLED] == [f"bad {p}" for p in (6, 5, 4, 3)]
    colours = {name: to_hex(line.get_color()) for name, line in lines(failing).items()}
    assert len({colours[q] for q in names}) == LABELLED and {colours[q] for q in names} <= {
        c.lower() for c in PALETTE[:-1]
    }
    assert (colours["good"], colours["bad 2"]) == (GREY.lower(), INK)
    for shown, name in zip(failing.get_legend().get_lines(), names, strict=True):
        assert to_hex(shown.get_color()) == colours[name]
    assert failing.lines[-1].get_label() == "bad 6"  # the worst is on top
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words[1] == "all 8 curves, with probability 0.99" and words[-1] == "fails, too"


def test_a_quantity_keeps_its_colour_and_never_shares_it_in_a_panel() -> None:
    worse = [GRID**p for p in (9, 8, 7, 6)]
    groups = [("q0", "q1", "q2", "q3"), ("q4", "q5", "q6", "q7"), ("q7", "q8", "q9", "q0"), ("q3", "q8", "q5", "q6")]
    ranks: dict[tuple[str, ...], dict[str, Tensor]] = {
        (f"m{i}",): dict(zip(names, worse, strict=True)) for i, names in enumerate(groups)
    }
    _, axes = calibration_ecdf(Calibration(ranks, 99, 300))
    seen: dict[str, set[str]] = {}
    for ax in axes.values():
        colours = {name: to_hex(line.get_color()) for name, line in lines(ax).items()}
        assert len(set(colours.values())) == 4
        for name, colour in colours.items():
            seen.setdefault(name, set()).add(colour)
    assert all(len(found) == 1 for found in seen.values())


def test_a_panel_and_quantities_can_be_chosen(tmp_path: Path) -> None:
    _, axes = calibration_ecdf(known(), ["b", "a"], ["bad 3", "good"], path=tmp_path / "one.png")
    assert list(axes) == [("a", "b")] and set(lines(axes[("a", "b")])) == {"bad 3", "good"}
    assert axes[("a", "b")].get_title(loc="right") == "1 of 2 fail"
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"
    assert list(calibration_ecdf(known(), "a")[1]) == [("a",)]
    assert list(calibration_ecdf(known(), quantities=["bad 3"])[1]) == [("a", "b")]  # a has none


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"no subset \['c'\]; there are \[\['a'\], \['a', 'b'\]\]"):
        calibration_ecdf(known(), "c")
    with pytest.raises(ValueError, match=r"no quantity \['z'\]; there are \['good', 'flat', 'bad 2'"):
        calibration_ecdf(known(), quantities=["good", "z"])


def bounds(shift: float, width: float) -> Divergence:
    noise = torch.linspace(-1, 1, 50).double()
    groups = {("a",): -20.0, ("a", "b"): -45.0}
    elbo = {s: level + shift + noise for s, level in groups.items()}
    return Divergence(elbo, {s: v + width * (1 + 0.1 * noise) for s, v in elbo.items()}, 10)


def dots(ax: Any) -> list[tuple[float, float, bool]]:
    """x, y and whether it is filled, of every end of a line."""
    found = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    return [(*(v[0] for v in line.get_data()), line.get_markerfacecolor() != "white") for line in found]


def test_dots_stand_at_the_bounds_above_the_best_lower_one() -> None:
    _, axes = bounds_by_subset({"good": bounds(0.0, 1.0), "poor": bounds(-2.0, 5.0)})
    ends = dots(axes["bounds"])
    want = [(0.0, True), (1.0, False), (-2.0, True), (3.0, False)]
    assert [(pytest.approx(x, abs=1e-9), fill) for x, _, fill in ends] == want + want
    rows = [round(y) for _, y, _ in ends]
    assert rows == [0] * 4 + [1] * 4 and [t.get_text() for t in axes["bounds"].get_yticklabels()] == ["a", "a, b"]
    words = [t.get_text() for t in axes["bounds"].texts]
    assert words == ["1", "5", "-20.00", "1", "5", "-45.00", "best ELBO"]


def test_error_bars_are_paired_over_data() -> None:
    """ELBOs vary by .59 from datum to datum, the gap by .059 only."""
    d = bounds(0.0, 1.0)
    _, axes = bounds_by_subset(d)
    bars = [c for c in axes["bounds"].collections if hasattr(c, "get_segments") and len(c.get_segments()) == 1]
    widths = [np.ptp(c.get_segments()[0][:, 0]) / 2 for c in bars]
    gap = d.gap("a")[1]
    assert gap == pytest.approx(0.1 * torch.linspace(-1, 1, 50).std().item() / 50**0.5)
    assert widths == pytest.approx([0.0, gap, 0.0, gap], abs=1e-12)
    assert axes["bounds"].get_xlabel() == "nats above the ELBO"


def test_guides_on_other_data_are_refused(tmp_path: Path) -> None:
    few = Divergence({("a",): torch.zeros(3)}, {("a",): torch.ones(3)}, 1)
    with pytest.raises(ValueError, match=r"'few' has data .* use the same batch and subsets"):
        bounds_by_subset({"all": bounds(0.0, 1.0), "few": few})
    with pytest.raises(ValueError, match="no divergences"):
        bounds_by_subset({})
    one = Divergence({("a",): torch.zeros(1)}, {("a",): torch.ones(1)}, 1)  # has no error bars
    _, axes = bounds_by_subset(one, path=tmp_path / "bounds.pdf")
    assert dots(axes["bounds"]) == [(0.0, 0.0, True), (1.0, 0.0, False)]
    assert (tmp_path / "bounds.pdf").read_bytes()[:4] == b"%PDF"
