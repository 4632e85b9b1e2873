"""The grids draw the decoders' means and mark exactly what was given; `show` draws every kind of modality."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_mm import likelihoods, networks, plots, variants
from pyro_mm.batch import Batch
from pyro_mm.data import LinearGaussian
from pyro_mm.evaluation import generate
from pyro_mm.modality import Modality
from pyro_mm.plots.style import colours
from pyro_mm.recipe import Recipe

SMALL = networks.MLP((8,))
KINDS = {
    "image": Modality("image", (1, 4, 4), likelihoods.Binomial(16), SMALL),
    "label": Modality("label", (), likelihoods.Categorical(5), SMALL),
    "caption": Modality("caption", (4,), likelihoods.Tokens(6), SMALL),
    "vector": Modality("vector", (7,), likelihoods.Normal(), SMALL),
    "number": Modality("number", (), likelihoods.Normal(0.5), SMALL),
}
NAMES = tuple(KINDS)


@pytest.fixture
def recipe() -> Recipe:
    """MVAE over the five kinds, untrained."""
    torch.manual_seed(1)
    return variants.mvae(list(KINDS.values()), 2)


@pytest.fixture
def rows() -> Batch:
    """Three rows, of which the second lacks its label."""
    noise = torch.Generator().manual_seed(2)
    x = {
        "image": torch.randint(0, 17, (3, 1, 4, 4), generator=noise).float(),
        "label": torch.tensor([3, 0, 4]),
        "caption": torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0], [5, 4, 3, 2]]),
        "vector": torch.randn(3, 7, generator=noise),
        "number": torch.randn(3, generator=noise),
    }
    return Batch(x, {"label": torch.tensor([True, False, True])})


def drawn(ax: Any, kind: str) -> Any:
    """What one cell shows, read back from the axes."""
    if kind == "image":
        return np.asarray(ax.images[0].get_array())
    if kind == "label":
        return np.array([bar.get_height() for bar in ax.patches])
    if kind == "vector":
        return ax.lines[0].get_ydata()
    if kind == "number":
        return ax.lines[-1].get_xdata()
    return ax.texts[0].get_text()


def expected(kind: str, fn: Any, row: int) -> Any:
    """What the decoder says of one row, computed from the distribution's own attributes."""
    base = fn.base
    if kind == "label":
        return base.probs[0, 0, row].numpy()
    if kind == "caption":
        tokens = base.logits[0, 0, row].argmax(-1).tolist()
        shown = tokens[: tokens.index(0)] if 0 in tokens else tokens
        return " ".join(map(str, shown)) or "(empty)"
    return base.mean[0, 0, row].squeeze().numpy()


def framed(ax: Any) -> bool:
    return all(spine.get_linewidth() > 2 for spine in ax.spines.values())


def hatched(ax: Any) -> bool:
    return bool(ax.patch.get_hatch())


def test_cross_generation_draws_the_decoders_means(recipe: Recipe, rows: Batch) -> None:
    sets = [("image",), ("label", "vector"), NAMES]
    _, axes = plots.cross_generation(recipe, rows, sets=sets, seed=4)
    for group in sets:
        made = generate(recipe.model, recipe.guide, rows.only(*group), 1, seed=4)
        for m in NAMES:
            for row in range(3):
                found = drawn(axes[group, "generated", m, row], m)
                want = expected(m, made[m], row)
                assert found == want if m == "caption" else np.allclose(found, want, atol=1e-6), (group, m, row)


def test_probabilities_and_means_are_averaged_over_draws(recipe: Recipe, rows: Batch) -> None:
    _, axes = plots.cross_generation(recipe, rows, sets=["image"], k=20, seed=4)
    made = generate(recipe.model, recipe.guide, rows.only("image"), 20, seed=4)
    key = (("image",), "generated")
    assert np.allclose(drawn(axes[*key, "label", 1], "label"), made["label"].probs.mean(0)[1], atol=1e-6)
    assert np.allclose(drawn(axes[*key, "vector", 1], "vector"), made["vector"].mean.mean(0)[1], atol=1e-6)


def test_the_band_of_a_vector_is_one_standard_deviation() -> None:
    """Of the latent's uncertainty, large here, and the observation's noise together."""
    oracle = LinearGaussian.random({"a": 1, "b": 4}, 3, scales=0.1)
    model, guide, data = oracle.model(), oracle.exact_guide(), oracle.sample(2)
    _, axes = plots.cross_generation(model, guide, oracle.modalities, data, sets=["a"], k=200, seed=4)
    means = generate(model, guide, data.only("a"), 200, seed=4)["b"].mean[:, 1]
    sd = (means.var(0, correction=0) + 0.1**2).sqrt()
    assert (means.std(0) > 0.3).all()
    band = axes[("a",), "generated", "b", 1].collections[0].get_paths()[0].vertices
    for i in range(4):
        heights = band[band[:, 0] == i, 1]
        edges = (means.mean(0) - sd)[i].item(), (means.mean(0) + sd)[i].item()
        assert (heights.min(), heights.max()) == pytest.approx(edges)


def test_frames_mark_exactly_what_is_given(recipe: Recipe, rows: Batch) -> None:
    _, axes = plots.cross_generation(recipe, rows)
    groups = [(m,) for m in NAMES] + [NAMES]
    assert set(axes) == {
        (g, line, m, r) for g in groups for line in ("input", "generated") for m in NAMES for r in range(3)
    }
    colour = colours(NAMES)
    for (group, line, m, row), ax in axes.items():
        given = line == "input" and m in group and bool(rows.mask[m][row])
        assert framed(ax) == given, (group, line, m, row)
        assert hatched(ax) == (line == "input" and not given), (group, line, m, row)
        if given:
            from matplotlib.colors import to_hex

            assert to_hex(ax.spines["top"].get_edgecolor()) == colour[m].lower()
        if line == "input" and not given:
            assert ax.texts[0].get_text() == ("missing" if m in group else "hidden")


def test_given_cells_show_the_data(recipe: Recipe, rows: Batch) -> None:
    _, axes = plots.cross_generation(recipe, rows, sets=[NAMES])
    cell = {m: axes[NAMES, "input", m, 2] for m in NAMES}
    assert np.array_equal(drawn(cell["image"], "image"), rows.x["image"][2, 0])
    assert drawn(cell["label"], "label").tolist() == [0, 0, 0, 0, 1]
    assert drawn(cell["caption"], "caption") == "5 4 3 2"
    assert np.allclose(drawn(cell["vector"], "vector"), rows.x["vector"][2])
    assert drawn(cell["number"], "number") == pytest.approx(rows.x["number"][2].item())


def test_images_share_the_range_of_their_likelihood(recipe: Recipe, rows: Batch) -> None:
    _, axes = plots.cross_generation(recipe, rows, sets=["image"])
    for line in ("input", "generated"):
        assert axes[("image",), line, "image", 0].images[0].get_clim() == (0, 16)


def test_up_to_three_modalities_have_every_subset() -> None:
    oracle = LinearGaussian.random({"a": 2, "b": 3, "c": 1}, 2)
    pair = oracle.model(), oracle.exact_guide()
    _, axes = plots.cross_generation(*pair, oracle.modalities, oracle.sample(2))
    assert {key[0] for key in axes} == {s for n in (1, 2, 3) for s in combinations("abc", n)}


def test_pair_as_a_tuple_is_the_same(recipe: Recipe, rows: Batch) -> None:
    _, one = plots.cross_generation(recipe, rows, sets=["image"])
    _, two = plots.cross_generation((recipe.model, recipe.guide, recipe.modalities), rows, sets=["image"])
    key = (("image",), "generated", "vector", 0)
    assert np.array_equal(drawn(one[key], "vector"), drawn(two[key], "vector"))


def test_a_conditional_model_is_given_its_conditions() -> None:
    oracle = LinearGaussian.random({"a": 2, "b": 3}, 2, dtype=torch.float32)
    cvae = variants.cvae(oracle.modalities, 2, width=4)
    _, axes = plots.cross_generation(cvae, oracle.sample(2))
    assert {key[0] for key in axes} == {("b",), ("a", "b")}
    assert {key[2] for key in axes if key[1] == "generated"} == {"a"}
    with pytest.raises(ValueError, match=r"conditioned on \['b'\]"):
        plots.prior_samples(cvae)
    _, axes = plots.prior_samples(cvae, rows=oracle.sample(3))
    assert {key for key in axes if key[0] == "given"} == {("given", "b", row) for row in range(3)}
    assert {key[1] for key in axes if key[0] == "sample"} == {"a"}


def test_modalities_the_pair_ignores_are_left_out(rows: Batch) -> None:
    recipe = variants.vae(list(KINDS.values()), 2)  # of the first alone
    for _, axes in (
        plots.cross_generation(recipe, rows),
        plots.reconstructions(recipe, rows),
        plots.prior_samples(recipe),
    ):
        assert {key[-2] for key in axes} == {"image"}


def test_reconstructions_are_the_data_and_the_decoders_means(recipe: Recipe, rows: Batch) -> None:
    _, axes = plots.reconstructions(recipe, rows, seed=6)
    made = generate(recipe.model, recipe.guide, rows, 1, seed=6)
    assert set(axes) == set(product(("data", "reconstruction"), NAMES, range(3)))
    assert np.allclose(
        drawn(axes["reconstruction", "image", 1], "image"), expected("image", made["image"], 1), atol=1e-6
    )
    assert hatched(axes["data", "label", 1]) and not framed(axes["data", "label", 1])
    assert framed(axes["data", "label", 0])


def test_prior_samples_share_one_latent_per_column() -> None:
    """In the linear-Gaussian model z can be read off one modality's mean and predicts the other's."""
    oracle = LinearGaussian.random({"a": 5, "b": 3}, 2)
    _, axes = plots.prior_samples(oracle.model(), oracle.modalities, n=12, seed=1)
    a, b = (torch.tensor(np.stack([drawn(axes["sample", m, i], "vector") for i in range(12)])) for m in "ab")
    z = torch.linalg.lstsq(oracle.weights["a"], (a - oracle.offsets["a"]).T).solution.T
    torch.testing.assert_close(z @ oracle.weights["b"].T + oracle.offsets["b"], b)
    assert torch.cov(z.T).diagonal() == pytest.approx([1.0, 1.0], abs=0.9)  # of 12 draws


def test_a_hook_draws_in_place_of_the_library(recipe: Recipe, rows: Batch) -> None:
    seen: list[Tensor] = []

    def hook(ax: Any, value: Tensor) -> None:
        seen.append(value)
        ax.text(0, 0, "mine")

    spell = plots.written(lambda tokens: "abcdef"[int(tokens[0])] * 3)
    _, axes = plots.reconstructions(recipe, rows, show={"image": hook, "caption": spell})
    assert len(seen) == 6 and all(value.shape == (1, 4, 4) for value in seen)
    ax = axes["data", "image", 0]
    assert [t.get_text() for t in ax.texts] == ["mine"] and not ax.images
    assert drawn(axes["data", "caption", 2], "caption") == "fff"


def test_text_is_no_mathematics(recipe: Recipe, rows: Batch, tmp_path: Any) -> None:
    price = plots.written(lambda tokens: "$5 \\frac $6")
    _, axes = plots.reconstructions(recipe, rows, show={"caption": price}, path=tmp_path / "x.png")
    assert drawn(axes["data", "caption", 0], "caption") == "$5 \\frac $6"


def test_text_is_broken_and_cut_to_the_cell(recipe: Recipe, rows: Batch) -> None:
    _, axes = plots.reconstructions(recipe, rows, show={"caption": plots.written(lambda t: "word " * 60)})
    lines = drawn(axes["data", "caption", 0], "caption").split("\n")
    assert max(map(len, lines)) <= 16 and len(lines) == 5 and lines[-1].endswith("…")


def test_names_stay_inside_the_figure_and_off_the_cells(recipe: Recipe, rows: Batch) -> None:
    for figure, axes in (plots.cross_generation(recipe, rows), plots.reconstructions(recipe, rows)):
        figure.canvas.draw()
        boxes = {id(ax): ax.get_window_extent() for ax in axes.values()}
        for text in (t.get_window_extent() for t in figure.texts if t.get_text()):
            assert text.x0 >= 0 and text.y0 >= 0 and text.x1 <= figure.bbox.x1 and text.y1 <= figure.bbox.y1
            assert not any(text.overlaps(box) for box in boxes.values())
        ordered = list(boxes.values())
        assert not any(a.overlaps(b) for a, b in combinations(ordered, 2))


def test_the_callers_random_state_and_batch_are_untouched(recipe: Recipe, rows: Batch) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    plots.cross_generation(recipe, rows, sets=["image"])
    plots.prior_samples(recipe, n=2)
    assert torch.equal(before, torch.get_rng_state())
    assert rows.hidden == frozenset() and rows.mask["image"].all()


def test_wrong_input_is_refused_by_name(recipe: Recipe, rows: Batch) -> None:
    with pytest.raises(TypeError, match=r"\(recipe, rows\)"):
        plots.cross_generation(recipe)
    with pytest.raises(TypeError, match="model, guide, modalities, rows"):
        plots.cross_generation(recipe.model, recipe.guide, rows)
    with pytest.raises(TypeError, match="modalities"):
        plots.prior_samples(recipe.model)
    with pytest.raises(ValueError, match="no modality 'image'"):
        plots.reconstructions(recipe, Batch({"label": torch.zeros(2).long()}))
    with pytest.raises(ValueError, match=r"'vector' has event shape \(3,\) in the rows, expected \(7,\)"):
        plots.reconstructions(recipe, Batch({**rows.x, "vector": torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match=r"sets= names \['sound'\]"):
        plots.cross_generation(recipe, rows, sets=["sound"])
    with pytest.raises(ValueError, match="at least one subset"):
        plots.cross_generation(recipe, rows, sets=[()])
    with pytest.raises(ValueError, match=r"show= names \['sound'\]"):
        plots.cross_generation(recipe, rows, sets=["image"], show={"sound": lambda ax, value: None})
    with pytest.raises(ValueError, match="1 to 12 rows, got 30"):
        plots.cross_generation(recipe, rows[[0] * 30])
    with pytest.raises(ValueError, match="'image' has several views"):
        plots.reconstructions(recipe, rows.subsets([["image"], ["label"]]))
