"""The coordinated systems: objectives in closed form on linear-Gaussian models, stages, and errors of published code.

E_q log N(x; W z + b, s^2) is known for a Gaussian q, so that the mean of a sampled objective has an exact value.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.handlers import given
from pyro_mm.objectives import componentwise_elbo, elbo
from pyro_mm.storage import load, save
from pyro_mm.training import fit
from tests.helpers.coordinated import SIZES, Parts, exact, linear, made, mean_of
from tests.helpers.hierarchies import modalities
from tests.helpers.oracle import LG, PATTERNS, flat_gradient, z_scores
from tests.helpers.training import At, raising, same, values

PAIRS = [(i, j) for i in SIZES for j in SIZES]


def near(p: Parts) -> Tensor:
    return sum(p.between(i, j) for i, j in permutations(SIZES, 2))


FORMULAS: dict[str, tuple[dict[str, Any], Callable[[Parts], Tensor]]] = {
    "avae": ({"alpha": 0.5}, lambda p: p.alone() - 0.5 * near(p)),
    "avae_staged": ({"alpha": 0.5}, lambda p: p.alone() - 0.5 * near(p)),
    "avae_wasserstein": (
        {"alpha": 2.0},
        lambda p: p.alone() - 2.0 * sum(p.transport(i, j) for i, j in combinations(SIZES, 2)),
    ),
    "vcca": ({}, lambda p: p.explains("a")),
    "vcca_private": ({"private": 2}, lambda p: p.explains("a") - sum(p.private_kl(m) for m in SIZES)),
    "bivcca": ({}, lambda p: 0.7 * p.explains("a") + 0.15 * (p.explains("b") + p.explains("c"))),
    "mcvae": ({}, lambda p: sum(p.explains(m) for m in SIZES) / 3),
    "cross_modal_vae": ({}, lambda p: sum(p.fits(i, j) - p.where(p.kl(i), j) for i, j in PAIRS)),
    "cada_vae": (
        {},
        lambda p: (
            p.alone(0.25)
            + 2.37 * sum(p.fits(i, j) for i, j in permutations(SIZES, 2))
            - 8.13 * sum(p.transport(i, j).sqrt() for i, j in combinations(SIZES, 2))
        ),
    ),
    "scan": (
        {},
        lambda p: p.alone() - 3.0 * p.kl("a") - 10.0 * (p.between("a", "b") + p.between("a", "c")),
    ),
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_objective_is_the_published_formula(name: str, missing: bool) -> None:
    options, formula = FORMULAS[name]
    recipe, batch = made(name, missing, **options)
    truth = -formula(Parts(recipe, batch)).mean().item()
    found, se = mean_of(recipe.objective, batch)
    assert abs(found - truth) < 4 * se
    assert se < 0.02 * abs(truth)


def test_mcvae_is_the_bound_of_a_mixture_by_its_components() -> None:
    """On complete rows: E over its sources is a draw from the mixture, and the mean KL that of the components."""
    recipe, batch = made("mcvae")
    by_parts, se = mean_of(componentwise_elbo(recipe.model, recipe.guide, particles=3), batch)
    found, other = mean_of(recipe.objective, batch)
    assert abs(by_parts - found) < 4 * (se**2 + other**2) ** 0.5


def test_the_code_of_mcvae_for_incomplete_rows_weighs_the_divergence_by_the_number_of_sources() -> None:
    """It averages log p(x_n|z) over sources and sums their KLs: on complete rows M times the paper's at beta = M."""
    recipe, batch = made("mcvae")
    p = Parts(recipe, batch)
    code = -(sum(p.fits(i, j) for i, j in PAIRS) / 3 - sum(p.kl(m) for m in SIZES)).mean().item()
    heavy = made("mcvae", beta=3.0)[0].objective
    (at_m, se), (at_1, _) = mean_of(heavy, batch), mean_of(recipe.objective, batch)
    assert abs(at_m - code) < 4 * se
    assert code - at_1 > 20 * se


def test_terms_of_the_cross_modal_vae_bound_marginals() -> None:
    """No q(z|x_i) gets more than log p(x_j), which q = p(z|x_j) reaches: their mutual information stays out."""
    lg = LG({"a": 4, "b": 3}, latent=1)
    recipe = variants.cross_modal_vae(lg.modalities(), 1)
    exact(recipe, lg)
    batch = lg.data(100)
    with torch.no_grad():
        marginal, joint = (lg.log_marginal(b) for b in (batch.only("b"), batch))
        conditional = joint - lg.log_marginal(batch.only("a"))
        own, across = (elbo(given(recipe.model, "b"), given(recipe.guide, i))(batch) for i in ("b", "a"))
    torch.testing.assert_close(-own, marginal.mean(), rtol=1e-9, atol=0.0)  # the exact posterior: no variance
    assert (-across).item() < marginal.mean().item() < conditional.mean().item() - 0.1


def test_symbols_of_scan_are_drawn_to_cover_the_images_that_they_describe() -> None:
    """The KL ends at the moments of q(z|x) over p(x|y).  With q(z|x) = p(z|x), of variance v and of a mean that is
    N(g z, g v) given z, g = 1 - v, they are g m_y and v + g v + g^2 v_y: p(z|y)'s m_y and v_y only as v goes to 0.
    """
    lg = LG({"a": 4, "b": 3}, latent=1)
    recipe = variants.scan(lg.modalities(), 1)
    exact(recipe, lg)
    image, symbol = recipe.guide.encoders["a"], recipe.guide.encoders["b"]
    drawn = recipe.stages[1].objective.terms[1]

    def scores() -> Tensor:
        found = [flat_gradient(drawn(lg.data(500, seed)), symbol) for seed in range(20)]
        return z_scores(torch.stack(found), 0.0).abs()

    assert not bool(flat_gradient(recipe.stages[1].objective(lg.data(10)), image).any())  # a constant of this stage
    assert scores().max() > 20
    v, v_y = (1 / (1 + lg.w[m].square().sum() / lg.s[m] ** 2) for m in ("a", "b"))
    with torch.no_grad():
        layer = linear(symbol)
        layer.weight[0], layer.bias[0] = (1 - v) * layer.weight[0], (1 - v) * layer.bias[0]
        layer.bias[1] = ((v + (1 - v) * v + (1 - v) ** 2 * v_y).sqrt() - 1e-4).expm1().log()
    assert scores().max() < 4


@pytest.mark.parametrize(
    ("name", "stages"), [("scan", ["a", "symbols"]), ("avae_staged", ["each alone", "associated"])]
)
def test_stages_move_what_they_should(name: str, stages: list[str]) -> None:
    recipe, batch = made(name)
    assert [s.name for s in recipe.stages] == stages
    moved: dict[str, list[bool]] = {"a": [], "b": []}
    for stage in recipe.stages:
        before = {m: values(recipe.model.decoders[m], recipe.guide.encoders[m]) for m in moved}
        fit([stage], batch, epochs=1, batch_size=5, seed=0)
        for m, old in before.items():
            moved[m].append(not same(old, values(recipe.model.decoders[m], recipe.guide.encoders[m])))
    assert moved == ({"a": [True, False], "b": [False, True]} if name == "scan" else {"a": [True] * 2, "b": [True] * 2})


@pytest.mark.parametrize("step", [1, 3])
def test_an_interrupted_scan_goes_on_as_if_nothing_had_happened(step: int, tmp_path: Any) -> None:
    """Two steps in each stage: stopped in the first or in the second."""
    found = []
    for name, stops in (("straight", []), ("parts", [At(step, raising(KeyboardInterrupt()))])):
        options: dict[str, Any] = {"epochs": 1, "batch_size": 5, "seed": 0, "folder": tmp_path / name}
        recipe, batch = made("scan")
        history = fit(recipe, batch, callbacks=stops, **options)
        assert history.interrupted == bool(stops)
        if stops:
            recipe, batch = made("scan")
            assert not fit(recipe, batch, resume=True, **options).interrupted
        found.append(values(*recipe.modules.values()))
    assert same(*found)


def test_the_first_stage_of_avae_has_no_distance() -> None:
    recipe, batch = made("avae_staged")
    found, se = mean_of(recipe.stages[0].objective, batch)
    assert abs(found + Parts(recipe, batch).alone().mean().item()) < 4 * se


def test_pairs_of_the_cross_modal_vae_make_the_networks_they_need(tmp_path: Any) -> None:
    pairs = [("a", "b"), ("b", "b")]
    recipe, batch = made("cross_modal_vae", pairs=pairs)
    assert recipe.guide.names == ("a", "b") and recipe.model.names == ("b",)
    assert repr(recipe.objective) == "maximise  ELBO(b; q(z | a)) + ELBO(b; q(z | b))"
    p = Parts(recipe, batch)
    found, se = mean_of(recipe.objective, batch)
    assert abs(found + sum(p.fits(i, j) - p.kl(i) for i, j in pairs).mean().item()) < 4 * se
    again = load(save(recipe, tmp_path / "model"))
    assert repr(again.objective) == repr(recipe.objective)


def test_rows_without_the_first_view_teach_vcca_nothing() -> None:
    recipe, batch = made("vcca")
    batch = Batch(batch.x, {m: PATTERNS.repeat(2, 1)[:, i] for i, m in enumerate(SIZES)})
    lacking = batch[(~batch.mask["a"]).nonzero().flatten()]
    loss = recipe.objective(lacking)
    assert len(lacking) and loss.item() == 0.0
    loss.backward()
    assert all(g is None or bool((g == 0).all()) for g in (p.grad for p in recipe.objective.parameters()))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bivcca", {"mu": 1.0}, r"mu in \(0, 1\); got 3 and mu 1.0"),
        ("cross_modal_vae", {"pairs": [("a", "sound")]}, r"pairs \(source, target\) of \['a', 'b', 'c'\] are needed"),
        ("cross_modal_vae", {"pairs": []}, "are needed"),
        ("avae_wasserstein", {"weights": {"sound": 2.0}}, r"weights for \['sound'\]"),
    ],
)
def test_what_cannot_be_built_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(variants, name)(modalities(SIZES), 2, **options)


def test_scan_needs_symbols() -> None:
    with pytest.raises(ValueError, match="associates symbols with an image, the first modality; there is only 'a'"):
        variants.scan(modalities({"a": 4}), 2)
