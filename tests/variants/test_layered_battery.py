"""The battery for systems with private latents or several levels: their guides trained by their own objectives on exact
linear-Gaussian models (by quadrature where priors are Laplace's or mixtures), rows missing any modality.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import generate, log_conditional, log_marginal, sandwich
from pyro_mm.networks import Linear
from pyro_mm.recipe import Recipe
from pyro_mm.storage import load, save
from tests.helpers.hierarchies import (
    Graph,
    constant_scales,
    graph_of,
    hidden,
    modalities,
    randomise,
    trained,
)

SIZES = {"a": 4, "b": 3, "c": 3}
TWO_FLOORS: dict[str, Any] = {"codes": 3, "beta": 1.0, "frozen": (), "net": Linear(), "gammas": 2.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "nexus": {**TWO_FLOORS, "optimal": (), "width": 8},
    "nexus_elbo": {"codes": 3, "beta": 1.0, "net": Linear(), "width": 8},
    "hierarchical_mvae": TWO_FLOORS,
    "hierarchical_mmvae": TWO_FLOORS,
    "muse": {"codes": 3, "net": Linear(), "gammas": 2.0},
    "mhvae_2020": {"codes": 3, "net": Linear(), "width": 8},
    "mhvae_2023": {"levels": (2, 3), "net": Linear(), "width": 8},
    "dmvae": {"private": 2},
    "mmvaeplus": {"private": 1},
    "cmvae": {"private": 1, "clusters": 3},
    "vcca_private": {"private": 2},
}
QUADRATURE = {"mmvaeplus", "cmvae"}
NAMES = list(OPTIONS)


class Case:
    """A recipe with an exact model, its guide trained by its own objective, and test rows."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        dim = 1 if name in QUADRATURE else 2
        self.recipe: Recipe = getattr(variants, name)(modalities(SIZES), dim, **OPTIONS[name])
        for module in (*self.recipe.modules.values(), self.recipe.objective):
            module.double()
        self.model, self.guide = self.recipe.model, self.recipe.guide
        randomise(self.model, 3)
        constant_scales(self.model)
        self.name, self.graph = name, None if name in QUADRATURE else graph_of(self.model)
        self.model.requires_grad_(False)
        trained(self.recipe.objective, hidden(self.sample(3000, 1), 2, 0.2), 250)
        for module in self.recipe.modules.values():
            module.eval()
        self.data = hidden(self.sample(40 if name in QUADRATURE else 100, 3), 4)

    def sample(self, n: int, seed: int) -> Batch:
        if self.graph is not None:
            return self.graph.sample(n, seed)
        nothing = Batch({m: torch.zeros(n, d).double() for m, d in SIZES.items()}).without(*SIZES)
        made = generate(self.model, lambda batch: None, nothing, 1, seed=seed)
        torch.manual_seed(seed)
        return Batch({m: made[m].sample()[0] for m in SIZES})

    def exact(self, batch: Batch) -> Tensor:
        return self.graph.log_marginal(batch) if isinstance(self.graph, Graph) else quadrature(self.model, batch)


def quadrature(model: Any, batch: Batch) -> Tensor:
    """log of the integral over z of p(z) prod_m (integral over w_m of p(w_m) p(x_m|z, w_m)), one dimension each."""
    grid = torch.linspace(-16, 16, 1001, dtype=torch.float64).unsqueeze(-1)
    step = (grid[1] - grid[0]).log()
    total = model.prior().log_prob(grid).expand(len(batch), -1).clone()
    for m, decoder in model.decoders.items():
        prior = model.private[m]().log_prob(grid)
        both = torch.cat([grid.unsqueeze(1).expand(-1, 1001, 1), grid.unsqueeze(0).expand(1001, -1, 1)], -1)
        px = decoder(both)
        for i in range(len(batch)):
            if bool(batch.mask[m][i]):
                total[i] += torch.logsumexp(px.log_prob(batch.x[m][i]) + prior, -1) + step
    return torch.where(batch.present(), torch.logsumexp(total, -1) + step, 0.0)


@cache
def case(name: str) -> Case:
    return Case(name)


@pytest.mark.parametrize("name", NAMES)
def test_likelihoods_are_exact(name: str) -> None:
    c = case(name)
    with torch.no_grad():
        exact = c.exact(c.data)
        ev = log_marginal(c.model, c.guide, c.data, 1000, seed=0)
        error = ev.estimate - exact
        assert error.abs().mean().item() < 0.05
        assert (error.abs() < 4 * ev.se + 1e-3).double().mean().item() > 0.97
        known = c.exact(c.data.only("b"))
        shared = log_conditional(c.model, c.guide, c.data, ("a", "c"), "b", 1000, seed=0)
        error = shared.estimate - (exact - known)
        assert error.abs().mean().item() < 0.06
        assert (error.abs() < 4 * shared.se + 1e-3).double().mean().item() > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_the_sandwich_encloses(name: str) -> None:
    c = case(name)
    ends = sandwich(c.model, c.guide, c.data[:40], 300, refine=True, seed=8)
    truth = c.exact(ends.data)
    n = len(truth) ** 0.5
    assert (ends.lower - truth).mean() <= 2 * (ends.lower - truth).std() / n + 1e-3
    assert (ends.upper - truth).mean() >= -2 * (ends.upper - truth).std() / n - 1e-3
    assert ends.gap < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_hidden_modality_reaches_what_is_generated(name: str) -> None:
    c = case(name)
    other = Batch({**c.data.x, "a": c.data.x["a"] + 50.0}, c.data.mask)
    means = c.recipe.means
    one = generate(c.model, c.guide, c.data.only("b"), 3, seed=0, means=means)
    two = generate(c.model, c.guide, other.only("b"), 3, seed=0, means=means)
    assert all(torch.equal(one[m].mean, two[m].mean) for m in SIZES)


@pytest.mark.parametrize("name", [*NAMES, "mfm"])
def test_a_saved_recipe_is_the_same(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    options = {k: v for k, v in OPTIONS.get(name, {}).items()}
    recipe = getattr(variants, name)(modalities(SIZES), 2, **options)
    save(recipe, tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.means == recipe.means and again.name == recipe.name
    data = Batch({m: torch.randn(6, d) for m, d in SIZES.items()})
    if name != "mfm":
        one, two = (log_marginal(r.model, r.guide, data, 20, refine=False, seed=0).estimate for r in (recipe, again))
        assert torch.equal(one, two)
    torch.manual_seed(0)
    first = generate(recipe.model, recipe.guide, data.only("a"), 2, seed=0)["b"].mean
    assert torch.equal(first, generate(again.model, again.guide, data.only("a"), 2, seed=0)["b"].mean)


@pytest.mark.parametrize("name", ["nexus", "hierarchical_mvae", "hierarchical_mmvae", "muse"])
def test_guides_of_one_hierarchy_go_on_the_models_of_another(name: str) -> None:
    """Sites z, z_a, z_b, z_c: NEXUS's messages, a product and a mixture of experts on each other's models."""
    model, c = case("nexus_elbo"), case(name)
    ev = log_marginal(model.model, c.guide, model.data, 2000, seed=0)
    error = ev.estimate - model.exact(model.data)
    assert error.abs().mean().item() < 0.1
