"""What a result says about itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyro_mm import likelihoods, variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import Evidence, compare, log_conditional, log_marginal, log_marginal_ais, sandwich
from pyro_mm.evaluation.conditional import log_conditional_difference, plug_in
from pyro_mm.evaluation.psis import threshold
from pyro_mm.modality import Modality
from pyro_mm.results import evaluate, table
from tests.helpers.estimates import Stretched, guide, hidden, truth

LG = truth()


def evidence(n: int = 6, k: int = 1000, **changes: object) -> Evidence:
    values: dict[str, Tensor] = {
        "estimate": torch.linspace(-3, 2, n).double(),
        "se": torch.full((n,), 0.1).double(),
        "ess": torch.linspace(1, k, n).double(),
        "khat": torch.linspace(0.1, 1.1, n).double(),
        "bias": torch.full((n,), -0.005).double(),
    }
    return Evidence("log p(a)", **(values | {"k": k, "proposal": "guide"} | changes))  # type: ignore[arg-type]


def test_means_and_their_two_errors() -> None:
    """MC error: of the estimates for these data.  `mean_se`: of the mean over the population."""
    ev = evidence()
    assert ev.mean == pytest.approx(-0.5)
    assert ev.mean_se_mc == pytest.approx(0.1 / 6**0.5)
    assert ev.mean_se == pytest.approx(ev.estimate.std().item() / 6**0.5)
    torch.testing.assert_close(ev.corrected, ev.estimate + 0.005)
    single = evidence(1)
    assert single.mean_se == pytest.approx(0.1), "one datum says nothing of a population"


def test_errors_of_the_mean_are_those_of_repeats() -> None:
    q, data = Stretched(LG, 1.5), LG.sample(40)
    runs = [log_marginal(LG.model(), q, data, 100, independent=True, defensive=0.0, seed=s) for s in range(60)]
    spread = torch.tensor([ev.mean for ev in runs]).std().item()
    assert runs[0].mean_se_mc == pytest.approx(spread, rel=0.35)
    fresh = [log_marginal(LG.model(), q, LG.sample(40, seed=10 + s), 100, seed=s) for s in range(60)]
    assert fresh[0].mean_se == pytest.approx(torch.tensor([ev.mean for ev in fresh]).std().item(), rel=0.35)


def test_reliable_is_khat_under_the_threshold_for_this_k() -> None:
    khat = torch.tensor([0.5, threshold(1000) - 1e-6, threshold(1000) + 1e-6, torch.inf, -torch.inf, torch.nan])
    ev = evidence(khat=khat)
    assert ev.reliable.tolist() == [True, True, False, False, True, False]
    assert ev.unreliable_share == pytest.approx(0.5)
    assert not evidence(khat=khat, k=10).reliable[:4].any(), "ten draws have no tail to judge by"


def test_join_keeps_rows_in_order() -> None:
    whole = log_marginal(LG.model(), LG.exact_guide(), hidden(LG.sample(50)), 40, defensive=0.0, chunk=40 * 7)
    parts = [evidence(3), evidence(2), evidence(1)]
    joined = Evidence.join(parts)
    assert torch.equal(joined.estimate, torch.cat([p.estimate for p in parts])) and len(joined) == 6
    assert (joined.quantity, joined.k, joined.proposal) == ("log p(a)", 1000, "guide")
    torch.testing.assert_close(whole.estimate, LG.log_marginal(hidden(LG.sample(50))))


def test_the_summary_is_json_and_says_how_it_was_made() -> None:
    ev = log_marginal(LG.model(), guide("moe", LG), LG.sample(30), 200, seed=0)
    read = json.loads(json.dumps(ev.summary()))
    assert read["quantity"] == "log p(a, b, c)" and read["proposal"] == "0.9 guide + 0.1 prior"
    assert (read["n"], read["k"], read["prior_sites"]) == (30, 200, [])
    assert read["mean"] == ev.mean and read["mc_se"] == ev.mean_se_mc and read["se"] == ev.mean_se
    assert read["khat_threshold"] == pytest.approx(0.5654, abs=1e-3)
    text = repr(ev)
    assert f"log p(a, b, c) = {ev.mean:.3f} +- {ev.mean_se:.3f} nats (MC {ev.mean_se_mc:.3f}; N=30, K=200" in text


def test_paired_differences_are_sharper_than_the_means() -> None:
    """Two guides, one model, the same data: the values agree within their Monte Carlo errors, not data errors."""
    data = LG.sample(200)
    one, other = (log_marginal(LG.model(), guide(kind, LG), data, 500, seed=0) for kind in ("moe", "posteriors"))
    difference = (one.estimate - other.estimate).mean().item()
    assert abs(difference) < 4 * (one.mean_se_mc**2 + other.mean_se_mc**2) ** 0.5 < one.mean_se / 5


def test_draws_and_reliability_datum_by_datum() -> None:
    """The threshold of a datum is that of its own number of draws."""
    draws = torch.tensor([100, 1000, 10, 5000])
    ev = evidence(4, k=5000, draws=draws, khat=torch.full((4,), 0.6).double())
    assert [threshold(k) for k in draws.tolist()] == pytest.approx([0.5, 2 / 3, 0.0, 0.7])
    assert ev.reliable.tolist() == [False, True, False, True] and ev.unreliable_share == 0.5
    assert torch.equal(ev.draws_per_datum, draws)
    assert evidence(3).draws_per_datum.tolist() == [1000] * 3
    assert "K=10 to 5000" in repr(ev) and ev.summary()["median_draws"] == 100.0


def test_reached_needs_an_error_that_can_be_believed() -> None:
    se = torch.tensor([0.05, 0.05, 0.2, 0.0, 0.1], dtype=torch.float64)
    khat = torch.tensor([0.3, 0.9, 0.3, torch.inf, 0.3]).double()
    ev = evidence(5, se=se, khat=khat, target_se=0.1)
    assert ev.reached.tolist() == [True, False, False, True, True], "no error at all needs no tail"
    assert ev.summary()["reached"] == 0.6 and "SE 0.1 reached by 60.0%" in repr(ev)
    with pytest.raises(ValueError, match="no target_se was asked for"):
        _ = evidence().reached


@pytest.mark.parametrize("index", [torch.tensor([4, 0, 4]), torch.tensor([0, 0, 1, 0, 0, 1]) > 0])
def test_rows_take_everything_with_them(index: Tensor) -> None:
    ev = evidence(6, k=900, draws=torch.arange(100, 700, 100), khat=torch.linspace(0, 1, 6).double(), target_se=0.2)
    some = ev.rows(index)
    for name in ("estimate", "se", "ess", "khat", "bias", "draws", "reliable", "reached", "corrected"):
        assert torch.equal(getattr(some, name), getattr(ev, name)[index]), name
    assert some.k == int(ev.draws_per_datum[index].max()), "the most of any of these rows"
    assert evidence(6, k=900).rows(index).k == 900
    assert some.mean == pytest.approx(ev.estimate[index].mean().item())


def test_join_of_different_numbers_of_draws() -> None:
    few, many = evidence(2, k=100), evidence(3, k=1000, proposal="other")
    mixed = evidence(2, k=400, draws=torch.tensor([300, 400]))
    joined = Evidence.join([few, many, mixed, few])
    assert joined.draws_per_datum.tolist() == [100, 100, 1000, 1000, 1000, 300, 400, 100, 100]
    assert (joined.k, joined.proposal) == (1000, "guide; other")
    assert torch.equal(joined.reliable, torch.cat([p.reliable for p in (few, many, mixed, few)]))
    assert Evidence.join([few, few]).draws is None
    back = joined.rows(torch.tensor([7, 8]))
    assert back.k == 100 and torch.equal(back.estimate, few.estimate) and torch.equal(back.reliable, few.reliable)


def test_join_keeps_a_common_target() -> None:
    parts = [evidence(2, target_se=0.2), evidence(1, target_se=0.2, k=100)]
    assert torch.equal(Evidence.join(parts).reached, torch.cat([p.reached for p in parts]))
    assert Evidence.join([evidence(2, target_se=0.2), evidence(1)]).target_se is None


def test_join_is_what_one_run_would_have_given() -> None:
    """Of the same draws: with the exact guide every weight is p(x)."""
    batch = hidden(LG.sample(30))
    whole = log_marginal(LG.model(), LG.exact_guide(), batch, 50, defensive=0.0)
    parts = [log_marginal(LG.model(), LG.exact_guide(), batch[rows], k, defensive=0.0)
             for rows, k in ((slice(0, 10), 50), (slice(10, 30), 70))]  # fmt: skip
    joined = Evidence.join(parts)
    torch.testing.assert_close(joined.estimate, whole.estimate)
    assert joined.draws_per_datum.tolist() == [50] * 10 + [70] * 20
    torch.testing.assert_close(joined.ess, joined.draws_per_datum.double())


def test_rows_without_what_is_asked_about_count_in_no_mean() -> None:
    """log p of nothing is 0 nats, which is no row's likelihood: means, errors and shares are of the other rows."""
    model, exact = LG.model(), guide("poe", LG)
    mask = {"a": torch.arange(40) % 4 != 0, "b": torch.arange(40) % 10 != 3}
    holed = Batch(LG.sample(40).x, {**mask, "c": torch.zeros(40, dtype=torch.bool)})
    for found, asked in (
        (log_marginal(model, exact, holed.only("a"), 50, seed=0), mask["a"]),
        (log_conditional(model, exact, holed, "a", "b", 50, seed=0), mask["a"]),
        (log_conditional_difference(model, exact, holed, "a", "b", 50, seed=0), mask["a"]),
        (plug_in(model, exact, holed, "a", "b", 50, seed=0), mask["a"]),
        (log_marginal_ais(model, exact, holed.only("b"), 3, chains=4, seed=0), mask["b"]),
    ):
        assert (found.estimate[~asked] == 0).all() and found.scored is not None and torch.equal(found.scored, asked)
        own = found.of_scored()
        assert own.scored is None and torch.equal(own.estimate, found.estimate[asked])
        n = int(asked.sum())
        assert found.n == len(own) == n and f"N={n} of 40 rows" in repr(found)
        assert found.mean == pytest.approx(found.estimate[asked].mean().item())
        same = ("mean", "se", "mc_se", "n", "median_ess", "khat_above", "mean_bias")
        assert {k: found.summary()[k] for k in same} == pytest.approx({k: own.summary()[k] for k in same})
        assert torch.equal(Evidence.join([found, own]).scored, torch.cat([asked, torch.ones(n, dtype=torch.bool)]))
        assert torch.equal(found.rows(torch.arange(8)).scored, asked[:8])
    assert log_marginal(model, exact, holed, 50, seed=0).scored is None
    two = {"one": log_marginal(model, exact, holed.only("a"), 50, seed=0)}
    two["two"] = replace(two["one"], estimate=two["one"].estimate - mask["a"].double())
    difference = compare(two).difference("one", "two")
    assert difference.mean == pytest.approx(1.0) and difference.n == int(mask["a"].sum())
    ends = sandwich(model, exact, holed, 20, of="a", given="b", seed=0)
    assert ends.n == int(mask["a"].sum())
    assert ends.gap == pytest.approx((ends.upper - ends.lower)[mask["a"]].mean().item())
    assert ends.mean_lower == pytest.approx(ends.lower[mask["a"]].mean().item())


def test_one_draw_tells_nothing_of_its_error() -> None:
    one = log_marginal(LG.model(), LG.exact_guide(), LG.sample(6), 1, seed=0)
    assert one.se.isnan().all() and "MC unknown" in repr(one) and one.summary()["mc_se"] is None


def test_a_pseudo_likelihood_is_called_one() -> None:
    modalities = [
        Modality("image", (4,), likelihoods.PseudoBernoulli()),
        Modality("y", (2,), likelihoods.Normal()),
    ]
    recipe = variants.mvae(modalities, 2)
    batch = Batch({"image": torch.rand(5, 4), "y": torch.randn(5, 2)})
    pair = recipe.model, recipe.guide
    assert log_marginal(*pair, batch, 2).quantity == "pseudo-log p(image, y)"
    assert log_marginal(*pair, batch.only("y"), 2).quantity == "log p(y)"
    assert log_conditional(*pair, batch, "y", "image", 2).quantity == "pseudo-log p(y | image)"
    assert "pseudo-log p(image, y)" in table(evaluate(recipe, batch, k=5, refine=False).to_json())
