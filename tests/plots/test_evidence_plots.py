"""Figures of estimates and reports hold the numbers of what they are drawn from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch import Tensor

from pyro_mm.evaluation.curves import KCurve, k_curve
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.psis import threshold
from pyro_mm.evaluation.report import report
from pyro_mm.plots import evidence as figures
from pyro_mm.plots.style import GREY, PALE, colours, tint
from tests.helpers.estimates import guide, hidden, truth
from tests.helpers.pairs import GuideOfPrivate, WithPrivate
from tests.helpers.pairs import data as pair_data
from tests.helpers.pairs import pair as pair_of

LG = truth()
TEST = hidden(LG.sample(60, seed=1))


def curve(**changes: Any) -> KCurve:
    made = k_curve(LG.model(), guide("moe", LG), TEST, (1, 10, 100), **{"defensive": 0.0, "seed": 0, **changes})
    return made


def test_the_curve_and_its_error_bars() -> None:
    made = curve()
    _, axes = figures.k_curve(made, LG.log_marginal(TEST))
    (ax,) = axes.values()
    (bars,) = ax.containers
    line, _, (stems,) = bars
    assert line.get_xdata().tolist() == [1, 10, 100]
    assert line.get_ydata().tolist() == made.mean.tolist()
    for segment, mean, se in zip(stems.get_segments(), made.mean.tolist(), made.mean_se_mc.tolist(), strict=True):
        assert segment[:, 1].tolist() == pytest.approx([mean - 2 * se, mean + 2 * se])
    dashed = next(x for x in ax.lines if x.get_label() == "truth")
    assert list(dashed.get_ydata()) == [LG.log_marginal(TEST).mean().item()] * 2
    assert ax.get_xscale() == "log" and [t.get_text() for t in ax.get_xticklabels()] == ["1", "10", "100"]
    assert [t.get_text() for t in ax.texts] == ["ELBO"]
    assert ax.get_title(loc="left") == "log p(a, b, c)" and ax.get_title(loc="right") == "guide, N=60"


def test_a_bound_with_prior_draws_is_not_called_the_elbo() -> None:
    _, axes = figures.k_curve({"plain": curve(), "defensive": curve(defensive=0.2)}, -7.5)
    ax = axes["bound"]
    assert len(ax.texts) == 1 and ax.texts[0].get_color() == colours(["plain", "defensive"])["plain"]
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"plain", "defensive", "truth"}
    assert list(ax.lines[-1].get_ydata()) == [-7.5, -7.5]
    with pytest.raises(ValueError, match="no curve"):
        figures.k_curve({})


def evidence(khat: Tensor, estimate: Tensor | None = None) -> Evidence:
    zero = torch.zeros_like(khat)
    return Evidence("log p(image)", zero if estimate is None else estimate, zero, zero, khat, zero, 1000, "guide")


def test_every_datum_is_where_its_estimate_and_khat_are() -> None:
    khat = torch.tensor([0.1, 0.9, torch.inf, torch.nan, -torch.inf, 0.6, 5.0], dtype=torch.float64)
    found = evidence(khat, torch.arange(7.0).double() - 9)
    for index, x in ((False, [-9, -8, -7, -6, -5, -4, -3]), (True, [0, 1, 2, 3, 4, 5, 6])):
        _, axes = figures.khat_over_data(found, index=index)
        ax = axes["log p(image)"]
        points = {tuple(p): to_hex(c.get_facecolor()[0][:3]) for c in ax.collections for p in c.get_offsets().tolist()}
        y = [0.1, 0.9, 3.0, 3.0, -1.0, 0.6, 3.0]
        fine = [True, False, False, False, True, True, False]
        want = {True: figures.FINE.lower(), False: figures.UNRELIABLE.lower()}
        assert points == {(a, b): want[ok] for a, b, ok in zip(x, y, fine, strict=True)}
        assert list(ax.lines[0].get_ydata()) == [threshold(1000)] * 2
        assert ax.get_title(loc="right") == f"57.1% above {threshold(1000):.2f}  (K=1000)"
        assert ax.get_xlabel() == ("place in the batch" if index else "estimate, nats")


def test_a_panel_for_every_evidence() -> None:
    one = evidence(torch.rand(5).double())
    _, axes = figures.khat_over_data({"mine": one, "yours": dataclasses.replace(one, k=100)})
    assert [ax.lines[0].get_ydata()[0] for ax in axes.values()] == [threshold(1000), threshold(100)]
    assert list(axes) == ["mine", "yours"]
    with pytest.raises(ValueError, match="no k-hats"):
        figures.khat_over_data([])


def heights(ax: Any) -> list[float]:
    return [bar.get_height() for bar in sorted(ax.patches, key=lambda bar: bar.get_x())]


def test_bars_of_a_report_are_its_numbers() -> None:
    found = report(LG.model(), guide("poe", LG), TEST, 10, seed=0)
    _, axes = figures.report(found)
    paint = colours("abc")
    assert list(axes) == ["kl/z/a, b, c", "kl/z/a", "kl/z/b", "kl/z/c", "terms", "gradients", "cosines", "experts/z"]
    for group, view in found.views.items():
        ax, z = axes[f"kl/z/{', '.join(group)}"], view.latents["z"]
        assert z.kl is not None
        assert heights(ax) == z.kl.sort(descending=True).values.tolist()
        assert [t.get_text() for t in ax.get_xticklabels()] == [str(i) for i in z.kl.argsort(descending=True).tolist()]
        assert ax.texts[0].get_text() == f"2/2 active\n{z.total:.2f} nats"
        want = tint(paint[group[0]] if len(group) == 1 else GREY, 0.85)
        assert {to_hex(bar.get_facecolor()) for bar in ax.patches} == {to_hex(want)}
    terms = found.everything.terms
    assert [b.get_width() for b in axes["terms"].patches] == [*(t.nats for t in terms.values()), -found.everything.kl]
    assert [t.get_text() for t in axes["terms"].texts][:3] == [f"{t.share:.0%}" for t in terms.values()]
    g = found.gradients
    assert g is not None
    assert [b.get_width() for b in axes["gradients"].patches] == [*g.norm.values(), g.kl]
    matrix = np.asarray(axes["cosines"].images[0].get_array().filled(np.nan))
    assert matrix[0, 1] == matrix[1, 0] == g.cosine["a", "b"] and matrix[1, 2] == g.cosine["b", "c"]
    assert np.isnan(matrix.diagonal()).all()


def test_shares_are_stacked_to_one() -> None:
    found = report(LG.model(), guide("poe", LG), TEST, 2, seed=0)
    assert not isinstance(found.experts, str)
    ax, stacked = figures.report(found)[1]["experts/z"], found.experts["z"].stacked
    bars = [c.patches for c in ax.containers]
    assert np.allclose([[b.get_height() for b in part] for part in bars], stacked, rtol=0, atol=1e-15)
    assert [b.get_y() + b.get_height() for b in bars[-1]] == pytest.approx([1.0, 1.0])
    paint = [to_hex(part[0].get_facecolor()) for part in bars]
    assert paint == [*(to_hex(tint(c, 0.75)) for c in colours("abc").values()), PALE.lower()]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b", "c", "prior"]


def test_inactive_units_are_hatched() -> None:
    found = report(LG.model(), guide("mean-field", LG), TEST, 2, threshold=0.85, seed=0)
    z = found.everything.latents["z"]
    level = z.activity.mean().item()
    found = report(LG.model(), guide("mean-field", LG), TEST, 2, threshold=level, seed=0)
    z = found.everything.latents["z"]
    assert z.active.sum() == 1 and z.kl is not None
    ax = figures.report(found)[1]["kl/z/a, b, c"]
    order = z.kl.argsort(descending=True)
    bars = sorted(ax.patches, key=lambda bar: bar.get_x())
    assert [bar.get_hatch() is None for bar in bars] == z.active[order].tolist()
    assert ax.get_xlabel() == "dimension (hatched: not active)"


def test_what_a_report_lacks_has_no_panel() -> None:
    model, q = pair_of(WithPrivate, GuideOfPrivate)
    _, axes = figures.report(report(model, q, pair_data(20), 5, seed=0))
    assert list(axes) == [
        *("kl/z/a, b", "kl/z/a", "kl/z/b", "kl/w_a/a, b", "kl/w_a/a"),
        *("terms", "gradients", "cosines"),
    ]
    one = truth((6,), 2)
    found = report(one.model(), one.exact_guide(), one.sample(20), 5, seed=0)
    assert list(figures.report(found)[1]) == ["kl/z/a", "terms", "gradients"]
    z = dataclasses.replace(found.everything.latents["z"], kl=None)
    whole = dataclasses.replace(found, views={("a",): dataclasses.replace(found.everything, latents={"z": z})})
    _, axes = figures.report(dataclasses.replace(whole, gradients=None))
    assert list(axes) == ["kl/z/a", "terms"]
    assert heights(axes["kl/z/a"]) == [z.total] and axes["kl/z/a"].get_xticklabels()[0].get_text() == "all together"


def test_all_are_saved(tmp_path: Path) -> None:
    figures.k_curve(curve(), path=tmp_path / "k.png")
    figures.khat_over_data(evidence(torch.rand(9).double()), path=tmp_path / "khat.svg")
    figures.report(report(LG.model(), guide("poe", LG), TEST, 2), path=tmp_path / "report.pdf")
    assert (tmp_path / "k.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "khat.svg").read_bytes()
    assert (tmp_path / "report.pdf").read_bytes()[:4] == b"%PDF"
