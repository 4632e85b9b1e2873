"""Ranks of an exact posterior draw among a guide's: exact guides pass, wrong ones fail where they are wrong."""

from __future__ import annotations

from math import log

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture
from pyro_mm.evaluation.calibration import sbc
from pyro_mm.evaluation.ranks import _Tally, uniformity
from tests.helpers.calibration import ALL, BIG, DATA, EVERY, LINE, SMALL, UNIT, rows
from tests.helpers.estimates import Prior, Stretched, guide, hidden


def test_an_exact_guide_passes_and_its_p_values_are_uniform() -> None:
    """Over 40 repeats of few draws and data with missing modalities: the pooled ranks, and the p-values themselves."""
    batch, kinds = hidden(SMALL.sample(80, seed=1)), ("z[0]", "narrow 1", "log p(x, z)", "log p(c | z)")
    found = [sbc(SMALL.model(), SMALL.exact_guide(), batch, 20, subsets=["c", ALL], seed=i) for i in range(40)]
    for s in (("c",), ALL):
        for q in kinds:
            assert uniformity(torch.cat([c.ranks[s][q] for c in found])) > 1e-4, (s, q)
            assert uniformity(torch.tensor([c.p[s][q] for c in found])) > 1e-4, (s, q)
    assert sum(not c.ok(0.2) for c in found) / 40 <= 0.2 + 3 * (0.2 * 0.8 / 40) ** 0.5


def test_every_subset_is_ranked_and_an_exact_guide_passes_all() -> None:
    c = sbc(BIG.model(), BIG.exact_guide(), hidden(DATA), 100, seed=0)
    assert list(c.ranks) == EVERY
    assert c.ok() and not any(c.flagged().values())
    assert {s: sum(q.startswith("log p(") for q in of) for s, of in c.ranks.items()} == {s: 1 + len(s) for s in EVERY}
    assert c.tests == sum(4 + 6 + 1 + len(s) for s in EVERY)


def test_masks_are_honoured() -> None:
    """A quantity has one rank for every row in which it exists."""
    batch = hidden(SMALL.sample(200, seed=1))
    c = sbc(SMALL.model(), SMALL.exact_guide(), batch, 20, seed=0)
    for s, of in c.ranks.items():
        some = int(batch.present(s).sum())
        assert len(of["z[0]"]) == len(of["random 2"]) == len(of["log p(x, z)"]) == some < 200
        assert [len(of[f"log p({m} | z)"]) for m in s] == [int(batch.mask[m].sum()) for m in s]
        assert all(bool(((u > 0) & (u < 1)).all()) for u in of.values())


class Coin(nn.Module):
    """c ~ Bernoulli(.3), x ~ N(c, 1), and y ~ N(0, 3^2), which tells nothing: log p(y | z) ties but for rounding."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            with poutine.mask(mask=batch.mask["x"]):
                pyro.sample("x", dist.Normal(c, 1.0), obs=batch.x["x"])
            scale = torch.full(c.shape, 3.0 if len(c) > 1 else 3 + 5e-7)  # one particle rounds in another way than many
            with poutine.mask(mask=batch.mask["y"]):
                pyro.sample("y", dist.Normal(torch.zeros(c.shape), scale), obs=batch.x["y"])


def toss(batch: Batch, odds: float = log(0.3 / 0.7)) -> None:
    """The exact posterior, a plain function."""
    seen = torch.where(batch.mask["x"], batch.x["x"] - 0.5, 0.0)
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("c", dist.Bernoulli(logits=odds + seen))


def test_ties_are_broken_at_random() -> None:
    """Discrete latents rank uniformly when the guide is exact; what differs by rounding in float32 ties as well."""
    batch = Batch({"x": torch.zeros(4000), "y": torch.zeros(4000)})
    c = sbc(Coin(), toss, batch, 25, seed=0)
    assert c.ok() and min(p for of in c.p.values() for p in of.values()) > 1e-3
    biased = sbc(Coin(), lambda b: toss(b, 0.0), batch, 25, seed=0).p
    assert biased[("x",)]["c"] < 1e-10 and biased[("y",)]["log p(x, z)"] < 1e-10
    assert biased[("y",)]["log p(y | z)"] > 1e-3


class TwoHumps(nn.Module):
    """z ~ 1/2 N(-2, .5^2) + 1/2 N(2, .5^2) in one dimension, x ~ N(z, 20^2), which hardly tells the humps apart."""

    def forward(self, batch: Batch) -> None:
        loc, half = torch.tensor([[-2.0], [2.0]]).double(), torch.tensor([0.5, 0.5]).double()
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", Mixture(loc, torch.full_like(loc, 0.5), half))
            pyro.sample("x", dist.Normal(z.squeeze(-1), 20.0), obs=batch.x["x"])


def humps(batch: Batch) -> None:
    """Its exact posterior: both humps moved, and weighted by N(x; +-2, 400.25)."""
    x, at = batch.x["x"].unsqueeze(-1), torch.tensor([-2.0, 2.0]).double()
    weights = dist.Normal(at, 400.25**0.5).log_prob(x).softmax(-1)
    loc = (at / 0.25 + x / 400) / (4 + 1 / 400)
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", Mixture(loc.unsqueeze(-1), torch.full_like(loc, (4 + 1 / 400) ** -0.5).unsqueeze(-1), weights))


def test_components_of_a_mixture_are_drawn_independently() -> None:
    """In fixed proportions half of 20 draws would be in either hump, and a rank of 10 twice as frequent as others."""
    c = sbc(TwoHumps(), humps, rows(6000), 20, seed=0)
    assert c.ok() and list(c.p[("x",)]) == ["z", "log p(x, z)", "log p(x | z)"]


@pytest.mark.parametrize(("factor", "shift"), [(0.6, 0.0), (1.6, 0.0), (1.0, 0.4), (0.7, -0.5)])
def test_ranks_of_a_wrong_normal_follow_their_closed_form(factor: float, shift: float) -> None:
    """q = N(m + shift s, (factor s)^2) for N(m, s^2): Phi(shift + factor Phi^-1(rank)) is uniform, the rank is not."""
    c = sbc(
        LINE.model(), Stretched(LINE, factor, shift), LINE.sample(800, seed=1), 500, subsets=["a", ("b", "c")], seed=0
    )
    for s in c.ranks:
        u = c.ranks[s]["z"]
        assert uniformity(u) < 1e-12
        assert uniformity(UNIT.cdf(shift + factor * UNIT.icdf(u))) > 1e-4, s


def test_a_shift_of_a_third_of_a_standard_deviation_fails_on_coordinates() -> None:
    c = sbc(BIG.model(), Stretched(BIG, 1.0, 0.3), DATA, 100, subsets=[ALL], seed=0)
    assert max(c.p[ALL][f"z[{i}]"] for i in range(4)) < 1e-8
    assert not c.ok() and set(c.flagged()[ALL]) >= {f"z[{i}]" for i in range(4)}


def test_a_mean_field_guide_fails_worst_along_the_direction_that_it_cannot_turn_to() -> None:
    c = sbc(BIG.model(), guide("mean-field", BIG), DATA, 100, subsets=["b"], seed=0)
    p = c.p[("b",)]
    assert c.flagged()[("b",)][0] == "narrow 1"
    assert p["narrow 1"] < 1e-16 and p["narrow 1"] < 1e-4 * min(p[f"z[{i}]"] for i in range(4))
    low, high = ((u < 0.1).double().mean().item() for u in (c.ranks[("b",)]["narrow 1"], c.ranks[("b",)]["wide 1"]))
    assert low > 0.15 and high < 0.08  # outside of the draws, and in their middle


def test_only_data_dependent_quantities_see_that_the_guide_ignores_the_data() -> None:
    c = sbc(BIG.model(), Prior(BIG), DATA, 100, seed=1)
    for s, p in c.p.items():
        logs = {q for q in p if q.startswith("log p(")}
        assert max(p[q] for q in logs) < 1e-50, s
        assert min(p[q] for q in set(p) - logs) * c.tests > 0.01, s
        assert set(c.flagged()[s]) == logs


def test_weights_repair_a_mean_field_guide() -> None:
    q = guide("mean-field", BIG)
    plain, repaired = (sbc(BIG.model(), q, DATA, weighted=w, subsets=["a", ALL], seed=0) for w in (False, True))
    for s in (("a",), ALL):
        assert min(plain.p[s].values()) < 1e-5
        assert min(repaired.p[s].values()) > 1e-3
    assert repaired.ok() and "200 weighted draws" in repr(repaired)


def test_equal_weights_change_nothing() -> None:
    batch = SMALL.sample(50, seed=1)
    one, other = (sbc(SMALL.model(), SMALL.exact_guide(), batch, 40, weighted=w, seed=3) for w in (False, True))
    for s in EVERY:
        for q, u in one.ranks[s].items():
            torch.testing.assert_close(u, other.ranks[s][q], rtol=0, atol=1e-9)


def test_ranks_do_not_depend_on_the_chunks_of_draws() -> None:
    """Sums at the scale of the largest weight so far, against the formula; one chunk has weights of 0 only."""
    noise = torch.Generator().manual_seed(0)
    truth, values = (torch.randn(*shape, 9, 3, generator=noise).double().round(decimals=1) for shape in ((), (60,)))
    log_w = 300 * torch.randn(60, 9, generator=noise).double()
    log_w[:20] = -torch.inf
    whole, parts = _Tally(truth), _Tally(truth)
    whole.add(values, log_w)
    for v, w in zip(values.split(20), log_w.split(20), strict=True):
        parts.add(v, w)
    torch.manual_seed(5)
    one = whole.ranks()
    torch.manual_seed(5)
    torch.testing.assert_close(parts.ranks(), one)
    torch.manual_seed(5)
    w = log_w.softmax(0).unsqueeze(-1)
    own = (w**2).sum(0)
    below, level = (w * (values < truth)).sum(0), (w * (values == truth)).sum(0)
    tie = torch.rand(9, 3, dtype=torch.float64)
    torch.testing.assert_close(one, (below + tie * (level + own)) / (1 + own))
