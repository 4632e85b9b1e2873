"""Runs compared on the same test rows."""

from __future__ import annotations

import pytest

from pyro_mm.evaluation import compare, log_conditional, log_marginal
from pyro_mm.run_comparison import compare_runs
from pyro_mm.runs import train_run
from pyro_mm.settings import Settings


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    made = []
    for name, variant, epochs in (("short", "mvae", 1), ("long", "mvae", 6), ("other", "mopoe", 1)):
        settings = Settings(variant, epochs=epochs, dim=3, batch_size=128)
        made.append(train_run(settings, folder / name, progress=False, device="cpu"))
    return made


def test_it_is_the_paired_comparison_of_the_estimates(runs) -> None:
    found = compare_runs(runs, k=50, rows=60, refine=False, seed=4)
    rows = {r.folder.name: r.splits.test[:60] for r in runs}
    direct = compare(
        {r.folder.name: log_marginal(r.recipe.model, r.recipe.guide, rows[r.folder.name], 50, seed=4) for r in runs}
    )
    assert found.summary() == direct.summary()
    assert found.best == "long", "more training, more likelihood"
    assert found.difference("long", "short").z > 5


def test_other_quantities(runs) -> None:
    found = compare_runs(runs[:2], "label", "image", 50, 40, refine=False, seed=1)
    assert found.quantity == "log p(label | image)"
    one = runs[0]
    exact = log_conditional(one.recipe.model, one.recipe.guide, one.splits.test[:40], "label", "image", 50, seed=1)
    assert found.results["short"].mean == pytest.approx(exact.mean)
    assert compare_runs(runs[:2], ("image",), k=20, rows=20).quantity == "log p(image)"


def test_refuses_what_cannot_be_paired(runs, tmp_path) -> None:
    with pytest.raises(ValueError, match="at least two runs"):
        compare_runs(runs[:1])
    with pytest.raises(ValueError, match="different names"):
        compare_runs([runs[0], runs[0]])
    halves = train_run(
        Settings("mvae", "digit_halves", epochs=1, dim=2, batch_size=256), tmp_path / "h", progress=False, device="cpu"
    )
    with pytest.raises(ValueError, match="different rows"):
        compare_runs([runs[0], halves])
