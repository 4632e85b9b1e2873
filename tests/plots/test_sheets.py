"""The sheet: what is given, what is generated from it, and the marks that tell one from the other."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.colors import to_hex
from pyro import poutine
from torch import nn

from pyro_mm import likelihoods, networks, plots, variants
from pyro_mm.batch import Batch
from pyro_mm.data import LinearGaussian
from pyro_mm.evaluation import generate
from pyro_mm.modality import Modality
from pyro_mm.plots.sheets import cross_generation_sheet, fits_sheet
from pyro_mm.plots.style import colours
from pyro_mm.recipe import Recipe

SMALL = networks.MLP((4,))
SHAPES = {"image": (1, 5, 5), "trajectory": (12,), "sound": (1, 4, 6)}
BOUNDED = likelihoods.Normal(0.5, bounded=True)
FOUR = [Modality(m, s, BOUNDED, SMALL) for m, s in SHAPES.items()]
FOUR.append(Modality("label", (), likelihoods.Categorical(10), SMALL))
NAMES = tuple(m.name for m in FOUR)


@pytest.fixture
def recipe() -> Recipe:
    torch.manual_seed(1)
    return variants.mvae(FOUR, 3)


@pytest.fixture
def row() -> Batch:
    noise = torch.Generator().manual_seed(2)
    x = {m: torch.rand(1, *s, generator=noise) for m, s in SHAPES.items()}
    return Batch({**x, "label": torch.tensor([7])})


def shown(ax: Any, m: str) -> np.ndarray:
    """What a cell shows, as the modality's value or a label's probabilities."""
    if m == "label":
        return np.array([bar.get_height() for bar in ax.patches])
    if m == "trajectory":
        segments = np.stack(ax.collections[0].get_segments())
        return np.concatenate([segments[:, 0], segments[-1:, 1]]).T.ravel()
    image = np.asarray(ax.images[0].get_array())
    return image.T if m == "sound" else image


def test_every_modality_from_every_other(recipe: Recipe, row: Batch) -> None:
    _, axes = cross_generation_sheet(recipe, row, seed=4)
    groups = [*((m,) for m in NAMES), NAMES]
    wanted = {(g, "generated", m) for g in groups for m in NAMES} | {((m,), "given", m) for m in NAMES}
    assert set(axes) == wanted
    for m in NAMES:
        given = np.eye(10)[7] if m == "label" else row.x[m].squeeze().numpy()
        assert np.allclose(shown(axes[(m,), "given", m], m), given)
    for group in groups:
        made = generate(recipe.model, recipe.guide, row.only(*group), seed=4)
        for m in NAMES:
            mean = made[m].probs[0, 0] if m == "label" else made[m].mean.squeeze()
            assert np.allclose(shown(axes[group, "generated", m], m), mean, atol=1e-6), (group, m)


def test_frames_mark_what_is_given_and_faintly_the_diagonal(recipe: Recipe, row: Batch) -> None:
    _, axes = cross_generation_sheet(recipe, row)
    for (group, what, m), ax in axes.items():
        spine = ax.spines["top"]
        width, colour = spine.get_linewidth(), to_hex(spine.get_edgecolor())
        assert (width > 2 and colour == colours(NAMES)[m].lower()) == (what == "given")
        assert (1 < width < 2) == (what == "generated" and group == (m,)), (group, what, m)


def test_the_last_line_may_be_left_out(recipe: Recipe, row: Batch) -> None:
    _, axes = cross_generation_sheet(recipe, row, together=False)
    assert {key[0] for key in axes} == {(m,) for m in NAMES}


def test_what_is_missing_gives_no_line_but_has_its_column(recipe: Recipe, row: Batch) -> None:
    without = Batch(row.x, {"sound": torch.tensor([False])})
    _, axes = cross_generation_sheet(recipe, without)
    rest = ("image", "trajectory", "label")
    assert {key[0] for key in axes} == {*((m,) for m in rest), rest}
    assert {key[2] for key in axes if key[1] == "generated"} == set(NAMES)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_two_to_eight_modalities_none_overlapping(count: int) -> None:
    names = ["a", "a_rather_long_name", "c", "d", "e", "f", "g", "another_long_name"][:count]
    oracle = LinearGaussian.random({m: 3 for m in names}, 2)
    figure, axes = cross_generation_sheet(oracle.model(), oracle.exact_guide(), oracle.modalities, oracle.sample(1))
    assert len(axes) == count * (count + 2)
    figure.canvas.draw()
    boxes = [ax.get_window_extent() for ax in axes.values()]
    texts = [t.get_window_extent() for t in figure.texts]
    assert not any(a.overlaps(b) for a, b in combinations([*boxes, *texts], 2))
    assert all(t.x0 >= 0 and t.y0 >= 0 and t.x1 <= figure.bbox.x1 and t.y1 <= figure.bbox.y1 for t in texts)


class Tall(nn.Module):
    """z ~ N(0, 1);  z_m ~ N(2 z + b_m, 1);  x_m ~ N(z_m, 0.1), for a and b."""

    names = ("a", "b")
    offsets = {"a": 0.5, "b": -1.5}

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            for m in self.names:
                with poutine.mask(mask=batch.mask[m]):
                    below = pyro.sample(f"z_{m}", dist.Normal(2 * z + self.offsets[m], 1.0).to_event(1))
                    x = dist.Normal(below.expand(*below.shape[:-1], 3), 0.1).to_event(1)
                    pyro.sample(m, x, obs=batch.x[m])


class TallGuide(nn.Module):
    """z_m = mean of x_m, z = mean of what is seen, almost surely."""

    names = ("a", "b")

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            means = {m: batch.x[m].mean(-1, keepdim=True) for m in self.names}
            seen = torch.stack([batch.mask[m].float() for m in self.names]).unsqueeze(-1)
            z = (torch.stack(list(means.values())) * seen).sum(0) / seen.sum(0).clamp(min=1)
            pyro.sample("z", dist.Normal(z, 1e-6).to_event(1))
            for m in self.names:
                with poutine.mask(mask=batch.mask[m]):
                    pyro.sample(f"z_{m}", dist.Normal(means[m], 1e-6).to_event(1))


def test_a_recipes_means_are_taken_in_every_grid() -> None:
    """From a, with z = x_a: b at 2 z + b_b exactly where its latent is at its mean, and a draw away where it is not."""
    modalities = tuple(Modality(m, (3,), likelihoods.Normal(0.1)) for m in "ab")
    pair = {"model": Tall(), "guide": TallGuide(), "modalities": modalities}
    row = Batch({"a": torch.full((1, 3), 1.0), "b": torch.full((1, 3), 9.0)})
    at_mean, drawn = Recipe("tall", **pair, means=("z_a", "z_b")), Recipe("tall", **pair)
    key = ("a",), "generated", "b"
    for recipe, means, exact in ((at_mean, None, True), (drawn, None, False), (drawn, ["z_b"], True)):
        one = cross_generation_sheet(recipe, row, means=means)[1][key]
        two = plots.cross_generation(recipe, row, sets=["a"], means=means)[1][*key, 0]
        hidden = Batch(row.x, {"b": torch.tensor([False])})
        three = plots.reconstructions(recipe, hidden, means=means)[1]["reconstruction", "b", 0]
        for ax in (one, two, three):
            assert (abs(ax.lines[0].get_ydata() - 0.5).max() < 1e-4) == exact
    _, axes = plots.prior_samples(at_mean, n=4)
    a, b = (np.stack([axes["sample", m, i].lines[0].get_ydata() for i in range(4)]) for m in "ab")
    assert np.allclose(a - b, 2.0, atol=1e-5) and a[:, 0].std() > 0.1


def test_wrong_input_is_refused_by_name(recipe: Recipe, row: Batch) -> None:
    with pytest.raises(TypeError, match="cross_generation_sheet takes"):
        cross_generation_sheet(recipe)
    with pytest.raises(ValueError, match="one row of data, got 3"):
        cross_generation_sheet(recipe, row[[0, 0, 0]])
    with pytest.raises(ValueError, match="one row of data, got 0"):
        cross_generation_sheet(recipe, row[[]])
    with pytest.raises(ValueError, match=r"nothing is present in the row of \['image'"):
        cross_generation_sheet(recipe, row.only())
    with pytest.raises(ValueError, match="no modality 'sound'"):
        cross_generation_sheet(recipe, Batch({m: v for m, v in row.x.items() if m != "sound"}))
    with pytest.raises(ValueError, match="two modalities or more"):
        cross_generation_sheet(variants.vae(FOUR, 2), row)
    cvae = variants.cvae(FOUR[:2], 2, width=4)
    with pytest.raises(ValueError, match=r"conditioned on \['trajectory'\]"):
        cross_generation_sheet(cvae, row)
    assert fits_sheet(recipe.model, recipe.guide, NAMES) and not fits_sheet(cvae.model, cvae.guide, NAMES)
