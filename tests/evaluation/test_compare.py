"""Models compared on the same rows, against differences known in closed form."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import Evidence, log_conditional, log_marginal
from pyro_mm.evaluation.compare import compare
from tests.helpers.estimates import guide, hidden, truth

LG = truth()


def moved(shift: float = 0.0, scale: float = 1.0) -> LinearGaussian:
    """The true model with every offset moved and every scale multiplied."""
    offsets = {m: b + shift for m, b in LG.offsets.items()}
    return LinearGaussian(LG.weights, offsets, {m: scale * s for m, s in LG.scales.items()})


def exact(oracle: LinearGaussian, data: Batch) -> Evidence:
    """An estimate without Monte Carlo error."""
    return made(oracle.log_marginal(data))


def made(estimate: Tensor, **changes: object) -> Evidence:
    zero = torch.zeros_like(estimate)
    values = {"estimate": estimate, "se": zero, "ess": zero + 1000, "khat": zero - torch.inf, "bias": zero}
    named = {"quantity": "log p(a, b, c)", "k": 1000, "proposal": "guide"}
    return Evidence(**(values | named | changes))  # type: ignore[arg-type]


def density(oracle: LinearGaussian) -> MultivariateNormal:
    """p(a, b, c), written out."""
    w = torch.cat(list(oracle.weights.values()))
    noise = torch.cat([torch.full((len(v),), oracle.scales[m] ** 2) for m, v in oracle.weights.items()]).double()
    return MultivariateNormal(torch.cat(list(oracle.offsets.values())), w @ w.T + noise.diag())


OTHERS = {"shifted": moved(0.1), "wide": moved(scale=1.15)}


@pytest.mark.parametrize("name", OTHERS)
def test_repeats_agree_with_the_difference_and_its_error(name: str) -> None:
    """On data from the true model the mean difference is KL(true || other)."""
    known = kl_divergence(density(LG), density(OTHERS[name])).item()
    runs = []
    for seed in range(400):
        data = LG.sample(100, seed=100 + seed)
        pair = compare({"true": exact(LG, data), name: exact(OTHERS[name], data)})
        runs.append(pair.difference("true", name))
    mean, se = (torch.tensor([getattr(d, f) for d in runs]) for f in ("mean", "se"))
    assert mean.mean().item() == pytest.approx(known, abs=4 * mean.std().item() / 20)
    assert se.mean().item() == pytest.approx(mean.std().item(), rel=0.1)
    covered = ((mean - known).abs() < 1.96 * se).double().mean().item()
    assert 0.92 <= covered <= 0.975
    apart = (runs[0].mean - known) / runs[0].se
    assert abs(apart) < 4 and runs[0].mc_se == 0 and runs[0].unreliable_share == 0


def test_equally_good_models_differ_as_often_as_p_says() -> None:
    """Offsets too high and too low by the same amount: half of the p values are below 1/2, 5 % below 0.05."""
    high, low = moved(0.15), moved(-0.15)
    assert kl_divergence(density(LG), density(high)).item() == pytest.approx(
        kl_divergence(density(LG), density(low)).item()
    )
    p = []
    for seed in range(600):
        data = LG.sample(80, seed=1000 + seed)
        p.append(compare({"high": exact(high, data), "low": exact(low, data)}).difference("high", "low").p)
    found = torch.tensor(p)
    assert (found < 0.5).double().mean().item() == pytest.approx(0.5, abs=0.08)
    assert (found < 0.05).double().mean().item() == pytest.approx(0.05, abs=0.035)


def test_pairing_is_sharper_than_two_separate_errors() -> None:
    data = LG.sample(300, seed=4)
    one, other = exact(LG, data), exact(moved(0.1), data)
    d = compare({"one": one, "other": other}).difference("one", "other")
    rows = one.estimate - other.estimate
    assert d.mean == pytest.approx(rows.mean().item()) and d.se == pytest.approx(rows.std().item() / 300**0.5)
    assert d.se < 0.5 * (one.mean_se**2 + other.mean_se**2) ** 0.5
    assert d.mean == pytest.approx(one.mean - other.mean)


def test_the_monte_carlo_part_is_that_of_repeats() -> None:
    data, q = hidden(LG.sample(40, seed=5)), guide("moe", LG)
    other = OTHERS["wide"]
    runs = []
    for s in range(60):
        options = {"k": 100, "independent": True}
        found = {
            "true": log_marginal(LG.model(), q, data, **options, seed=2 * s),
            "wide": log_marginal(other.model(), guide("moe", other), data, **options, seed=2 * s + 1),
        }
        runs.append(compare(found).difference("true", "wide"))
    mean, part, bias = (torch.tensor([getattr(d, f) for d in runs]) for f in ("mean", "mc_se", "bias"))
    assert part.square().mean().sqrt().item() == pytest.approx(mean.std().item(), rel=0.3)
    assert all(d.se > d.mc_se for d in runs), "it is contained in the whole"
    known = (LG.log_marginal(data) - other.log_marginal(data)).mean().item()
    assert (mean - bias).mean().item() == pytest.approx(known, abs=4 * mean.std().item() / 60**0.5)


def test_ranks_are_by_mean_and_any_two_can_be_asked_for() -> None:
    data = LG.sample(200, seed=6)
    models = {"shifted": moved(0.3), "true": LG, "wide": OTHERS["wide"]}
    found = compare({n: exact(m, data) for n, m in models.items()})
    assert found.names == ("true", "wide", "shifted") and found.best == "true" and found.warnings == ()
    assert list(found.differences) == ["wide", "shifted"]
    assert all(d.mean < 0 and d.b == "true" for d in found.differences.values())
    there, back = found.difference("wide", "shifted"), found.difference("shifted", "wide")
    assert there.mean == -back.mean > 0 and there.se == back.se and there.z == -back.z and there.p == back.p
    assert found.difference("wide", "wide").mean == 0 and found.difference("wide", "wide").p == 1
    with pytest.raises(ValueError, match=r"no model 'other' in this comparison; it has \['true', 'wide', 'shifted'\]"):
        found.difference("true", "other")


def test_conditionals_compare_too() -> None:
    data = LG.sample(100, seed=7)
    ev = {
        n: log_conditional(m.model(), guide("poe", m), data, "a", "b", 500, seed=i)
        for i, (n, m) in enumerate({"true": LG, "shifted": moved(0.2)}.items())
    }
    d = compare(ev).difference("true", "shifted")
    known = (LG.log_conditional(data, "a", "b") - moved(0.2).log_conditional(data, "a", "b")).mean().item()
    assert d.mean == pytest.approx(known, abs=4 * d.mc_se) and compare(ev).quantity == "log p(a | b)"


def test_unreliable_rows_that_decide_are_reported() -> None:
    """`b` wins by ten rows whose k-hat cannot be trusted; on all others `a` does."""
    a, up = torch.randn(100).double(), torch.full((100,), -0.1).double() + 0.01 * torch.randn(100)
    up[:10] = 3.0
    bad = torch.where(torch.arange(100) < 10, 0.9, 0.1)
    found = compare({"a": made(a), "b": made(a + up, khat=bad), "c": made(a - 1)})
    d = found.difference("b", "a")
    assert found.best == "b" and d.decided_by_unreliable and d.unreliable_share == pytest.approx(0.1)
    assert d.reliable_mean == pytest.approx(up[10:].mean().item()) and d.reliable_se < d.se
    (warning,) = found.warnings
    assert warning.startswith("'b' over 'a' rests on the 10.0% of rows with an unreliable k-hat (all: +0.21")
    assert f"warning: {warning}" in repr(found) and found.summary()["warnings"] == [warning]
    assert not compare({"a": made(a), "b": made(a + up)}).warnings, "the same numbers, to be believed"
    assert not compare({"a": made(a), "b": made(a + up.abs() + 1, khat=bad)}).warnings, "with or without those rows"


def test_significance_that_rests_on_unreliable_rows_is_reported() -> None:
    a, up = torch.randn(100).double(), torch.cat([torch.full((20,), 2.0), torch.tensor([1.0, -0.99]).repeat(40)])
    bad = torch.where(torch.arange(100) < 20, 0.9, 0.1)
    d = compare({"a": made(a), "b": made(a + up, khat=bad)}).difference("b", "a")
    assert d.z > 3 and 0 < d.reliable_mean < d.reliable_se and d.decided_by_unreliable
    every = compare({"a": made(a), "b": made(a + up, khat=bad + 1)})
    assert every.difference("b", "a").unreliable_share == 1 and "others: there are no others" in every.warnings[0]


def test_what_cannot_be_compared_is_named() -> None:
    rows = torch.zeros(5).double()
    one = made(rows)
    with pytest.raises(ValueError, match=r"at least two models, got \['a'\]"):
        compare({"a": one})
    with pytest.raises(ValueError, match=r"different numbers of rows: \{'a': 5, 'b': 4\}"):
        compare({"a": one, "b": made(rows[:4])})
    with pytest.raises(ValueError, match=r"different quantities: \{'a': 'log p\(a, b, c\)', 'b': 'log p\(a\)'\}"):
        compare({"a": one, "b": made(rows, quantity="log p(a)")})
    for value, text in ((torch.nan, "nan"), (-torch.inf, "-inf")):
        broken = rows.clone()
        broken[[2, 4]] = value
        with pytest.raises(ValueError, match=rf"model 'b'.*not finite in 2 of 5 rows, the first being row 2 \({text}"):
            compare({"a": one, "b": made(broken)})
    with pytest.raises(TypeError, match="the result of model 'b' is a dict, not an Evidence"):
        compare({"a": one, "b": one.summary()})  # type: ignore[dict-item]


def test_the_table_and_the_summary() -> None:
    data = LG.sample(200, seed=6)
    found = compare({n: exact(m, data) for n, m in {"shifted": moved(0.3), "true": LG}.items()})
    d = found.differences["shifted"]
    head, _, columns, first, second = repr(found).splitlines()
    assert head == "log p(a, b, c): 200 rows, nats per row; differences are to the best"
    assert columns.split() == ["mean", "se", "MC", "se", "unreliable", "difference", "se", "MC", "se", "z", "p"]
    assert first.split() == ["true", f"{LG.log_marginal(data).mean():.3f}", f"{first.split()[2]}", "0.0000", "0.0%"]
    assert second.split()[0] == "shifted" and second.split()[5:] == [
        f"{d.mean:+.3f}", f"{d.se:.3f}", "0.0000", f"{d.z:+.1f}", f"{d.p:.2g}",
    ]  # fmt: skip
    assert repr(d).startswith(f"shifted - true = {d.mean:+.3f} +- {d.se:.3f} nats per row (MC 0.000; N=200, z=")
    read = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert list(read["models"]) == ["true", "shifted"] and read["n"] == 200 and read["quantity"] == found.quantity
    assert read["differences"]["shifted"]["mean"] == d.mean and read["differences"]["shifted"]["p"] == d.p


def test_a_difference_without_error_is_certain() -> None:
    rows = torch.arange(5).double()
    d = compare({"a": made(rows), "b": made(rows - 1)}).difference("a", "b")
    assert (d.mean, d.se, d.z, d.p) == (1, 0, torch.inf, 0) and d.summary()["z"] is None
    single = compare({"a": made(rows[:1], se=torch.tensor([0.3]).double()), "b": made(rows[:1] - 1)})
    assert single.difference("a", "b").se == pytest.approx(0.3), "one row says nothing of a population"
