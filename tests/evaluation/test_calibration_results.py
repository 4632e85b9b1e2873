"""What a calibration tells, prints and refuses."""

from __future__ import annotations

import json
from itertools import combinations

import pyro
import pytest
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import NoLikelihood
from pyro_mm.evaluation.calibration import Calibration, Divergence, sbc, symmetric_divergence
from pyro_mm.evaluation.ranks import uniformity
from tests.helpers.calibration import ALL, SMALL, UNIT
from tests.helpers.estimates import guide


def test_default_subsets_of_many_modalities() -> None:
    five = LinearGaussian.random(dict.fromkeys("abcde", 2), 1, 0)
    found = list(symmetric_divergence(five.model(), five.exact_guide(), five.sample(5), 1, seed=0).elbo)
    assert found == [tuple(m) for m in "abcde"] + list(combinations("abcde", 4)) + [tuple("abcde")]
    shown = five.sample(5).only("b", "d")
    assert list(symmetric_divergence(five.model(), five.exact_guide(), shown, 1).elbo) == [("b",), ("d",), ("b", "d")]
    chosen = symmetric_divergence(five.model(), five.exact_guide(), five.sample(5), 1, subsets=["c", ("e", "a"), ["c"]])
    assert list(chosen.elbo) == [("c",), ("a", "e")]


def test_coordinates_beyond_32_are_left_out_and_said_to_be() -> None:
    wide = LinearGaussian.random({"a": 3, "b": 2}, 40, 0)
    c = sbc(wide.model(), wide.exact_guide(), wide.sample(80), 20, subsets=["b"], seed=0)
    assert c.coordinates == (32, 40) and "32 of 40 coordinates" in repr(c)
    kept = [q for q in c.ranks[("b",)] if q.startswith("z[")]
    assert len(kept) == 32 and kept[0] == "z[0]" and kept[-1] == "z[39]" and c.ok()


def test_it_leaves_no_trace() -> None:
    model, q, batch = SMALL.model(), guide("poe", SMALL), SMALL.sample(40, seed=1)
    before, state = {m: v.clone() for m, v in batch.x.items()}, torch.get_rng_state()
    one, two = (sbc(model, q, batch, 20, seed=7) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state()) and model.training and q.training
    assert all(torch.equal(batch.x[m], before[m]) for m in before)
    assert all(torch.equal(u, two.ranks[s][name]) for s, of in one.ranks.items() for name, u in of.items())
    assert not any(u.requires_grad for of in one.ranks.values() for u in of.values())


def known(**ranks: Tensor) -> Calibration:
    return Calibration({("a",): ranks, ("a", "b"): ranks}, 99, 200)


def test_results_are_adjusted_for_all_tests() -> None:
    grid = (torch.arange(200) + 0.5).double() / 200
    c = known(good=grid, low=grid**1.5, bad=grid**3)
    p = c.p[("a",)]
    assert p["bad"] < p["low"] < 1e-3 < 0.9 < p["good"] and c.tests == 6
    assert c.smallest[("a", "b")] == 6 * p["bad"] == 6 * uniformity(grid**3)
    assert c.flagged() == {("a",): ["bad", "low"], ("a", "b"): ["bad", "low"]} and not c.ok()
    assert known(good=grid).ok() and known(good=grid).smallest[("a",)] == 1.0
    table = json.loads(json.dumps(c.summary()))
    assert table["subsets"]["a, b"] == {"smallest": 6 * p["bad"], "flagged": ["bad", "low"], "p": p}
    assert not table["ok"] and table["level"] == 0.01 and table["tests"] == 6
    assert repr(c).splitlines()[0] == "calibration on 200 simulated data: 99 draws, 6 tests"
    assert repr(c).splitlines()[2].startswith("given a, b  adjusted p") and "fails in bad, low" in repr(c)
    assert not known(good=grid, low=grid**1.15).flagged(1e-9)[("a",)]


def test_a_divergence_prints_its_numbers() -> None:
    d = Divergence({("a",): torch.tensor([-2.0, -1.0])}, {("a",): torch.tensor([-1.0, 1.0])}, 3)
    assert d.gap("a") == (pytest.approx(1.5), pytest.approx(0.5))
    assert "-1.500 to     0.000, gap 1.5000 +- 0.5000  (n=2)" in repr(d)
    assert json.loads(json.dumps(d.summary()))["subsets"]["a"]["eubo"] == [0.0, pytest.approx(1.0)]


@pytest.mark.parametrize("function", [sbc, symmetric_divergence])
def test_what_cannot_be_calibrated_is_refused(function: object) -> None:
    model, q, batch = SMALL.model(), SMALL.exact_guide(), SMALL.sample(10)
    call = lambda b=batch, **more: function(model, q, b, 20, **more)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"subsets name \['d'\], but the model generates \['a', 'b', 'c'\]"):
        call(subsets=["a", ("b", "d")])
    with pytest.raises(ValueError, match=r"no row of the batch has anything of \('c',\)"):
        call(batch.only("a"), subsets=["c"])
    with pytest.raises(ValueError, match="no subsets"):
        call(subsets=[])
    with pytest.raises(ValueError, match="no subsets: the model generates"):
        call(Batch(batch.x, {m: torch.zeros(10, dtype=torch.bool) for m in ALL}))
    with pytest.raises(ValueError, match="no rows"):
        call(batch[:0])
    model.no_likelihood = "its decoder is a sampler"
    with pytest.raises(NoLikelihood, match="its decoder is a sampler"):
        call()


def test_few_draws_and_broken_pairs_are_refused() -> None:
    model, batch = SMALL.model(), SMALL.sample(10)
    with pytest.raises(ValueError, match="ranks among 19 draws are too coarse for a test: at least 20"):
        sbc(model, SMALL.exact_guide(), batch, 19)

    def stranger(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("other", UNIT)

    with pytest.raises(ValueError, match="guide site 'other' is not in the model"):
        sbc(model, stranger, batch, 20)
    with pytest.raises(ValueError, match="the guide samples no latent given b"):
        sbc(model, lambda batch: None, batch, 20, subsets=["b"])
