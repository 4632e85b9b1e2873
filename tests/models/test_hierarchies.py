"""Hierarchies and private latents against exact answers: likelihoods, conditionals, bounds, and what may not leak."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation import generate, log_conditional, log_conditional_difference, log_marginal, sandwich
from pyro_mm.guides import (
    BottomUp,
    Evidences,
    Experts,
    Messages,
    PrivateExperts,
    TopDown,
    product_of_experts,
    shared_given,
)
from pyro_mm.handlers import given, in_subsets, particles
from pyro_mm.links import Link
from pyro_mm.modality import decoders, encoders
from pyro_mm.models import Hierarchical, Private
from pyro_mm.networks import Linear
from pyro_mm.objectives import elbo
from pyro_mm.weights import log_weights, run, run_pair, total_log_weight
from tests.helpers.hierarchies import Graph, graph_of, hidden, modalities, randomise, three_levels, trained, two_levels

SIZES = {"a": 4, "b": 3, "c": 3}
CODE = 3


class Case:
    """A linear-Gaussian model, a guide trained on it with missing rows, exact densities and test rows."""

    def __init__(self, model: Hierarchical | Private, guide: nn.Module, steps: int = 400) -> None:
        self.model, self.guide, self.graph = model, guide.double(), graph_of(model)
        model.requires_grad_(False)
        trained(elbo(model, guide), hidden(self.graph.sample(4000, 1), 2, 0.2), steps)
        self.guide.eval()
        self.data = hidden(self.graph.sample(120, 3), 4)


def bottom_up(model: Hierarchical, depth: int = 1) -> BottomUp:
    chains = {m: [e, *(Link(CODE, CODE, Linear()) for _ in range(depth - 1))] for m, e in
              encoders(modalities(SIZES), CODE).items()}  # fmt: skip
    return BottomUp(chains, Experts({m: Link(CODE, 2, Linear()) for m in SIZES}, product_of_experts))


def private_model() -> Private:
    torch.manual_seed(0)
    own = {"a": 2, "b": 1}
    model = Private(decoders(modalities(SIZES), {"a": 4, "b": 3, "c": 2}), own, 2).double()
    randomise(model, 5)
    return model


@cache
def case(kind: str) -> Case:
    torch.manual_seed(1)
    if kind == "two levels, bottom up":
        model = two_levels(SIZES)
        return Case(model, bottom_up(model))
    if kind == "three levels, bottom up":
        model = two_levels(SIZES, depth=2)
        return Case(model, bottom_up(model, 2))
    if kind == "two levels, top down":
        model = two_levels(SIZES)
        evidences = {m.name: Evidences(m, (2,), 8, Linear()) for m in modalities(SIZES)}
        guide = TopDown(model, evidences, encoders(modalities(SIZES), CODE))
        guide.double()
        return Case(model, guide)
    if kind == "three levels, top down":
        model = three_levels(SIZES)
        guide = TopDown(model, {m.name: Evidences(m, (2, 2, 3), 8, Linear()) for m in modalities(SIZES)})
        return Case(model, guide)
    model = private_model()
    experts = Experts(encoders(modalities(SIZES), 2), product_of_experts)
    return Case(model, PrivateExperts(experts, encoders(modalities({"a": 4, "b": 3}), {"a": 2, "b": 1})))


KINDS = [
    "two levels, bottom up",
    "three levels, bottom up",
    "two levels, top down",
    "three levels, top down",
    "private",
]


def test_the_oracle_agrees_with_sampling() -> None:
    """Moments of the programs' own simulations against the graph's, so that one cannot hide an error of the other."""
    for model in (two_levels(SIZES, depth=2), three_levels(SIZES), private_model()):
        graph: Graph = graph_of(model)
        torch.manual_seed(0)
        nothing = Batch(graph.sample(1, 0).x, {m: torch.ones(1, dtype=torch.bool) for m in SIZES})
        made = generate(model, lambda batch: None, nothing.without(*SIZES), 200_000, seed=0)
        for m in SIZES:
            x = made[m].sample()[:, 0]
            covariance = graph.loading[m] @ graph.loading[m].T
            torch.testing.assert_close(x.mean(0), graph.mean[m], rtol=0.02, atol=0.03)
            torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0.03, atol=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_exact_by_default(kind: str) -> None:
    """Rows missing anything: the default estimate is within 0.05 nat on average, and no row is far beyond its error."""
    c = case(kind)
    ev = log_marginal(c.model, c.guide, c.data, 1000, seed=0)
    assert "Laplace" in ev.proposal or "gradient" in ev.proposal
    error = ev.estimate - c.graph.log_marginal(c.data)
    assert error.abs().mean().item() < 0.05
    assert error.abs().max().item() < 0.3
    assert (error.abs() < 4 * ev.se + 1e-6).double().mean().item() > 0.98
    nothing = ~c.data.present()
    assert bool(nothing.any()) and error[nothing].abs().max().item() < 1e-9
    assert ev.khat[~nothing].median().item() < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_conditionals_are_exact_by_default(kind: str) -> None:
    c = case(kind)
    full = Batch(c.data.x, {m: v.clone() for m, v in c.data.mask.items()})
    exact = c.graph.log_marginal(full) - c.graph.log_marginal(full.only("b", "c"))
    ev = log_conditional(c.model, c.guide, full, "a", ("b", "c"), 1000, seed=0)
    assert ev.proposal.startswith("shared: ")
    error = ev.estimate - exact
    assert error.abs().mean().item() < 0.05
    assert (error.abs() < 4 * ev.se + 1e-6).double().mean().item() > 0.97
    other = log_conditional_difference(c.model, c.guide, full, "a", ("b", "c"), 1000, refine=True, seed=0)
    assert (other.estimate - exact).abs().mean().item() < 0.07


@pytest.mark.parametrize("kind", ["two levels, bottom up", "private"])
def test_the_shared_conditional_is_right_without_refinement_and_with_its_own_parts(kind: str) -> None:
    """The component that is blind to a's latents draws them from the model, and says so in its density."""
    c = case(kind)
    exact = c.graph.log_marginal(c.data) - c.graph.log_marginal(c.data.only("b"))
    ev = log_conditional(c.model, c.guide, c.data, ("a", "c"), "b", 8000, refine=False, independent=True, seed=1)
    fine = ev.reliable
    assert fine.double().mean().item() > 0.5
    assert (ev.estimate - exact)[fine].abs().mean().item() < 0.05


def test_plain_importance_sampling_says_that_it_fails_where_it_does() -> None:
    """Why refinement is the default here: the amortised bottom-up guide of a narrow hierarchy needs far more draws."""
    torch.manual_seed(0)
    model = two_levels(SIZES)
    guide = bottom_up(model)
    c = Case(model, guide, steps=60)  # barely trained
    plain = log_marginal(c.model, c.guide, c.data, 1000, refine=False, seed=0)
    refined = log_marginal(c.model, c.guide, c.data, 1000, seed=0)
    exact = c.graph.log_marginal(c.data)
    assert (refined.estimate - exact).abs().mean().item() < 0.05
    assert refined.ess.median().item() > 5 * plain.ess.median().item()
    assert (plain.khat > 0.7).double().mean().item() > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_elbo_is_below_and_iwae_between(kind: str) -> None:
    c = case(kind)
    torch.manual_seed(0)
    with torch.no_grad():
        log_w = log_weights(c.model, c.guide, c.data, 4000)
    exact = c.graph.log_marginal(c.data)
    bound, sd = log_w.mean(0), log_w.std(0) / 4000**0.5
    iwae = torch.logsumexp(log_w.view(400, 10, -1), 1) - torch.tensor(10.0).log()
    assert bool((bound - 4 * sd <= exact).all())
    assert bool((bound <= iwae.mean(0) + 1e-6).all())
    assert bool((iwae.mean(0) - 4 * iwae.std(0) / 20 <= exact).all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_sandwich_encloses(kind: str) -> None:
    c = case(kind)
    found = sandwich(c.model, c.guide, c.data[:60], 300, refine=True, seed=0)
    lower, upper = found.lower.mean().item(), found.upper.mean().item()
    assert lower <= upper + 2 * found.gap_se
    assert upper - lower < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_cross_generation_has_the_exact_mean_and_nothing_leaks(kind: str) -> None:
    """E[x_a | x_b, x_c] of the exact guide's limit is not known for an amortised one; but a's data must not matter."""
    c = case(kind)
    other = Batch({**c.data.x, "a": c.data.x["a"] + 100.0}, c.data.mask)
    one = generate(c.model, c.guide, c.data.only("b", "c"), 50, seed=0)
    two = generate(c.model, c.guide, other.only("b", "c"), 50, seed=0)
    for m in SIZES:
        assert torch.equal(one[m].mean, two[m].mean)


def test_cross_generation_is_analytic_in_the_limit() -> None:
    """E[x_a | x_b, x_c] from the guide's draws, weighted, with hidden latents from the model: the Gaussian answer."""
    c = case("two levels, top down")
    data = Batch(c.graph.sample(40, 7).x)
    torch.manual_seed(0)
    with torch.no_grad():
        pair = run_pair(particles(c.model, 20_000), particles(c.guide, 20_000), data.only("b", "c"))
        weights = total_log_weight(pair).softmax(0).unsqueeze(-1)
    made = (weights * pair.model["a"].fn.mean.squeeze(1)).sum(0)
    seen = torch.cat([c.graph.loading[m] for m in ("b", "c")])
    x = torch.cat([data.x[m] - c.graph.mean[m] for m in ("b", "c")], -1)
    gain = c.graph.loading["a"] @ seen.T @ torch.linalg.inv(seen @ seen.T)
    exact = c.graph.mean["a"] + x @ gain.T
    assert (made - exact).abs().median().item() < 0.05 * exact.std().item()


def test_means_are_taken_of_hidden_latents_only() -> None:
    c = case("two levels, bottom up")
    seen = c.data.only("b")
    drawn = generate(c.model, c.guide, seen, 1, seed=0, means=("z_a",))["a"].mean[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = generate(c.model, c.guide, seen, 200, seed=3, means=("z_a", "z_c", "z_b"))
    z = run(particles(c.guide, 1), seen)["z"]
    assert z.value.shape[-1] == 2 and drawn.shape == (len(seen), SIZES["a"])
    noisy = generate(c.model, c.guide, seen, 200, seed=3)
    # The mean over draws is the same, the spread smaller by that of p(z_a | z).
    w = next(m for m in c.model.decoders["a"].modules() if isinstance(m, nn.Linear)).weight
    extra = (w.square() * 0.25).sum(-1)
    spread = noisy["a"].mean.var(0) - first["a"].mean.var(0)
    torch.testing.assert_close(spread.mean(0), extra, rtol=0.25, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_subset_plate_equals_the_sum_of_terms(kind: str) -> None:
    c = case(kind)
    groups = [("a", "b", "c"), ("a",), ("b", "c")]
    torch.manual_seed(0)
    with torch.no_grad():
        plate = elbo(in_subsets(c.model, groups), in_subsets(c.guide, groups))
        apart = [elbo(given(c.model, *g), given(c.guide, *g)) for g in groups]
        one = torch.stack([plate(c.data) for _ in range(60)])
        two = torch.stack([sum(term(c.data) for term in apart) for _ in range(60)])
    se = (one.var() / 60 + two.var() / 60).sqrt()
    assert abs((one.mean() - two.mean()).item()) < 4 * se.item()
    assert se.item() < 0.01 * two.mean().item()


def test_cross_terms_draw_hidden_private_latents_from_the_model() -> None:
    """E log-weight of elbo(given(model, a), given(guide, b)) is a bound on log p(x_a), w_a being the model's own."""
    c = case("private")
    data = Batch(c.graph.sample(100, 8).x)
    torch.manual_seed(0)
    with torch.no_grad():
        bound = -elbo(given(c.model, "a"), given(c.guide, "b"), particles=200)(data)
        log_w = log_weights(given(c.model, "a"), given(c.guide, "b"), data, 20_000)
    exact = c.graph.log_marginal(data.only("a"))
    estimate = torch.logsumexp(log_w, 0) - torch.tensor(20_000.0).log()
    assert bound.item() < exact.mean().item()
    assert abs((estimate - exact).median().item()) < 0.2  # 20,000 draws of a guide that has not seen a


def test_shared_given_hides_from_z_alone() -> None:
    c = case("private")
    torch.manual_seed(0)
    one = run(shared_given(c.guide, "b"), c.data)
    torch.manual_seed(0)
    two = run(c.guide, c.data)
    torch.manual_seed(0)
    alone = run(given(c.guide, "b"), c.data)
    torch.testing.assert_close(one["z"].fn.base_dist.loc, alone["z"].fn.base_dist.loc)
    torch.testing.assert_close(one["w_a"].fn.base_dist.loc, two["w_a"].fn.base_dist.loc)
    assert torch.equal(one["w_a"].mask, c.data.mask["a"]) and not bool(alone["w_a"].mask.any())
    with pytest.raises(TypeError, match="PrivateExperts"):
        shared_given(Experts(encoders(modalities(SIZES), 2), product_of_experts), "a")  # type: ignore[arg-type]


def test_messages_of_what_is_missing_do_not_count() -> None:
    torch.manual_seed(0)
    top = Messages(dict.fromkeys(SIZES, CODE), 2, 8, Linear()).double()
    data = hidden(Batch({m: torch.randn(200, CODE, dtype=torch.float64) for m in SIZES}), 1)
    other = Batch._view({m: torch.where(data.mask[m].unsqueeze(-1), v, 1e6) for m, v in data.x.items()}, data.mask)
    q, p = top.posterior(data).base_dist, top.posterior(other).base_dist
    assert torch.equal(q.loc, p.loc) and torch.equal(q.scale, p.scale)
    nothing = ~data.present()
    assert bool(nothing.any()) and torch.equal(q.loc[nothing], torch.zeros_like(q.loc[nothing]))
    # By hand: the mean of what is present.
    row = int((~nothing).nonzero()[0])
    sent = [top.senders[m](data.x[m][row]) for m in SIZES if bool(data.mask[m][row])]
    torch.testing.assert_close(q.loc[row], top.head(torch.stack(sent).mean(0)).base_dist.loc)


def test_branches_for_unknown_modalities_are_refused() -> None:
    with pytest.raises(ValueError, match="branches for \\['x'\\]"):
        Hierarchical(decoders(modalities(SIZES), 2), {"x": Link(2, 2, Linear())}, 2)
    with pytest.raises(ValueError, match="private latents for \\['x'\\]"):
        Private(decoders(modalities(SIZES), 2), {"x": 2}, 2)
