"""Bars are as long as the gaps, and stand one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.colors import to_hex

from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.gaps import Gaps, Nats, Split, gaps
from pyro_mm.plots.gaps import PARTS, gaps_by_subset
from pyro_mm.plots.style import tint
from tests.helpers.estimates import Stretched, truth

NOISE = torch.linspace(-1, 1, 50).double()


def nats(level: float, wobble: float = 1.0) -> Nats:
    return Nats(level + wobble * NOISE, torch.full((50,), 0.1).double())


def split(amortisation: float, family: float, covariance: float = 0.0, elbo: float = -20.0) -> Split:
    best = elbo + amortisation
    zero = torch.zeros(50).double()
    logp = Evidence("log p(a)", best + family + 1.2 * NOISE, zero, zero, zero, zero, 1000, "guide", target_se=0.05)
    return Split(nats(elbo), nats(best, 1.1), nats(best + covariance, 1.1), logp)


def bars(ax: Any) -> list[tuple[float, float, int, str]]:
    """From, to, line and colour of every bar; the hatched ones in white."""
    return [
        (p.get_x(), p.get_x() + p.get_width(), round(p.get_y() + p.get_height() / 2), to_hex(p.get_facecolor()))
        for p in ax.patches
    ]


BLUE, ORANGE = (to_hex(tint(colour, 0.75)) for colour in PARTS.values())


def test_bars_are_stacked_and_the_hatched_part_is_that_of_the_covariance() -> None:
    found = Gaps({("a",): split(1.5, 0.5, 0.3), ("a", "b"): split(2.0, 1.0, 4.0, -41.0)}, 10, 10)
    figure, axes = gaps_by_subset(found)
    (ax,) = axes.values()
    assert list(axes) == ["gaps"]
    want = [(0, 1.5, 0, BLUE), (1.5, 2.0, 0, ORANGE), (1.5, 1.8, 0, "#000000")]
    want += [(0, 2, 1, BLUE), (2, 3, 1, ORANGE), (2, 3, 1, "#000000")]
    assert [(pytest.approx(a, abs=1e-9), pytest.approx(b), row, c) for a, b, row, c in bars(ax)] == want
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "a, b"]
    assert [t.get_text() for t in ax.texts] == ["2.00", "-20.00", "3.00", "-41.00", "ELBO"]
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert words == ["amortisation gap", "family gap", "closed by a full covariance"]


def errors(ax: Any) -> list[tuple[float, float]]:
    """Middle and half width of every error bar."""
    found = [c.get_segments()[0][:, 0] for c in ax.collections if len(c.get_segments()) == 1]
    return [(ends.mean().item(), (ends[1] - ends[0]).item() / 2) for ends in found]


def test_error_bars_stand_at_the_ends_and_are_those_over_data() -> None:
    one = split(1.5, 0.5)
    _, axes = gaps_by_subset(Gaps({("a",): one}, 10, 10))
    paired = 0.1 * NOISE.std().item() / 50**0.5
    assert one.amortisation.mean_se == pytest.approx(paired)
    want = [(1.5, paired), (2.0, paired)]
    assert errors(axes["gaps"]) == [(pytest.approx(x), pytest.approx(e)) for x, e in want]


def test_a_negative_gap_goes_to_the_left_and_a_tick_marks_the_sum() -> None:
    _, axes = gaps_by_subset(Gaps({("a",): split(-0.8, 0.8, 0.8), ("b",): split(1.0, 1.0)}, 10, 10))
    ax = axes["gaps"]
    assert [(pytest.approx(a, abs=1e-9), pytest.approx(b)) for a, b, *_ in bars(ax)[:2]] == [(0, -0.8), (0, 0.8)]
    (tick,) = [line for line in ax.lines if line.get_label() == "_total"]
    assert list(tick.get_xdata()) == pytest.approx([0, 0], abs=1e-9) and ax.texts[0].get_text() == "0.00"


def test_guides_side_by_side(tmp_path: Path) -> None:
    lg = truth()
    data = lg.sample(8, seed=1)
    few: dict[str, Any] = {"subsets": ["a", ("b", "a")], "k": 10, "steps": 6, "target_se": 0.2, "seed": 0}
    found = {f"{f:g}": gaps(lg.model(), Stretched(lg, f), data, **few) for f in (0.5, 0.8)}
    _, axes = gaps_by_subset(found, path=tmp_path / "gaps.png")
    assert list(axes) == ["0.5", "0.8"] and axes["0.5"].get_xlim() == axes["0.8"].get_xlim()
    assert [t.get_text() for t in axes["0.5"].get_yticklabels()] == ["a", "a, b"]
    assert not any(t.get_text() for t in axes["0.8"].get_yticklabels())
    assert axes["0.8"].get_title(loc="left") == "0.8" and (tmp_path / "gaps.png").read_bytes()[:4] == b"\x89PNG"
    for name, ax in axes.items():
        lengths = [b - a for a, b, _, colour in bars(ax) if colour == BLUE]
        assert lengths == pytest.approx([s.amortisation.mean for s in found[name].splits.values()])


def test_other_subsets_and_nothing_are_refused() -> None:
    one, other = Gaps({("a",): split(1.0, 1.0)}, 10, 10), Gaps({("b",): split(1.0, 1.0)}, 10, 10)
    with pytest.raises(ValueError, match=r"'two' has subsets \[\('b',\)\], 'one' \[\('a',\)\]: use the same"):
        gaps_by_subset({"one": one, "two": other})
    with pytest.raises(ValueError, match="no gaps to draw"):
        gaps_by_subset({})


def test_one_datum_has_no_error_bar() -> None:
    whole = split(1.0, 1.0)
    single = Split(
        *(Nats(n.value[:1], n.se[:1]) for n in (whole.guide, whole.best, whole.full)),
        whole.evidence.rows(torch.tensor([0])),
    )
    _, axes = gaps_by_subset(Gaps({("a",): single}, 10, 10))
    assert [half for _, half in errors(axes["gaps"])] == [0, 0]
