"""Certificates of a whole system, beside its diagnostics on real rows."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.certification import certify
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import ais, log_conditional, log_marginal, sandwich
from pyro_mm.recipe import Recipe
from tests.helpers.estimates import Stretched, guide, truth

LG = truth()


def recipe(q: torch.nn.Module, oracle: LinearGaussian = LG) -> Recipe:
    made = variants.mvae(oracle.modalities, oracle.latent)
    return Recipe(made.name, oracle.model(), q, made.objective, {}, made.paper, modalities=oracle.modalities)


def test_everything_asked_is_certified_by_the_functions_themselves() -> None:
    system, rows = recipe(guide("poe", LG)), LG.sample(40, seed=1)
    found = certify(system, rows, 200, annealed=10, refine=False, seed=3)
    every = ["log p(a, b, c)", *(f"log p({m})" for m in "abc"), "log p(a | b, c)", "log p(b | a, c)", "log p(c | a, b)"]
    assert list(found.certificates) == every and not found.unavailable
    pair = system.model, system.guide
    joint = sandwich(*pair, rows, 200, seed=3)
    assert torch.equal(found.certificates[every[0]][0].lower, joint.lower)
    annealed = ais(*pair, rows, 10, seed=3)
    assert torch.equal(found.certificates[every[0]][1].upper, annealed.upper)
    assert [len(c) for c in found.certificates.values()] == [2, 1, 1, 1, 1, 1, 1]
    conditional = sandwich(*pair, rows, 200, of="a", given=("b", "c"), seed=3)
    assert torch.equal(found.certificates["log p(a | b, c)"][0].upper, conditional.upper)
    assert torch.equal(found.real["log p(b)"].estimate, log_marginal(*pair, rows.only("b"), 200, seed=3).estimate)
    of_real = log_conditional(*pair, rows, "a", ("b", "c"), 200, seed=3)
    assert torch.equal(found.real["log p(a | b, c)"].estimate, of_real.estimate)


def test_real_rows_that_are_harder_are_named() -> None:
    """Rows far from what the model generates: the posterior is as wide, the guide is off by what it shrinks."""
    system = recipe(Stretched(LG, 0.8))
    easy = certify(system, LG.sample(60, seed=1), 300, annealed=0, refine=False)
    assert not easy.harder and "carries over" in repr(easy)

    class Shifted(Stretched):
        def posterior(self, batch: Batch) -> object:
            q = super().posterior(batch)
            far = (batch.x["a"].abs().amax(-1, keepdim=True) > 20).to(q.base_dist.loc)
            return type(q)(type(q.base_dist)(q.base_dist.loc + 4 * far * q.base_dist.scale, q.base_dist.scale), 1)

    rows = LG.sample(60, seed=1)
    hard = certify(recipe(Shifted(LG, 0.8)), Batch({**rows.x, "a": rows.x["a"] + 40}), 300, annealed=0, refine=False)
    assert "log p(a, b, c)" in hard.harder
    assert "Real rows look harder than the simulated ones for log p(a, b, c)" in " ".join(repr(hard).split())


def test_the_table_and_the_json_hold_the_numbers() -> None:
    found = certify(recipe(guide("moe", LG)), LG.sample(30, seed=1), 100, annealed=5, every=True)
    text, data = repr(found), found.to_json()
    assert len(data["certificates"]) == 14
    for entry, certificate in zip(data["certificates"], chain(*found.certificates.values()), strict=True):
        assert entry["gap"] == pytest.approx((certificate.upper - certificate.lower).mean().item())
        line = next(t for t in text.splitlines() if t.startswith(f"{entry['quantity']}  {entry['method']}"))
        assert f"{entry['lower']:.3f}" in line and f"{entry['gap']:.4f}" in line
    assert "What it does not say" in text
    assert data["real"]["log p(a)"]["n"] == 30


def test_what_a_model_does_not_define_is_listed() -> None:
    a, b, _ = LG.modalities
    system = variants.cvae([a, b], 2, width=8)
    for module in system.modules.values():
        module.double()
    found = certify(system, LG.sample(20, seed=1), 50, annealed=5)
    assert list(found.certificates) == ["log p(a | b)"]
    assert "log p(a, b)" in found.unavailable and "not available" in repr(found)
