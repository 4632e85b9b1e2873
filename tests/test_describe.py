"""The described sites, factors and drawn graphs are those of the programs, ours and anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.inspect import get_model_relations
from torch import Tensor, nn

from pyro_mm import likelihoods, networks, plots, variants
from pyro_mm.batch import Batch
from pyro_mm.describe import describe, factorisation, graph, nodes_of
from pyro_mm.handlers import given, in_subsets
from pyro_mm.modality import Modality
from tests.helpers.layered import LAYERED, PRIVATE, TWO_FLOORS

MODALITIES = [
    Modality("image", (1, 8, 8), likelihoods.Binomial(16), networks.Conv((4, 8), 16)),
    Modality("label", (), likelihoods.Categorical(5), networks.Embedding(8, (8,))),
    Modality("caption", (4,), likelihoods.Tokens(6), networks.Recurrent(8)),
]
NAMES = ("image", "label", "caption")


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    plots.close()


@pytest.fixture
def batch() -> Batch:
    x = {"image": torch.ones(4, 1, 8, 8), "label": torch.arange(4), "caption": torch.tensor([[1, 2, 0, 0]] * 4)}
    return Batch(x, {"label": torch.tensor([True, True, False, True])})


class Hierarchy(nn.Module):
    """theta -> z -> z_image -> image <- w_image;  z, k -> sound, k in an inner plate and discrete."""

    def forward(self, batch: Batch) -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(theta, 1.0).to_event(1))
            with poutine.mask(mask=batch.mask["image"]):
                zi = pyro.sample("z_image", dist.Laplace(z, 1.0).to_event(1))
                w = pyro.sample("w_image", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("image", dist.Normal(zi + w, 1.0).to_event(1), obs=batch.x["image"])
            with pyro.plate("parts", 3, dim=-2):
                k = pyro.sample("k", dist.Bernoulli(0.5))
                double = pyro.deterministic("double", 2 * k)
            pyro.sample("sound", dist.Normal(z.sum(-1) + double.sum(-2), 1.0), obs=batch.x["sound"])


class BottomUp(nn.Module):
    """image -> z_image -> z;  the rest from the prior."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            with poutine.mask(mask=batch.mask["image"]):
                zi = pyro.sample("z_image", dist.Normal(batch.x["image"], 1.0).to_event(1))
                pyro.sample("w_image", dist.Normal(batch.x["image"], 1.0).to_event(1))
            pyro.sample("z", dist.Normal(zi, 1.0).to_event(1))


def relations(batch: Batch) -> dict[str, Any]:
    """What Pyro says of the hierarchy; it lists deterministic sites, which are no random variables."""
    found: dict[str, Any] = get_model_relations(Hierarchy(), (batch,))
    return {k: {n: v for n, v in found[k].items() if n != "double"} for k in ("sample_sample", "sample_dist")} | {
        "observed": [n for n in found["observed"] if n != "double"]
    }


def hierarchical(n: int = 5) -> Batch:
    return Batch({"image": torch.randn(n, 2), "sound": torch.randn(n)})


P = "p(theta) p(z | theta) p(z_image | z) p(w_image) p(image | z_image, w_image) p(k) p(sound | z, k)"


@pytest.mark.parametrize("name", [n for n in variants.__all__ if n not in {"vae", "cvae"} | LAYERED])
def test_the_factors_of_every_flat_joint_variant(name: str, batch: Batch) -> None:
    recipe = getattr(variants, name)(MODALITIES, 3)
    p, q = nodes_of(recipe.model, batch), nodes_of(recipe.guide, batch)
    assert factorisation("p", p) == "p(z) p(image | z) p(label | z) p(caption | z)"
    partial = {"mvae_cross": "image, caption", "vcca": "image"}  # what has no encoder there is not seen
    assert factorisation("q", q) == f"q(z | {partial.get(name, 'image, label, caption')})"


def each(pattern: str, names: tuple[str, ...] = NAMES) -> str:
    """The pattern for every modality."""
    return " ".join(pattern.format(m=m) for m in names)


UP = each("q(z_{m} | {m})")
TOP, LEVELS = "q(z | image, label, caption)", "image, label, caption"
WITH_PRIVATE = each("p(w_{m}) p({m} | z, w_{m})")
LAYERS = {
    **dict.fromkeys(
        TWO_FLOORS, ("p(z) " + each("p(z_{m} | z) p({m} | z_{m})"), UP + " q(z | z_image, z_label, z_caption)")
    ),
    "mhvae_2020": ("p(z) " + each("p(z_{m} | z) p({m} | z_{m})"), f"{TOP} {UP}"),
    "mhvae_2023": (
        "p(z) p(z_2 | z) p(z_1 | z, z_2) " + each("p({m} | z_1)"),
        f"{TOP} q(z_2 | z, {LEVELS}) q(z_1 | z, z_2, {LEVELS})",
    ),
    **dict.fromkeys(PRIVATE, ("p(z) " + WITH_PRIVATE, f"{TOP} " + each("q(w_{m} | {m})"))),
    "vcca_private": ("p(z) " + WITH_PRIVATE, "q(z | image) " + each("q(w_{m} | {m})")),
    **dict.fromkeys(("cada_vae", "meme"), ("p(z) " + each("p({m} | z)"), TOP)),
    **dict.fromkeys(("mmvm", "mmvm_pairwise"), (each("p(z_{m}) p({m} | z_{m})"), each(f"q(z_{{m}} | {LEVELS})"))),
    "jmvae_gan": ("p(z) " + each("p({m} | z)"), TOP),
    "mld": ("p(z) " + each("p({m} | z)"), TOP),
    "m2": ("p(z) p(c) p(label | c) p(image | z, c) p(caption | z, c)", "q(z | image, label, caption)"),
    # MFM's factor of the label is the shared one: no private latent.
    "mfm": (
        "p(z) " + WITH_PRIVATE.replace("p(w_label) p(label | z, w_label)", "p(label | z)"),
        "q(z | image, caption) " + each("q(w_{m} | {m})", ("image", "caption")),
    ),
}


@pytest.mark.parametrize("name", sorted(LAYERED))
def test_the_factors_of_every_layered_variant(name: str, batch: Batch) -> None:
    recipe = getattr(variants, name)(MODALITIES, 3)
    p, q = LAYERS[name]
    assert factorisation("p", nodes_of(recipe.model, batch)) == p
    assert factorisation("q", nodes_of(recipe.guide, batch)) == q


def test_models_that_see_less_or_are_given_something(batch: Batch) -> None:
    cvae, vae = variants.cvae(MODALITIES, 3, width=8), variants.vae(MODALITIES, 3)
    assert factorisation("p", nodes_of(cvae.model, batch)) == "p(z) p(image | z, label, caption)"
    assert factorisation("q", nodes_of(vae.guide, batch)) == "q(z | image)"


def test_verbs_change_what_is_shown(batch: Batch) -> None:
    for name in ("mvae", "jmvae", "jmvae_kl", "mmvae_dreg"):
        guide = getattr(variants, name)(MODALITIES, 3).guide
        assert factorisation("q", nodes_of(given(guide, "label"), batch)) == "q(z | label)", name
        stacked = in_subsets(given(guide, "label", "image"), [("image",), ("label",)])
        (node,) = nodes_of(stacked, batch)
        assert node.parents == ("image", "label") and node.plates == {"subset": 2, "data": 4}


def test_a_hierarchy_of_somebody_elses() -> None:
    batch = hierarchical()
    nodes = {n.name: n for n in nodes_of(Hierarchy(), batch)}
    assert factorisation("p", list(nodes.values())) == P
    pyros = relations(batch)
    assert {n: set(node.parents) for n, node in nodes.items()} == {
        n: set(up) for n, up in pyros["sample_sample"].items()
    }
    assert {n: node.family for n, node in nodes.items()} == pyros["sample_dist"]
    assert [n for n, node in nodes.items() if node.observed] == pyros["observed"]
    assert nodes["k"].plates == {"data": 5, "parts": 3} and nodes["k"].batch_shape == (3, 5)
    assert nodes["theta"].plates == {} and nodes["image"].event_shape == (2,)
    guide = factorisation("q", nodes_of(BottomUp(), batch))
    assert guide == "q(z_image | image) q(w_image | image) q(z | z_image)"


class LeavesTorch(nn.Module):
    """A guide through numpy, which provenance cannot follow."""

    def forward(self, batch: Batch) -> None:
        loc = torch.tensor(batch.x["image"].numpy() * 2)
        if type(batch.x["image"]) is not Tensor:
            raise RuntimeError("no subclasses here")
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("w", dist.Normal(torch.tensor(z.numpy().sum(-1)), 1.0))


def test_what_cannot_be_followed_counts_as_dependent() -> None:
    assert factorisation("q", nodes_of(LeavesTorch(), hierarchical())) == "q(z | image, sound) q(w | z, image, sound)"


def test_the_text_says_all_of_it(batch: Batch) -> None:
    recipe = variants.mmvae_dreg(MODALITIES, 3, k=2)
    text = describe(recipe, batch)
    for line in (
        "mmvae_dreg\nShi, Siddharth, Paige, Torr (2019).",
        "  image     (1, 8, 8)  Binomial(total=16)           100%",
        "  label     ()         Categorical(classes=5)       75%",
        "model  Joint\n  p(z) p(image | z) p(label | z) p(caption | z)",
        "  caption  TokenSequence  (4,)         (4,)         data (4)  observed",
        "guide  Experts, fused by mixture_of_experts(family=Laplace)\n  q(z | image, label, caption)",
        "  z     Mixture       (4,)         (3,)         data (4)  latent",
        f"objective\n  {recipe.objective!r}",
    ):
        assert line in text, f"{line}\nis not in\n{text}"
    assert max(map(len, text.splitlines())) <= 150


def test_parameters_are_counted_once(batch: Batch) -> None:
    recipe = variants.mmvae_dreg(MODALITIES, 3, k=2)  # model and guide share the prior's scale
    rows = dict(line.rsplit(maxsplit=1) for line in describe(recipe, batch).split("parameters\n")[1].splitlines())
    counts = {name.strip(): int(n.replace(",", "")) for name, n in rows.items()}
    mine = {role: sum(p.numel() for p in getattr(recipe, role).parameters()) for role in ("model", "guide")}
    assert {role: counts[role] for role in mine} == mine
    assert counts["total"] == mine["model"] + mine["guide"] - 3
    for m in NAMES:
        assert counts[f"decoders.{m}"] == sum(p.numel() for p in recipe.model.decoders[m].parameters())


def test_a_pair_without_a_recipe() -> None:
    text = describe((Hierarchy(), BottomUp()), hierarchical())
    assert P in text and "the model's own" in text and "objective" not in text
    with pytest.raises(TypeError, match="Recipe or"):
        describe(Hierarchy(), hierarchical())  # type: ignore[arg-type]


def test_long_formulas_break_between_factors() -> None:
    class Wide(nn.Module):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                for i in range(20):
                    pyro.sample(f"observation_{i}", dist.Normal(z, 1.0), obs=batch.x["sound"])

    text = describe((Wide(), lambda batch: None), hierarchical())
    assert all(line.count("(") == line.count(")") for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 120


def test_programs_without_sites_are_told_so() -> None:
    text = describe((Hierarchy(), lambda batch: None), hierarchical())
    assert "guide  <lambda>\n  no sites" in text
    with pytest.raises(ValueError, match="the model has no sample sites"):
        graph(lambda batch: None, None, hierarchical())


def test_looking_leaves_no_trace(batch: Batch) -> None:
    recipe = variants.mvae(MODALITIES, 3)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    describe(recipe, batch)
    graph(recipe.model, recipe.guide, batch)
    assert torch.equal(before, torch.get_rng_state())
    assert recipe.model.training and all(p.grad is None for p in recipe.model.parameters())
    assert all(type(v) is Tensor for v in batch.x.values())


def parts(ax: Any, kind: str) -> dict[str, Any]:
    """The drawn patches of one kind by what they stand for."""
    gids = {patch.get_gid(): patch for patch in ax.patches if patch.get_gid()}
    return {gid.partition(":")[2]: patch for gid, patch in gids.items() if gid.startswith(f"{kind}:")}


def test_the_graph_has_the_programs_nodes_and_edges() -> None:
    batch = hierarchical()
    model, guide = Hierarchy(), BottomUp()
    _, axes = graph(model, guide, batch)
    pyros = relations(batch)["sample_sample"]
    assert set(parts(axes["model"], "node")) == set(pyros)
    want = {f"{up}->{down}" for down, ups in pyros.items() for up in ups}
    assert set(parts(axes["model"], "edge")) == want
    assert set(parts(axes["guide"], "node")) == {"image", "z_image", "w_image", "z"}
    assert set(parts(axes["guide"], "edge")) == {"image->z_image", "image->w_image", "z_image->z"}
    assert set(parts(axes["model"], "plate")) == {"data", "parts"}


def test_observations_are_shaded_and_guide_edges_dashed() -> None:
    _, axes = graph(Hierarchy(), BottomUp(), hierarchical())
    for ax in axes.values():
        shaded = {n for n, patch in parts(ax, "node").items() if patch.get_facecolor()[0] < 0.99}
        assert shaded == {"image", "sound"} & set(parts(ax, "node"))
    assert {patch.get_linestyle() for patch in parts(axes["model"], "edge").values()} == {"-"}
    assert "-" not in {patch.get_linestyle() for patch in parts(axes["guide"], "edge").values()}


def test_plates_hold_their_nodes_and_no_others() -> None:
    batch = hierarchical()
    figure, axes = graph(Hierarchy(), None, batch)
    assert set(axes) == {"model"}
    figure.canvas.draw()
    nodes = {n.name: n for n in nodes_of(Hierarchy(), batch)}
    for plate, box in parts(axes["model"], "plate").items():
        frame = box.get_window_extent()
        for name, patch in parts(axes["model"], "node").items():
            at = patch.get_window_extent()
            inside = frame.x0 < at.x0 and at.x1 < frame.x1 and frame.y0 < at.y0 and at.y1 < frame.y1
            assert inside == (plate in nodes[name].plates), (plate, name)


@pytest.mark.parametrize("name", ["mvae", "cvae"])
def test_nodes_do_not_overlap_and_keep_their_place(name: str, batch: Batch) -> None:
    recipe = getattr(variants, name)(MODALITIES, 3)
    figure, axes = graph(recipe.model, recipe.guide, batch)
    figure.canvas.draw()
    found = {role: {n: p.get_window_extent() for n, p in parts(ax, "node").items()} for role, ax in axes.items()}
    boxes = list(found["model"].values())
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    shift = found["guide"]["z"].x0 - found["model"]["z"].x0
    for n in found["guide"]:
        assert found["guide"][n].x0 - found["model"][n].x0 == pytest.approx(shift)
        assert found["guide"][n].y0 == pytest.approx(found["model"][n].y0)


def test_conditions_are_squares(batch: Batch) -> None:
    recipe = variants.cvae(MODALITIES, 3, width=8)
    _, axes = graph(recipe.model, recipe.guide, batch)
    kinds = {n: type(patch).__name__ for n, patch in parts(axes["model"], "node").items()}
    assert kinds == {"z": "Ellipse", "image": "Ellipse", "label": "Rectangle", "caption": "Rectangle"}
    assert set(parts(axes["model"], "edge")) == {"z->image", "label->image", "caption->image"}


def test_the_graph_is_saved_without_graphviz(batch: Batch, tmp_path: Path) -> None:
    recipe = variants.mvae(MODALITIES, 3)
    graph(recipe.model, recipe.guide, batch, tmp_path / "graph.svg")
    assert "<svg" in (tmp_path / "graph.svg").read_text(encoding="utf-8")
