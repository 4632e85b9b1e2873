"""The command line's list of figures has those that apply to a run, and no others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pyro_mm import likelihoods, networks, plots, variants
from pyro_mm.batch import Batch
from pyro_mm.cli.figures import figures_of
from pyro_mm.data import Splits
from pyro_mm.modality import Modality

BOUNDED = likelihoods.Normal(0.5, bounded=True)
SMALL = networks.MLP((4,))
MODALITIES = (
    Modality("sound", (1, 4, 6), BOUNDED, SMALL),
    Modality("trajectory", (12,), BOUNDED, SMALL),
    Modality("label", (), likelihoods.Categorical(3), SMALL),
)
NEW = ("cross_generation_sheet", "traversal", "private_traversal")


@pytest.fixture(scope="module")
def splits() -> Splits:
    noise = torch.Generator().manual_seed(0)
    x = {m.name: torch.rand(9, *m.shape, generator=noise) for m in MODALITIES[:2]}
    rows = Batch({**x, "label": torch.arange(9) % 3}, {"trajectory": torch.arange(9) > 0})
    return Splits("drawn", MODALITIES, rows, rows, rows, "label")


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (variants.mvae, NEW[:2]),
        (variants.vae, NEW[1:2]),
        (variants.cvae, NEW[1:2]),
        (variants.dmvae, NEW),
        (variants.nexus_elbo, NEW),
    ],
)
def test_figures_that_apply_are_drawn(build: Any, wanted: tuple[str, ...], splits: Splits, tmp_path: Path) -> None:
    recipe: Any = build(list(MODALITIES), 2)
    run: Any = SimpleNamespace(recipe=recipe, splits=splits, record={"epochs": 1}, folder=tmp_path)
    found = figures_of(run, {})
    assert tuple(name for name in found if name in NEW) == wanted
    shown = {}
    for name in wanted:
        figure, shown[name] = found[name](tmp_path / f"{name}.png")
        plots.close(figure)
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    if "private_traversal" in wanted:
        assert {m for _, m, _ in shown["private_traversal"]} == {"sound"}
    if "cross_generation_sheet" in wanted:  # of the second row: the first lacks its trajectory
        sheet = shown["cross_generation_sheet"]
        assert len(sheet) == 15
        assert (
            sheet[("sound",), "given", "sound"].images[0].get_array() == splits.test.x["sound"][1, 0].T.numpy()
        ).all()
