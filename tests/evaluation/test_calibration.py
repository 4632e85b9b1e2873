"""Ranks of an exact posterior draw among a guide's, and one-particle bounds, against closed forms."""

from __future__ import annotations

import json
from itertools import combinations
from math import e, log, pi

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.distributions import Mixture
from pyro_mm.evaluation import NoLikelihood
from pyro_mm.evaluation.calibration import Calibration, Divergence, sbc, symmetric_divergence
from pyro_mm.evaluation.ranks import POINTS, _Tally, band, uniformity
from tests.helpers.estimates import Prior, Stretched, guide, hidden, truth
from tests.helpers.oracle import LG as Plain
from tests.helpers.pairs import GuideOfNested, Nested
from tests.helpers.programs import BottomUp, Layers, Private

BIG = truth((12, 8, 5), 4)
LINE = truth((6, 5, 4), 1)
SMALL = truth()
DATA = BIG.sample(1000, seed=1)
EVERY = [s for size in (1, 2, 3) for s in combinations("abc", size)]
ALL = ("a", "b", "c")
UNIT = dist.Normal(torch.zeros(()).double(), 1.0)


def rows(n: int) -> Batch:
    return Batch({"x": torch.zeros(n, dtype=torch.float64)})


# The test of uniformity.


@pytest.mark.parametrize("n", [1, 7, 60])
def test_p_values_are_those_of_the_most_extreme_binomial_count(n: int) -> None:
    """P(p <= a) <= a, with equality up to the steps of a discrete statistic."""
    torch.manual_seed(0)
    p = np.array([uniformity(torch.rand(n)) for _ in range(600)])
    for level in (0.02, 0.1, 0.5):
        share = (p <= level).mean()
        assert share <= level + 4 * (level * (1 - level) / 600) ** 0.5
        assert n < 60 or share >= 0.8 * level - 4 * (level * (1 - level) / 600) ** 0.5


def test_small_p_values_keep_their_digits() -> None:
    """All of n values below .01, or all above .99: nothing is more extreme, so p = 2 * .01^n."""
    for n in (1, 2, 5, 40):
        assert uniformity(torch.full((n,), 0.004)) == pytest.approx(2 * 0.01**n, rel=1e-9)
    assert uniformity(torch.full((1000,), torch.nan)) == 0.0


@pytest.mark.parametrize("level", [0.3, 0.01])
def test_a_curve_leaves_the_band_exactly_when_its_p_value_is_below_the_level(level: float) -> None:
    torch.manual_seed(1)
    low, high = band(80, level)
    outside = 0
    for _ in range(400):
        u = torch.rand(80) ** 1.15
        ecdf = (u.numpy()[:, None] <= POINTS).mean(0)
        leaves = bool(((ecdf < low - 1e-9) | (ecdf > high + 1e-9)).any())
        assert leaves == (uniformity(u) <= level)
        outside += leaves
    assert 4 < outside < 396


# Exact guides.


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


# Imperfect guides.


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


# Other programs.


class ExactPrivate(nn.Module):
    """z ~ p(z | x_S), w_m ~ p(w_m | z, x_m), exact for `Private`; `narrow` shrinks the standard deviation of w_a."""

    def __init__(self, model: Private, narrow: float = 1.0) -> None:
        super().__init__()
        self.model, self.narrow = model, narrow

    def forward(self, batch: Batch) -> None:
        lg = self.model.lg
        precision, moment = torch.eye(2).double().expand(len(batch), 2, 2), torch.zeros(len(batch), 2).double()
        for m in lg.dims:
            noise = self.model.v[m] @ self.model.v[m].T + lg.s[m] ** 2 * torch.eye(lg.dims[m]).double()
            gain, seen = torch.linalg.solve(noise, lg.w[m]).T, batch.mask[m].double().unsqueeze(-1)
            precision = precision + seen.unsqueeze(-1) * (gain @ lg.w[m])
            moment = moment + seen * ((batch.x[m] - lg.b[m]) @ gain.T)
        loc = torch.linalg.solve(precision, moment)
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))
            for m in lg.dims:
                v = self.model.v[m]
                root = torch.linalg.cholesky(torch.inverse(torch.eye(2).double() + v.T @ v / lg.s[m] ** 2))
                mean = (batch.x[m] - lg.b[m] - z @ lg.w[m].T) @ v / lg.s[m] ** 2 @ (root @ root.T)
                scale = root * (self.narrow if m == "a" else 1.0)
                with poutine.mask(mask=batch.mask[m]):
                    pyro.sample(f"w_{m}", dist.MultivariateNormal(mean, scale_tril=scale))


def test_private_latents_rank_where_their_modality_is_present() -> None:
    lg = Plain()
    model, batch = Private(lg), lg.data(800, missing=True)
    c = sbc(model, ExactPrivate(model), batch, 60, seed=0)
    assert c.ok()
    for s, of in c.ranks.items():
        private = {q: len(u) for q, u in of.items() if q.startswith("w_")}
        assert private == {f"w_{m}[{i}]": int(batch.mask[m].sum()) for m in s for i in range(2)}
    wrong = sbc(model, ExactPrivate(model, 0.5), batch, 60, subsets=["a", ("b", "c"), ALL], seed=0)
    for s, bad in wrong.flagged().items():
        assert "log p(a | z)" in bad if "a" in s else not bad
        assert not {q for q in bad if q[:3] in ("z[0", "z[1", "w_b", "w_c")}
    assert "narrow 1" in wrong.flagged()[("a",)]  # a direction over z and w_a, whose own spread is mostly that of z


def test_a_hierarchy_fails_at_the_layer_that_is_wrong() -> None:
    """x, z, u jointly Gaussian: z | x of mean kx, u | z of mean z / 1.64."""
    k = 1.3 * 1.64 / (1.3**2 * 1.64 + 0.25)
    exact, wrong = BottomUp(), BottomUp()
    with torch.no_grad():
        exact.a.copy_(torch.tensor([k, 0.5 * log(1.64 * (1 - 1.3 * k)), 1 / 1.64, 0.5 * log(0.64 / 1.64)]))
        wrong.a.copy_(exact.a - torch.tensor([0.0, 0.0, 0.0, 0.5]))
    assert sbc(Layers(), exact, rows(1500), 60, seed=0).ok()
    p = sbc(Layers(), wrong, rows(1500), 60, seed=0).p[("x",)]
    assert p["u"] < 1e-10 and p["narrow 1"] < 1e-10 and p["z"] > 1e-3


def test_coordinates_of_nested_plates_are_named_one_by_one() -> None:
    """y_1..y_3 are the prior's where a is hidden, and the guide knows: they pass there."""
    model, q = Nested().double(), GuideOfNested().double()
    batch = Batch({"a": torch.zeros(300, 3).double(), "b": torch.zeros(300, 2).double()})
    p = sbc(model, q, batch, 40, seed=0, chunk=1000).p
    names = ["z[0]", "z[1]", "y[0]", "y[1]", "y[2]"]
    assert sorted(names) == sorted(q for q in p[("b",)] if q[:2] in ("z[", "y["))
    assert min(p[("b",)][f"y[{i}]"] for i in range(3)) > 1e-3
    assert min(p[("a",)][f"y[{i}]"] for i in range(3)) < 1e-3


class Chain(nn.Module):
    """z ~ N(0, 1), u ~ N(z, 1), x ~ N(u, .3^2)."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            u = pyro.sample("u", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(u, 0.3), obs=batch.x["x"])


def top(batch: Batch) -> None:
    """p(z | x), exact, and nothing about u."""
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Normal(batch.x["x"] / 2.09, (1.09 / 2.09) ** 0.5))


def test_latents_that_the_guide_lacks_keep_the_drawn_value() -> None:
    """z ranks uniformly; u comes from p(u | z), which the likelihood sees, and weights repair."""
    c = sbc(Chain(), top, rows(1000), 100, seed=0)
    assert c.prior_sites == ("u",)
    assert c.p[("x",)]["z"] > 1e-3 and c.p[("x",)]["log p(x | z)"] < 1e-50
    assert sbc(Chain(), top, rows(1000), 2000, weighted=True, seed=0).ok()


class Given(nn.Module):
    """z ~ N(0, 1), x ~ N(z + y, .5^2), y given."""

    names, conditioned_on = ("x",), ("y",)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z + batch.x["y"], 0.5), obs=batch.x["x"])


def given_both(batch: Batch) -> None:
    """p(z | x, y), where both are shown."""
    shift = torch.where(batch.mask["y"], batch.x["y"], 50.0)
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Normal((batch.x["x"] - shift) / 1.25, 0.2**0.5))


def test_what_a_model_is_given_is_always_shown() -> None:
    batch = Batch({"x": torch.zeros(500).double(), "y": torch.randn(500).double()})
    c = sbc(Given(), given_both, batch, 50, seed=0)
    assert list(c.ranks) == [("x",)] and c.ok()
    ends = symmetric_divergence(Given(), given_both, batch, seed=0)
    assert ends.gap("x")[0] == pytest.approx(0.0, abs=1e-9)


# Bounds.


def closed_form(lg: LinearGaussian, s: tuple[str, ...], factor: float, shift: float) -> tuple[float, float, float]:
    """E log p(x_S), KL(p || q) and KL(q || p) for q = `Stretched`: both are the same for every x."""
    w = torch.cat([lg.weights[m] for m in s])
    noise = torch.cat([torch.full((len(lg.weights[m]),), lg.scales[m] ** 2).double() for m in s])
    covariance = torch.inverse(torch.eye(lg.latent).double() + w.T @ (w / noise.unsqueeze(-1)))
    sd = covariance.inverse().diagonal() ** -0.5
    p = dist.MultivariateNormal(torch.zeros(lg.latent).double(), covariance)
    q = dist.MultivariateNormal(shift * sd, (factor * sd).square().diag())
    entropy = 0.5 * torch.logdet(2 * pi * e * (w @ w.T + noise.diag()))
    both = (dist.kl.kl_divergence(p, q).item(), dist.kl.kl_divergence(q, p).item())
    return -entropy.item(), *both


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (0.7, 0.0), (1.3, 0.5)])
def test_bounds_equal_their_closed_forms(factor: float, shift: float) -> None:
    d = symmetric_divergence(BIG.model(), Stretched(BIG, factor, shift), BIG.sample(3000, seed=1), 5, seed=0)
    assert list(d.elbo) == list(d.eubo) == EVERY
    for s in EVERY:
        level, forward, reverse = closed_form(BIG, s, factor, shift)
        numbers = d.summary()["subsets"][", ".join(s)]
        for end, exact in (("elbo", level - reverse), ("eubo", level + forward), ("gap", forward + reverse)):
            found, se = numbers[end]
            assert found == pytest.approx(exact, abs=4 * se), (s, end)
        assert d.gap(*s) == numbers["gap"] and numbers["gap"][1] < 0.15 * (forward + reverse)


def test_reference_figures_of_the_gap() -> None:
    """Mean-field given all: .215; standard deviations x .7: 1.501."""
    assert sum(closed_form(BIG, ALL, 1.0, 0.0)[1:]) == pytest.approx(0.215, abs=0.003)
    assert sum(closed_form(BIG, ALL, 0.7, 0.0)[1:]) == pytest.approx(1.501, abs=0.003)


def test_an_exact_guide_has_no_gap_in_any_row() -> None:
    batch = hidden(SMALL.sample(300, seed=1))
    d = symmetric_divergence(SMALL.model(), SMALL.exact_guide(), batch, 3, seed=0, chunk=40)
    for s in EVERY:
        torch.testing.assert_close(d.elbo[s], d.eubo[s], rtol=0, atol=1e-9)
        assert len(d.elbo[s]) == int(batch.present(s).sum())
    lg = Plain()
    model = Private(lg)
    d = symmetric_divergence(model, ExactPrivate(model), lg.data(100, missing=True), 3, seed=0)
    assert max(abs(d.gap(*s)[0]) for s in d.elbo) < 1e-9


def test_more_particles_make_the_lower_bound_less_noisy_and_no_higher() -> None:
    """The mean over draws, not the log of a mean."""
    q, batch = Stretched(LINE, 1.5), LINE.sample(2000, seed=1)
    few, many = (symmetric_divergence(LINE.model(), q, batch, k, subsets=[ALL], seed=0) for k in (1, 50))
    _, _, reverse = closed_form(LINE, ALL, 1.5, 0.0)
    noise = [(d.eubo[ALL] - d.elbo[ALL]).var().item() for d in (few, many)]
    assert noise[1] < noise[0]
    exact = closed_form(LINE, ALL, 1.5, 0.0)[0] - reverse
    assert many.elbo[ALL].mean().item() == pytest.approx(exact, abs=4 * many.summary()["subsets"]["a, b, c"]["elbo"][1])


def test_guides_of_one_seed_meet_the_same_data() -> None:
    """Their EUBOs differ by log q only, so that a difference has a far smaller error than either."""
    one, other = (symmetric_divergence(BIG.model(), Stretched(BIG, f), DATA, subsets=[ALL], seed=4) for f in (1.0, 1.1))
    apart = other.eubo[ALL] - one.eubo[ALL]
    exact = closed_form(BIG, ALL, 1.1, 0.0)[1] - closed_form(BIG, ALL, 1.0, 0.0)[1]
    assert apart.mean().item() == pytest.approx(exact, abs=4 * apart.std().item() / 1000**0.5)
    assert apart.std() < 0.2 * one.eubo[ALL].std()


# Subsets, purity, results, refusals.


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
