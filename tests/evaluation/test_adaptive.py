"""Draws until a standard error is reached: where they go, what they cost, and that stopping does not deceive."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation import (
    Evidence,
    GradientSteps,
    Laplace,
    log_conditional,
    log_conditional_difference,
    log_marginal,
)
from pyro_mm.evaluation.adaptive import FEWEST, needed, rounded
from tests.helpers.estimates import GUIDES, Prior, Stretched, guide, hidden, judge, truth

LG = truth()


def rows(n: int) -> Batch:
    return hidden(LG.sample(n, seed=1))


def assert_kept(ev: Evidence, cap: int) -> None:
    """Every row has its standard error, or as many draws as it may have."""
    assert bool(((ev.se <= ev.target_se) | (ev.draws_per_datum == cap)).all())  # type: ignore[operator]
    assert int(ev.draws_per_datum.max()) == ev.k <= cap


@pytest.mark.parametrize("kind", GUIDES)
def test_the_target_is_reached_without_visible_bias(kind: str) -> None:
    """At 0.1 nat, with errors as large as they say."""
    batch = rows(1000)
    ev = log_marginal(LG.model(), guide(kind, LG), batch, target_se=0.1, independent=True, seed=0)
    assert_kept(ev, 100_000)
    assert ev.reached.double().mean().item() > 0.85, "k-hat of 100 draws is noisy: not all are vouched for"
    judge(ev.estimate, ev.se, LG.log_marginal(batch), mean=0.01)


@pytest.mark.parametrize("kind", ["poe", "moe"])
def test_a_sharper_target(kind: str) -> None:
    batch = rows(150)
    ev = log_marginal(LG.model(), guide(kind, LG), batch, target_se=0.02, independent=True, seed=0)
    assert_kept(ev, 100_000)
    assert ev.reached.double().mean().item() > 0.97
    judge(ev.estimate, ev.se, LG.log_marginal(batch), mean=0.004)
    coarse = log_marginal(LG.model(), guide(kind, LG), batch, target_se=0.2, independent=True, seed=0)
    ratio = ev.draws_per_datum.double().mean() / coarse.draws_per_datum.double().mean()
    assert ratio.item() > 3, "variances fall as 1 / K"


class Uneven(nn.Module):
    """The mean-field posterior, three times too wide in every other row."""

    def __init__(self) -> None:
        super().__init__()
        self.net = LG.joint_posterior_net()

    def forward(self, batch: Batch) -> None:
        q = self.net(batch).base_dist
        wide = torch.where(batch.x["row"] % 2 == 1, 3.0, 1.0).unsqueeze(-1)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(q.loc + 0.5 * (wide - 1) * q.scale, q.scale * wide).to_event(1))


@pytest.mark.parametrize("refine", [None, False])
def test_hard_rows_get_the_draws(refine: bool | None) -> None:
    data = LG.sample(200, seed=1)
    batch = Batch({**data.x, "row": torch.arange(200).double()})
    options: dict[str, Any] = {"target_se": 0.05, "independent": True, "refine": refine, "seed": 0}
    ev = log_marginal(LG.model(), Uneven(), batch, **options)
    easy, hard = ev.draws_per_datum[::2].double(), ev.draws_per_datum[1::2].double()
    assert bool((ev.se <= 0.05).all())
    judge(ev.estimate, ev.se, LG.log_marginal(data), mean=0.01)
    if refine is False:
        assert hard.median() > 8 * easy.median()
        assert ev.proposal == "0.9 guide + 0.1 prior"
    else:
        plain = log_marginal(LG.model(), Uneven(), batch, **{**options, "refine": False})
        assert hard.median() < 0.3 * plain.draws_per_datum[1::2].double().median()
        torch.testing.assert_close(easy.mean(), plain.draws_per_datum[::2].double().mean(), rtol=0.2, atol=0)
        assert ev.proposal.count(" or ") == 1 and "0.675 refined" in ev.proposal


@pytest.mark.parametrize(
    "q", [Stretched(LG, 0.5, 2.0), Stretched(LG, 3.0, 1.0), Prior(LG)], ids=["off", "wide", "prior"]
)
def test_poor_guides_are_refined(q: nn.Module) -> None:
    """Which by themselves would need up to 100,000 draws per row."""
    batch = rows(300)
    ev = log_marginal(LG.model(), q, batch, target_se=0.05, independent=True, seed=0)
    assert_kept(ev, 100_000)
    assert ev.reached.double().mean().item() > 0.97 and ev.draws_per_datum.double().mean().item() < 1000
    judge(ev.estimate, ev.se, LG.log_marginal(batch), mean=0.008)


def test_rows_of_nothing_are_exactly_zero_with_the_fewest_draws() -> None:
    batch = rows(120)
    none = ~batch.present()
    assert int(none.sum()) >= 3
    ev = log_marginal(LG.model(), guide("mean-field", LG), batch, target_se=0.01, seed=0)
    assert ev.draws is not None
    assert bool((ev.estimate[none].abs() < 1e-9).all()) and bool((ev.draws[none] == FEWEST).all())
    assert bool(ev.reached[none].all()) and bool((ev.draws[~none] >= FEWEST).all())
    assert int(ev.draws[~none].max()) > 5 * FEWEST


@pytest.mark.parametrize("refiner", [Laplace(), Laplace(dof=5.0), GradientSteps(60, 4)])
def test_an_explicit_refiner(refiner: Any) -> None:
    """Of any family, for the rows that need one."""
    batch, q = rows(200), Stretched(LG, 0.6, 2.0)
    ev = log_marginal(LG.model(), q, batch, target_se=0.05, refine=refiner, independent=True, seed=0)
    assert_kept(ev, 100_000)
    judge(ev.estimate, ev.se, LG.log_marginal(batch), mean=0.01)
    assert ev.draws_per_datum.double().mean().item() < 3000 and "refined" in ev.proposal


@pytest.mark.parametrize("estimator", [log_conditional, log_conditional_difference])
@pytest.mark.parametrize("q", [guide("moe", LG), Stretched(LG, 0.6, 1.5)], ids=["moe", "off"])
def test_conditionals_to_a_target(estimator: Any, q: nn.Module) -> None:
    batch = LG.sample(100, seed=1)
    ev = estimator(LG.model(), q, batch, "a", ("b", "c"), target_se=0.05, independent=True, seed=0)
    assert ev.target_se == 0.05
    assert_kept(ev, 100_000)
    exact = LG.log_conditional(batch, "a", ("b", "c"))
    judge(ev.estimate, ev.se, exact, mean=0.01)


def test_a_difference_says_the_draws_of_its_costlier_part() -> None:
    """p(b | c) with the exact guide: both parts need the fewest; with another, rows differ in what they get."""
    batch = LG.sample(60, seed=1)
    same = log_conditional_difference(LG.model(), LG.exact_guide(), batch, "b", "c", target_se=0.1, defensive=0.0)
    assert same.draws_per_datum.tolist() == [FEWEST] * 60
    options: dict[str, Any] = {"target_se": 0.05 / 2**0.5, "refine": False}
    q = Stretched(LG, 2.0)
    ev = log_conditional_difference(LG.model(), q, batch, "b", "c", target_se=0.05, refine=False, seed=0)
    parts = [log_marginal(LG.model(), q, batch.only(*m), seed=s, **options) for s, m in enumerate(("bc", "c"))]
    wanted = torch.maximum(parts[0].draws_per_datum, parts[1].draws_per_datum)
    assert torch.equal(ev.draws_per_datum, wanted) and len(wanted.unique()) > 1


def test_no_row_gets_more_than_the_cap() -> None:
    """And rows for which that is not enough say so."""
    batch = rows(100)
    for cap in (30, 700):
        ev = log_marginal(LG.model(), Stretched(LG, 3.0, 2.0), batch, cap, target_se=0.01, refine=False, seed=0)
        assert_kept(ev, cap)
        assert ev.k == cap and ev.reached.double().mean().item() < 0.2
    exact = LG.log_marginal(batch)
    assert (ev.estimate - exact).mean().item() < 4 * ev.mean_se_mc, "still a bound in expectation"
    assert bool((ev.estimate[~batch.present()].abs() < 4 * ev.se[~batch.present()] + 1e-9).all())


def test_the_same_seed_gives_the_same_result() -> None:
    batch = rows(100)
    model, q = LG.model(), guide("moe", LG)
    before = torch.get_rng_state()
    one, other = (log_marginal(model, q, batch, target_se=0.05, seed=3) for _ in "12")
    assert torch.equal(one.estimate, other.estimate) and torch.equal(one.draws_per_datum, other.draws_per_datum)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(one.estimate, log_marginal(model, q, batch, target_se=0.05, seed=4).estimate)


def test_blocks_of_rows_change_nothing_but_the_draws() -> None:
    batch, exact = rows(150), LG.log_marginal(rows(150))
    ev = log_marginal(LG.model(), Stretched(LG, 2.5), batch, target_se=0.05, independent=True, chunk=1000, seed=0)
    assert_kept(ev, 100_000)
    judge(ev.estimate, ev.se, exact, mean=0.015)


@pytest.mark.parametrize("target", [0.1, pytest.param(0.05, marks=pytest.mark.slow)])
def test_what_stopping_costs(target: float) -> None:
    """Heavy weights (k = 0.5), not refined: a datum whose large weights are missing looks done.  Against fresh draws in
    the same numbers, the mean moves down by some two squared standard errors, and no more.
    """
    batch, q = LG.sample(1000, seed=1), Stretched(LG, 0.7)
    options: dict[str, Any] = {"refine": False, "independent": True}
    ev = log_marginal(LG.model(), q, batch, target_se=target, seed=0, **options)
    fixed = torch.empty(len(batch), dtype=torch.float64)
    for k in ev.draws_per_datum.unique().tolist():
        at = (ev.draws_per_datum == k).nonzero().flatten()
        fixed[at] = log_marginal(LG.model(), q, batch[at], k, independent=True, seed=1).estimate
    noise = 2**0.5 * ev.mean_se_mc
    moved = (ev.estimate - fixed).mean().item()
    assert -3 * target**2 - 3 * noise < moved < 3 * noise


def test_a_support_that_differs_between_rows_is_left_unrefined() -> None:
    """z ~ U(c, c + 1), a ~ N(z, 0.05^2): refined only if asked for, and then it is named."""

    def model(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Uniform(batch.x["c"], batch.x["c"] + 1))
            pyro.sample("a", dist.Normal(z, 0.05), obs=batch.x["a"])

    def prior(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Uniform(batch.x["c"], batch.x["c"] + 1))

    c = torch.randn(60, dtype=torch.float64)
    batch = Batch({"c": c, "a": c + torch.rand(60).double()})
    away = (batch.x["a"] - c) / 0.05
    normal = dist.Normal(torch.zeros(()).double(), 1.0)
    exact = (normal.cdf(away) - normal.cdf(away - 20)).log()
    ev = log_marginal(model, prior, batch, target_se=0.02, independent=True, seed=0)
    judge(ev.estimate, ev.se, exact, mean=0.015, rms=(0.75, 1.25))
    assert bool((ev.se <= 0.02).all()) and ev.draws_per_datum.double().mean() > 2000
    with pytest.raises(ValueError, match="latent 'z' has another support in every row"):
        log_marginal(model, prior, batch, target_se=0.02, refine=Laplace())


def test_the_number_of_draws_in_closed_form() -> None:
    """1.4 K (se / target)^2, twice that where k-hat is above its threshold, rounded up by factors of 1.5."""

    def seen(se: float, khat: float) -> Evidence:
        values: dict[str, Tensor] = {n: torch.zeros(1).double() for n in ("estimate", "ess", "bias")}
        numbers = {"se": torch.tensor([se]).double(), "khat": torch.tensor([khat]).double()}
        return Evidence("log p(a)", **values, **numbers, k=1000, proposal="guide")

    assert needed(seen(0.1, 0.3), 0.05).item() == pytest.approx(1.4 * 1000 * 4)
    assert needed(seen(0.1, 0.9), 0.05).item() == pytest.approx(2 * 1.4 * 1000 * 4)
    assert needed(seen(0.0, torch.inf), 0.05).item() == 0
    assert needed(seen(torch.inf, torch.inf), 0.05).item() > 1e300
    many = torch.tensor([0.0, 100.0, 101.0, 150.0, 200.0, 1e9, torch.inf], dtype=torch.float64)
    assert rounded(many, 5000).tolist() == [100, 100, 150, 150, 225, 5000, 5000]
    assert rounded(many, 60).tolist() == [60] * 7


def test_refuses_what_makes_no_sense() -> None:
    batch = LG.sample(3)
    for target in (0.0, -0.1):
        with pytest.raises(ValueError, match=f"target_se must be above 0, got {target}"):
            log_marginal(LG.model(), Prior(LG), batch, target_se=target)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        log_marginal(LG.model(), Prior(LG), batch, 0, target_se=0.1)
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.0"):
        log_marginal(LG.model(), Prior(LG), batch, target_se=0.1, defensive=1.0)
    with pytest.raises(ValueError, match="no target_se was asked for"):
        _ = log_marginal(LG.model(), Prior(LG), batch, 10).reached
