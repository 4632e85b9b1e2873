"""What a result says about itself."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from pyro_mm.evaluation import Evidence, log_marginal
from pyro_mm.evaluation.psis import threshold
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
