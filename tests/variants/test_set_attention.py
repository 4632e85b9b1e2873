"""SMVAE and the global workspace: evidence bounds of the whole and of subsets of every size."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.distributions import kl_divergence

from tests.helpers.hierarchies import hidden
from tests.variants.test_published_losses import SIZES, likelihood, made


@pytest.mark.parametrize("name", ["smvae", "global_workspace"])
def test_the_objective_is_the_bound_of_everything_and_of_random_subsets(name: str) -> None:
    recipe, batch = made(name, width=8, heads=2, k=2, beta=0.5, weights={"a": 3.0})
    batch, weights = hidden(batch, 1), {"a": 3.0, "b": 1.0, "c": 1.0}
    torch.manual_seed(3)
    loss = recipe.objective(batch)
    (term,) = recipe.objective
    groups, prior = term.guide.subsets.groups, recipe.model.prior()
    assert groups[0] == tuple(SIZES) and len(groups) == 3
    torch.manual_seed(3)
    term.guide.subsets.redraw()
    noise = torch.randn(3, 30, 2, dtype=torch.float64)
    total = torch.zeros(30, dtype=torch.float64)
    for group, eps in zip(groups, noise, strict=True):
        shown = batch.only(*group)
        q = recipe.guide.posterior(shown)
        z = q.base_dist.loc + q.base_dist.scale * eps
        for m in group:
            total = total + torch.where(batch.mask[m], weights[m] * likelihood(recipe, batch, m, z), 0.0)
        total = total - 0.5 * kl_divergence(q, prior.expand((30,)))
    torch.testing.assert_close(loss, -total.mean())


@pytest.mark.parametrize("name", ["smvae", "global_workspace"])
def test_subsets_of_every_size_are_drawn(name: str) -> None:
    recipe, _ = made(name, width=8, heads=2)
    (term,) = recipe.objective
    sizes: Counter[int] = Counter()
    for _ in range(600):
        term.guide.subsets.redraw()
        sizes[len(term.guide.subsets.groups[1])] += 1
    assert set(sizes) == {1, 2, 3} and min(sizes.values()) > 150
