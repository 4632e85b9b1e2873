"""Fusion rules against densities multiplied, averaged and normalised on a grid."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.guides import (
    Experts,
    barycentre,
    mixture_of_experts,
    mixture_of_products,
    product_of_experts,
    product_of_posteriors,
)
from pyro_mm.guides.experts import opinions
from pyro_mm.guides.fusion import SYMMETRIC, Fusion, product_of_a_subset
from pyro_mm.likelihoods import Normal
from pyro_mm.modality import Modality, encoders
from tests.helpers.oracle import LG

D = torch.float64
GRID = torch.linspace(-14, 14, 5601, dtype=D)
STEP = (GRID[1] - GRID[0]).item()
RULES = [product_of_experts, product_of_posteriors, mixture_of_experts, mixture_of_products, barycentre]
PRIORS = {"standard": (0.0, 1.0), "other": (torch.tensor([0.8], dtype=D), torch.tensor([1.7], dtype=D))}
MASKS = torch.tensor(
    [[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool
)


def experts(n: int = len(MASKS), m: int = 3, dim: int = 1) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(2)
    loc = 2 * torch.randn(n, m, dim, generator=noise, dtype=D)
    return loc, 0.3 + 0.6 * torch.rand(n, m, dim, generator=noise, dtype=D)


def on_grid(q: dist.TorchDistribution) -> Tensor:
    """Density `(G, N)` of a one-dimensional result."""
    return q.expand((len(GRID), *q.batch_shape)).log_prob(GRID.view(-1, 1, 1).expand(-1, *q.batch_shape, 1)).exp()


def normal(loc: Tensor | float, scale: Tensor | float) -> Tensor:
    return torch.distributions.Normal(loc, scale, validate_args=False).log_prob(GRID).exp()


def normalised(density: Tensor) -> Tensor:
    return density / (density.sum() * STEP)


def product(loc: Tensor, scale: Tensor, members: tuple[int, ...], prior: tuple) -> Tensor:
    """Prior times the members' densities, normalised on the grid."""
    density = normal(*prior)
    for m in members:
        density = density * normal(loc[m, 0], scale[m, 0])
    return normalised(density)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_product_of_experts_is_the_normalised_product_with_the_prior(prior):
    loc, scale = experts()
    density = on_grid(product_of_experts(loc, scale, MASKS, prior))
    for n, row in enumerate(MASKS):
        truth = product(loc[n], scale[n], tuple(row.nonzero().flatten().tolist()), prior)
        torch.testing.assert_close(density[:, n], truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_mixture_of_experts_is_the_mean_of_the_present_densities(prior):
    loc, scale = experts()
    density = on_grid(mixture_of_experts(loc, scale, MASKS, prior))
    for n, row in enumerate(MASKS):
        members = row.nonzero().flatten().tolist()
        parts = [normal(loc[n, m, 0], scale[n, m, 0]) for m in members] or [normal(*prior)]
        torch.testing.assert_close(density[:, n], sum(parts) / len(parts), rtol=1e-9, atol=1e-12)


def test_mixture_of_laplace_experts():
    loc, scale = experts()
    density = on_grid(mixture_of_experts(loc, scale, MASKS, family=dist.Laplace))
    for n, row in enumerate(MASKS[:-1]):
        parts = [
            (-(GRID - loc[n, m, 0]).abs() / scale[n, m, 0]).exp() / 2 / scale[n, m, 0] for m in row.nonzero()[:, 0]
        ]
        torch.testing.assert_close(density[:, n], sum(parts) / len(parts), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_mixture_of_products_is_the_mean_over_non_empty_subsets_of_what_is_present(prior):
    loc, scale = experts()
    density = on_grid(mixture_of_products(loc, scale, MASKS, prior))
    for n, row in enumerate(MASKS):
        members = row.nonzero().flatten().tolist()
        groups = [g for r in range(1, len(members) + 1) for g in combinations(members, r)] or [()]
        truth = sum(product(loc[n], scale[n], g, prior) for g in groups) / len(groups)
        torch.testing.assert_close(density[:, n], truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_product_of_posteriors_divides_the_prior_out_of_every_expert(prior):
    """p(z) prod_m q_m(z) / p(z), where every q_m is narrower than the prior."""
    loc, scale = experts()
    density = on_grid(product_of_posteriors(loc, scale, MASKS, prior))
    for n, row in enumerate(MASKS):
        truth = normal(*prior)
        for m in row.nonzero().flatten().tolist():
            truth = truth * normal(loc[n, m, 0], scale[n, m, 0]) / normal(*prior)
        torch.testing.assert_close(density[:, n], normalised(truth), rtol=1e-8, atol=1e-11)


def test_product_of_posteriors_is_exact_when_each_expert_is_an_exact_diagonal_posterior():
    """A linear-Gaussian model with orthogonal columns: its posteriors are diagonal, and their fusion is exact."""
    lg = LG({"a": 4, "b": 3, "c": 2}, latent=2)
    for m, w in lg.w.items():
        q, _ = torch.linalg.qr(w)
        lg.w[m] = q * torch.tensor([0.5, 1.5], dtype=D)
    batch = lg.data(10, missing=True)
    single = [lg.posterior(batch.only(m)) for m in lg.dims]
    loc = torch.stack([mean for mean, _ in single], -2)
    scale = torch.stack([cov.diagonal(dim1=-1, dim2=-2).sqrt() for _, cov in single], -2)
    q = product_of_posteriors(loc, scale, torch.stack(list(batch.mask.values()), -1))
    mean, cov = lg.posterior(batch)
    torch.testing.assert_close(q.base_dist.loc, mean)
    torch.testing.assert_close(torch.diag_embed(q.base_dist.scale**2), cov, atol=1e-12, rtol=1e-9)


def test_product_of_posteriors_returns_a_single_expert_even_when_it_is_wider_than_the_prior():
    loc, scale = torch.tensor([[[0.4], [1.0]]], dtype=D), torch.tensor([[[1.6], [0.5]]], dtype=D)
    one = product_of_posteriors(loc, scale, torch.tensor([[True, False]]))
    assert (one.base_dist.loc.item(), one.base_dist.scale.item()) == (0.4, 1.6)
    # Beside another it adds nothing: the result is the other expert.
    both = product_of_posteriors(loc, scale, torch.tensor([[True, True]]))
    assert both.base_dist.loc.item() == pytest.approx(1.0)
    assert both.base_dist.scale.item() == pytest.approx(0.5)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_barycentre_averages_means_and_standard_deviations(prior):
    """Of Gaussians on the line it minimises the mean squared Wasserstein distance, found here by its gradient."""
    loc, scale = experts()
    q = barycentre(loc, scale, MASKS, prior)
    for n, row in enumerate(MASKS[:-1]):
        a = q.base_dist.loc[n].clone().requires_grad_()
        b = q.base_dist.scale[n].clone().requires_grad_()
        distance = ((a - loc[n, row]) ** 2 + (b - scale[n, row]) ** 2).sum()
        for gradient in torch.autograd.grad(distance, [a, b]):
            torch.testing.assert_close(gradient, torch.zeros(1, dtype=D), atol=1e-12, rtol=0)
    assert q.base_dist.loc[-1].item() == pytest.approx(float(prior[0]))
    assert q.base_dist.scale[-1].item() == pytest.approx(float(prior[1]))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_every_density_integrates_to_one(rule):
    density = on_grid(rule(*experts(), MASKS))
    torch.testing.assert_close(density.sum(0) * STEP, torch.ones(len(MASKS), dtype=D), rtol=1e-9, atol=0)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_nothing_present_is_exactly_the_standard_normal(rule):
    loc, scale = experts(dim=3)
    q = rule(loc, scale, torch.zeros(len(loc), 3, dtype=torch.bool))
    z = torch.randn(len(loc), 3, dtype=D)
    assert torch.equal(q.log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_nothing_present_is_a_prior_of_any_location_and_scale(rule):
    loc, scale = experts(dim=3)
    prior = torch.tensor([0.3, -1.0, 2.0], dtype=D), torch.tensor([0.7, 1.3, 2.1], dtype=D)
    q = rule(loc, scale, torch.zeros(len(loc), 3, dtype=torch.bool), prior=prior)
    z = torch.randn(len(loc), 3, dtype=D)
    truth = torch.distributions.Normal(*prior).log_prob(z).sum(-1)
    torch.testing.assert_close(q.log_prob(z), truth, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_the_order_of_modalities_is_irrelevant(rule):
    loc, scale = experts(dim=2)
    z = torch.randn(len(loc), 2, dtype=D)
    here = rule(loc, scale, MASKS).log_prob(z)
    for order in ([2, 0, 1], [1, 0, 2]):
        there = rule(loc[:, order], scale[:, order], MASKS[:, order]).log_prob(z)
        torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_an_absent_expert_is_no_expert(rule):
    """Three experts, one absent everywhere, are two experts."""
    loc, scale = experts(dim=2)
    mask = MASKS.clone()
    mask[:, 1] = False
    z = torch.randn(len(loc), 2, dtype=D)
    two = rule(loc[:, [0, 2]], scale[:, [0, 2]], mask[:, [0, 2]]).log_prob(z)
    torch.testing.assert_close(rule(loc, scale, mask).log_prob(z), two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e300, 0.0], ids=str)
@pytest.mark.parametrize(
    "rule", [*RULES, partial(mixture_of_experts, family=dist.Laplace)], ids=[*(r.__name__ for r in RULES), "laplace"]
)
def test_absent_experts_leak_neither_values_nor_gradients(rule, junk):
    gradients = gradients_beside_junk(rule, junk, 2)
    for gradient in gradients:
        assert (gradient.masked_select(MASKS.unsqueeze(-1).expand_as(gradient)) != 0).any()


def gradients_beside_junk(rule, junk, dim):
    """Those of density and draw for loc and scale, after asserting that what absent experts hold changes nothing."""
    loc, scale = experts(dim=dim)
    seen, z, found = MASKS.unsqueeze(-1), torch.randn(len(loc), dim, dtype=D), []
    for a, b in ((loc, scale), (torch.where(seen, loc, junk), torch.where(seen, scale, junk))):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        q = rule(a, b, MASKS)
        torch.manual_seed(0)
        draw = q.rsample()
        value = q.log_prob(z) + q.log_prob(draw) + draw.sum(-1)
        found.append((value.detach(), draw.detach(), *torch.autograd.grad(value.sum(), [a, b])))
    for clean, dirty in zip(*found, strict=True):
        assert torch.equal(clean, dirty)
    for gradient in found[1][2:]:
        assert torch.isfinite(gradient).all()
        assert (gradient.masked_select(~seen) == 0).all()
    return found[1][2:]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_stacked_views_are_the_single_views(rule):
    """Masks `(S, N, M)` on experts `(N, M, D)` give batch shape `(S, N)`, view by view."""
    loc, scale = experts(dim=2)
    views = torch.stack([MASKS, MASKS.flip(0), torch.zeros_like(MASKS)])
    q = rule(loc, scale, views)
    assert q.batch_shape == (3, len(loc))
    z = torch.randn(3, len(loc), 2, dtype=D)
    for s in range(3):
        torch.testing.assert_close(q.log_prob(z)[s], rule(loc, scale, views[s]).log_prob(z[s]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_gradients_of_the_prior_flow_when_it_is_learnt(rule):
    """With nothing present the result is the prior, so its gradient is the prior's; against the prior's own."""
    loc, scale = experts(n=2, dim=1)
    shift, spread = torch.tensor([0.3], dtype=D).requires_grad_(), torch.tensor([1.2], dtype=D).requires_grad_()
    z = torch.tensor([[0.5], [-1.0]], dtype=D)
    q = rule(loc, scale, torch.zeros(2, 3, dtype=torch.bool), prior=(shift, spread))
    found = torch.autograd.grad(q.log_prob(z).sum(), [shift, spread])
    truth = torch.autograd.grad(torch.distributions.Normal(shift, spread).log_prob(z).sum(), [shift, spread])
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other)


def test_the_cached_subsets_survive_inference_mode():
    from pyro_mm.guides import fusion

    fusion.membership.cache_clear()
    with torch.inference_mode():
        mixture_of_products(*experts(dim=2), MASKS)
    loc, scale = (v.requires_grad_() for v in experts(dim=2))
    mixture_of_products(loc, scale, MASKS).log_prob(torch.zeros(2, dtype=D)).sum().backward()
    assert torch.isfinite(loc.grad).all()


@pytest.mark.parametrize("fuse", sorted(SYMMETRIC, key=lambda f: f.__name__))
def test_experts_hidden_in_every_row_are_left_out_and_nothing_changes(fuse: Fusion) -> None:
    """The posterior is that of a rule that is told of all, and the rule sees two of four."""
    torch.manual_seed(0)
    modalities = [Modality(m, (3,), Normal()) for m in "abcd"]
    told: list[int] = []

    def counting(loc: Tensor, scale: Tensor, mask: Tensor) -> Any:
        told.append(mask.shape[-1])
        return fuse(loc, scale, mask)

    few = Experts(encoders(modalities, 2), fuse)
    all_told = Experts(few.encoders, counting)
    mask = torch.tensor([[True, True, False, False], [True, False, True, False]])
    batch = Batch({m: torch.randn(4, 3) for m in "abcd"}, {"b": mask[0], "d": mask[1]}).only("b", "d")
    torch.manual_seed(1)
    one = few.posterior(batch)
    torch.manual_seed(1)
    other = all_told.posterior(batch)
    assert told == [4]
    if fuse is not product_of_a_subset:  # which is drawn at random
        z = torch.randn(5, 4, 2)
        torch.testing.assert_close(one.log_prob(z), other.log_prob(z))
    loc, _, seen = opinions(few.encoders, batch, blanks=False)
    assert loc.shape == (4, 2, 2) and seen.shape == (4, 2)
    nothing = few.posterior(batch.only("a").only("b"))
    torch.testing.assert_close(nothing.mean, torch.zeros(4, 2))
