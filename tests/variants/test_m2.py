"""M2 against exact values: linear-Gaussian given the class, so that the class is a mixture of Gaussians' component."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn.functional import one_hot

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import (
    classify,
    classify_plug_in,
    encode,
    generate,
    log_conditional,
    log_marginal,
    plug_in,
    sandwich,
)
from pyro_mm.likelihoods import Categorical, Normal
from pyro_mm.modality import Modality
from pyro_mm.networks import Linear
from pyro_mm.recipe import Recipe

N, C, D = 60, 3, 2
SIZES = {"a": 3, "b": 2}


@cache
def case() -> tuple[Recipe, Batch]:
    """A guide trained on rows of an exact model, some of which lack their label, a modality, or both."""
    torch.manual_seed(0)
    modalities = [Modality(m, (d,), Normal(0.5), Linear()) for m, d in SIZES.items()]
    recipe = variants.m2([*modalities, Modality("label", (), Categorical(C))], D, width=16)
    for module in (*recipe.modules.values(), recipe.objective):
        module.double()
    with torch.no_grad():
        for p in recipe.model.parameters():
            p.copy_(0.7 * torch.randn_like(p))
    recipe.model.requires_grad_(False)
    data = drawn(recipe, 1000)
    optimiser = torch.optim.Adam([p for p in recipe.objective.parameters() if p.requires_grad], 1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        recipe.objective(data[torch.randint(1000, (100,))]).backward()
        optimiser.step()
    return recipe, drawn(recipe, N)


def drawn(recipe: Recipe, n: int) -> Batch:
    c, z = torch.randint(C, (n,)), torch.randn(n, D).double()
    both = torch.cat([z, one_hot(c, C).double()], -1)
    x = {m: recipe.model.decoders[m](both).sample() for m in SIZES}
    masks = {m: torch.rand(n) > 0.3 for m in (*SIZES, "label")}
    return Batch({**x, "label": c}, masks)


def of_class(recipe: Recipe, batch: Batch, c: int) -> Tensor:
    """log p(c, what is present of a and b) of every row."""
    out = []
    for i in range(len(batch)):
        seen = [m for m in SIZES if batch.mask[m][i]]
        if not seen:
            out.append(torch.zeros((), dtype=torch.float64))
            continue
        chosen = one_hot(torch.tensor(c), C).double()
        at = [torch.zeros(D).double(), *torch.eye(D).double()]
        means = [torch.cat([recipe.model.decoders[m](torch.cat([z, chosen])).mean for m in seen]) for z in at]
        w = torch.stack([m - means[0] for m in means[1:]], 1)
        cov = w @ w.T + 0.25 * torch.eye(len(w)).double()
        out.append(MultivariateNormal(means[0], cov).log_prob(torch.cat([batch.x[m][i] for m in seen])))
    return torch.stack(out) - torch.tensor(float(C)).log()


def exact(recipe: Recipe, batch: Batch) -> Tensor:
    parts = torch.stack([of_class(recipe, batch, c) for c in range(C)], -1)
    told = parts.gather(-1, batch.x["label"].unsqueeze(-1)).squeeze(-1)
    return torch.where(batch.mask["label"], told, parts.logsumexp(-1))


@pytest.mark.parametrize("names", [("a", "b", "label"), ("a", "b"), ("a", "label"), ("b",), ("label",)])
def test_likelihoods_of_every_kind_of_row(names: Sequence[str]) -> None:
    recipe, batch = case()
    shown = batch.only(*names)
    ev = log_marginal(recipe.model, recipe.guide, shown, 3000, seed=1)
    error = ev.estimate - exact(recipe, shown)
    moves = ev.se > 1e-6
    assert error[~moves].abs().max().item() < 1e-6 if bool((~moves).any()) else True
    assert abs(error.mean().item()) < 0.01
    assert bool((error[moves].abs() < 4.5 * ev.se[moves]).all())


def test_the_class_is_inferred_exactly() -> None:
    recipe, batch = case()
    whole = Batch(batch.x)
    p = classify(recipe.model, recipe.guide, whole, "label", ("a", "b"), 20_000, refine=True, seed=1)
    wanted = torch.stack([of_class(recipe, whole, c) for c in range(C)], -1).softmax(-1)
    torch.testing.assert_close(p, wanted, atol=0.02, rtol=0)
    ev = log_conditional(recipe.model, recipe.guide, whole, "label", ("a", "b"), 3000, seed=1)
    truth = wanted.gather(-1, whole.x["label"].unsqueeze(-1)).squeeze(-1).log()
    assert bool(((ev.estimate - truth).abs() < 4.5 * ev.se + 1e-3).all())
    assert ev.proposal.startswith("shared")


def test_both_ends_meet() -> None:
    recipe, batch = case()
    found = sandwich(recipe.model, recipe.guide, batch, 500, seed=2)
    assert found.gap < 0.02


def test_the_objective_is_the_published_one() -> None:
    """L(x, c) of labelled rows, sum_c q(c|x) L(x, c) + H(q(c|x)) of others, alpha log q(c|x) of labelled ones."""
    recipe, batch = case()
    guide, rows = recipe.guide, batch.present(SIZES)
    batch = batch[rows]  # a row without a or b has no classifier's opinion
    q = guide.logits(batch).softmax(-1).detach()

    def bound() -> Tensor:
        each = []
        for c in range(C):
            told = Batch(
                {**batch.x, "label": torch.full((len(batch),), c)}, {**batch.mask, "label": torch.ones(len(batch)) > 0}
            )
            _, loc, scale = guide.experts_of(told)
            z = torch.distributions.Independent(torch.distributions.Normal(loc[:, c], scale[:, c]), 1)
            prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(D).double(), 1.0), 1)
            both = torch.cat([z.sample(), one_hot(told.x["label"], C).double()], -1)
            log_p = -kl_divergence(z, prior.expand(z.batch_shape)) - torch.tensor(float(C)).log()
            for m in SIZES:
                log_p = log_p + torch.where(batch.mask[m], recipe.model.decoders[m](both).log_prob(batch.x[m]), 0.0)
            each.append(log_p)
        of = torch.stack(each, -1)
        known = batch.mask["label"]
        labelled = of.gather(-1, batch.x["label"].unsqueeze(-1)).squeeze(-1)
        classifier = 10.0 * q.gather(-1, batch.x["label"].unsqueeze(-1)).squeeze(-1).log()
        unlabelled = (q * (of - q.log())).sum(-1)
        return -torch.where(known, labelled + classifier, unlabelled).mean()

    with torch.no_grad():
        ours = torch.stack([recipe.objective(batch) for _ in range(300)])
        theirs = torch.stack([bound() for _ in range(300)])
    se = ((ours.var() + theirs.var()) / 300).sqrt().item()
    assert abs((ours.mean() - theirs.mean()).item()) < 4 * se
    assert se < 0.02 * abs(theirs.mean().item())


def test_its_bound_is_one() -> None:
    recipe, batch = case()
    with torch.no_grad():
        bound = -torch.stack([recipe.objective.terms[0](batch) for _ in range(50)]).mean()
    assert 0 < (exact(recipe, batch).mean() - bound).item() < 0.5


def of_draws(recipe: Recipe, rows: Batch, z: Tensor) -> Tensor:
    """p(c | z, a, b) at draws of z `(K, N, D)`: `(K, N, C)`."""
    each = []
    for c in range(C):
        chosen = one_hot(torch.tensor(c), C).double().expand(*z.shape[:-1], C)
        both = torch.cat([z, chosen], -1)
        each.append(sum(recipe.model.decoders[m](both).log_prob(rows.x[m]) for m in SIZES))
    return torch.stack(each, -1).softmax(-1)


def test_what_is_generated_belongs_to_one_class_and_to_what_was_given() -> None:
    """c ~ p(c | z, what is present): the label where it is known, and the same class for all that is generated."""
    recipe, batch = case()
    told = Batch(batch.x).only("label")
    made = generate(recipe.model, recipe.guide, told, 3, seed=0)
    assert torch.equal(made["label"].sample(), told.x["label"].expand(3, N))
    z = encode(recipe.guide, told, 3, seed=0).draws["z"]
    both = torch.cat([z, one_hot(told.x["label"], C).double().expand(3, N, C)], -1)
    for m in SIZES:
        torch.testing.assert_close(made[m].mean, recipe.model.decoders[m](both).mean)
    nothing = Batch(batch.x).only()
    labels = generate(recipe.model, recipe.guide, nothing, 500, seed=0)["label"].sample()
    assert (torch.bincount(labels.flatten(), minlength=C) / labels.numel() - 1 / C).abs().max() < 0.01


def test_the_guides_own_predictions_use_the_posterior_of_the_class() -> None:
    recipe, batch = case()
    whole, k = Batch(batch.x), 4000
    with torch.no_grad():
        q = recipe.guide.posterior(whole.only(*SIZES))
        wanted = of_draws(recipe, whole, q.sample((k,))).mean(0)
    p = classify_plug_in(recipe.model, recipe.guide, whole, "label", ("a", "b"), k, seed=1)
    torch.testing.assert_close(p, wanted, atol=0.03, rtol=0)
    labels = generate(recipe.model, recipe.guide, whole.only(*SIZES), k, seed=2)["label"].sample()
    torch.testing.assert_close(one_hot(labels, C).double().mean(0), wanted, atol=0.04, rtol=0)
    ev = plug_in(recipe.model, recipe.guide, whole, "label", ("a", "b"), k, seed=3)
    truth = wanted.gather(-1, whole.x["label"].unsqueeze(-1)).squeeze(-1).log()
    assert bool(((ev.estimate - truth).abs() < 4.5 * ev.se * 2**0.5 + 1e-3).all())


def test_what_it_needs_is_said() -> None:
    x = Modality("a", (3,), Normal())
    for wrong in ([x], [x, Modality("label", (2,), Normal())], [Modality("label", (), Categorical(3))]):
        with pytest.raises(ValueError, match="m2 needs a Categorical modality 'label' and at least one other"):
            variants.m2(wrong, 2)
