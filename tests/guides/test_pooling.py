"""Pools, correlated experts and mixtures over subsets against densities multiplied and powered on a grid."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from pyro_mm.guides import (
    CorrelatedExperts,
    OverSubsets,
    WeightedProduct,
    barycentre,
    geometric_mean,
    hoelder_pooling,
    mixture_of_products,
    mixture_with_prior,
    product_of_experts,
    product_without_prior,
    weighted_product,
)
from tests.guides.test_fusion import (
    GRID,
    MASKS,
    PRIORS,
    STEP,
    D,
    experts,
    gradients_beside_junk,
    normal,
    normalised,
    on_grid,
)

WEIGHT = torch.tensor([[0.3], [0.9], [0.5]], dtype=D)
FAMILIES: dict[str, Callable[[], Callable[..., torch.distributions.Distribution]]] = {
    "weighted_product": lambda: partial(weighted_product, weight=WEIGHT),
    "product_without_prior": lambda: product_without_prior,
    "geometric_mean": lambda: geometric_mean,
    "mixture_with_prior": lambda: mixture_with_prior,
    "hoelder_pooling": lambda: hoelder_pooling,
    "correlated_experts": lambda: CorrelatedExperts(0.4),
    "barycentres": lambda: OverSubsets(barycentre),
    "consensus": lambda: OverSubsets(CorrelatedExperts(0.4)),
}
pools = pytest.mark.parametrize("name", FAMILIES)
priors = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


def members(row: Tensor) -> list[int]:
    return [int(i) for i in row.nonzero().flatten()]


def powered(loc: Tensor, scale: Tensor, powers: dict[int, float], prior: tuple, share: float) -> Tensor:
    density = normal(*prior) ** share
    for m, w in powers.items():
        density = density * normal(loc[m, 0], scale[m, 0]) ** w
    return normalised(density)


@priors
def test_weighted_product_is_the_normalised_product_of_powers(prior: tuple) -> None:
    loc, scale = experts()
    density = on_grid(weighted_product(loc, scale, MASKS, prior, WEIGHT))
    plain = on_grid(product_without_prior(loc, scale, MASKS, prior))
    for n, row in enumerate(MASKS[:-1]):
        truth = powered(loc[n], scale[n], {m: WEIGHT[m, 0].item() for m in members(row)}, prior, 0.0)
        torch.testing.assert_close(density[:, n], truth, rtol=1e-9, atol=1e-12)
        truth = powered(loc[n], scale[n], dict.fromkeys(members(row), 1.0), prior, 0.0)
        torch.testing.assert_close(plain[:, n], truth, rtol=1e-9, atol=1e-12)


def test_a_dimension_in_which_nothing_present_has_a_weight_is_the_prior() -> None:
    loc, scale = experts(dim=2)
    weight = torch.tensor([[1.0, 0.0], [0.5, 0.0], [1.0, 2.0]], dtype=D)
    q = weighted_product(loc, scale, MASKS, PRIORS["other"], weight).base_dist
    without = ~MASKS[:, 2]
    assert bool((q.scale[without, 1] == PRIORS["other"][1]).all()) and bool((q.loc[without, 1] == 0.8).all())
    torch.testing.assert_close(q.scale[~without, 1], scale[~without, 2, 1] / 2**0.5)


@priors
def test_geometric_mean_counts_the_prior_as_one_of_them(prior: tuple) -> None:
    loc, scale = experts()
    density = on_grid(geometric_mean(loc, scale, MASKS, prior))
    for n, row in enumerate(MASKS):
        share = 1.0 / (1 + len(members(row)))
        truth = powered(loc[n], scale[n], dict.fromkeys(members(row), share), prior, share)
        torch.testing.assert_close(density[:, n], truth, rtol=1e-9, atol=1e-12)


@priors
def test_mixture_with_prior_is_the_mean_of_prior_and_experts(prior: tuple) -> None:
    loc, scale = experts()
    density = on_grid(mixture_with_prior(loc, scale, MASKS, prior))
    for n, row in enumerate(MASKS):
        parts = [normal(*prior), *(normal(loc[n, m, 0], scale[n, m, 0]) for m in members(row))]
        torch.testing.assert_close(density[:, n], torch.stack(parts).mean(0), rtol=1e-9, atol=1e-12)


def test_hoelder_pooling_has_the_moments_of_the_squared_mean_of_roots() -> None:
    loc, scale = experts()
    q = hoelder_pooling(loc, scale, MASKS).base_dist
    for n, row in enumerate(MASKS[:-1]):
        roots = torch.stack([normal(loc[n, m, 0], scale[n, m, 0]).sqrt() for m in members(row)])
        pool = normalised(roots.sum(0) ** 2)
        mean = (GRID * pool).sum() * STEP
        variance = ((GRID - mean) ** 2 * pool).sum() * STEP
        torch.testing.assert_close(q.loc[n, 0], mean, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(q.scale[n, 0] ** 2, variance, rtol=1e-8, atol=0)


def test_hoelder_pooling_in_two_dimensions_is_that_of_the_joint_densities() -> None:
    """The weight of a pair is one number for all dimensions: not the pool of every dimension by itself."""
    loc, scale = experts(n=1, dim=2)
    axis = torch.linspace(-9, 9, 601, dtype=D)
    log_p = torch.distributions.Normal(loc[0, ..., None], scale[0, ..., None]).log_prob(axis)
    pool = (0.5 * (log_p[:, 0, :, None] + log_p[:, 1, None, :])).exp().sum(0) ** 2
    pool = pool / pool.sum()
    q = hoelder_pooling(loc, scale, torch.ones(1, 3, dtype=torch.bool)).base_dist
    for d, weight in enumerate((pool.sum(1), pool.sum(0))):
        mean = (axis * weight).sum()
        torch.testing.assert_close(q.loc[0, d], mean, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(q.scale[0, d] ** 2, ((axis - mean) ** 2 * weight).sum(), rtol=1e-8, atol=0)
    apart = hoelder_pooling(loc[..., :1], scale[..., :1], torch.ones(1, 3, dtype=torch.bool)).base_dist
    assert (apart.loc[0, 0] - q.loc[0, 0]).abs() > 1e-2


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_correlated_experts_are_the_generalised_least_squares_estimate(rho: float) -> None:
    """With Sigma built and inverted, for every row's own experts."""
    loc, scale = experts(dim=2)
    q = CorrelatedExperts(rho)(loc, scale, MASKS).base_dist
    for n, row in enumerate(MASKS[:-1]):
        for d in range(2):
            s, mu = scale[n, row, d], loc[n, row, d]
            r = torch.full((len(s), len(s)), rho, dtype=D).fill_diagonal_(1.0)
            inverse = torch.linalg.inv(s[:, None] * r * s)
            precision = inverse.sum()
            torch.testing.assert_close(q.scale[n, d] ** -2, precision)
            torch.testing.assert_close(q.loc[n, d], (inverse @ mu).sum() / precision)
    if rho == 0.0:
        plain = product_without_prior(loc, scale, MASKS).base_dist
        torch.testing.assert_close(q.loc, plain.loc)
        torch.testing.assert_close(q.scale, plain.scale)


def test_the_mean_of_correlated_experts_may_lie_outside_of_theirs() -> None:
    """Two experts of scales 1 and 3 with correlation 0.5: weights 15/14 and -1/14."""
    loc, scale = torch.tensor([[[0.0], [7.0]]], dtype=D), torch.tensor([[[1.0], [3.0]]], dtype=D)
    q = CorrelatedExperts(0.5)(loc, scale, torch.ones(1, 2, dtype=torch.bool)).base_dist
    assert q.loc.item() == pytest.approx(-0.5)


def test_over_subsets_of_a_product_is_the_mixture_of_products() -> None:
    loc, scale = experts(dim=2)
    z = torch.randn(len(loc), 2, dtype=D)
    ours = OverSubsets(product_of_experts)(loc, scale, MASKS).log_prob(z)
    torch.testing.assert_close(ours, mixture_of_products(loc, scale, MASKS).log_prob(z), rtol=1e-12, atol=1e-12)


class Shares(nn.Module):
    def forward(self) -> Tensor:
        return torch.tensor([0.1, 0.2, 0.05, 0.15, 0.3, 0.12, 0.08], dtype=D)


def test_over_subsets_with_shares_of_their_own() -> None:
    """sum_T pi_T rule(T) / sum_T pi_T over the subsets that are there whole; against single calls."""
    loc, scale = experts()
    rule = CorrelatedExperts(0.4)
    density = on_grid(OverSubsets(rule, Shares())(loc, scale, MASKS))
    groups = [g for r in (1, 2, 3) for g in combinations(range(3), r)]
    for n, row in enumerate(MASKS[:-1]):
        there = [(g, w.item()) for g, w in zip(groups, Shares()(), strict=True) if set(g) <= set(members(row))]
        truth = torch.zeros_like(GRID)
        for g, w in there:
            only = torch.tensor([[m in g for m in range(3)]])
            q = rule(loc[n : n + 1], scale[n : n + 1], only).base_dist
            truth = truth + w * normal(q.loc[0, 0], q.scale[0, 0])
        torch.testing.assert_close(density[:, n], truth / sum(w for _, w in there), rtol=1e-8, atol=1e-12)


def test_learnt_weights_start_at_one_over_m_and_given_ones_stay() -> None:
    rule = WeightedProduct(3, 2)
    torch.testing.assert_close(rule.weight, torch.full((3, 2), 1 / 3))
    assert [n for n, _ in rule.named_parameters()] == ["logits"]
    given = WeightedProduct(2, 2, [0.5, (1.0, 0.0)])
    assert given.weight.tolist() == [[0.5, 0.5], [1.0, 0.0]] and not list(given.parameters())
    for bad in ([0.5], [0.5, -1.0], [0.5, (1.0, 2.0, 3.0)]):
        with pytest.raises(ValueError, match="2 weights, each one number or 2"):
            WeightedProduct(2, 2, bad)
    for rho in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
            CorrelatedExperts(rho)


@pools
def test_every_density_integrates_to_one(name: str) -> None:
    density = on_grid(FAMILIES[name]()(*experts(), MASKS))
    torch.testing.assert_close(density.sum(0) * STEP, torch.ones(len(MASKS), dtype=D), rtol=1e-9, atol=0)


@pools
@priors
def test_nothing_present_is_the_prior(name: str, prior: tuple) -> None:
    loc, scale = experts(dim=1)
    z = torch.randn(len(loc), 1, dtype=D)
    found = FAMILIES[name]()(loc, scale, torch.zeros(len(loc), 3, dtype=torch.bool), prior).log_prob(z)
    truth = torch.distributions.Normal(*prior).log_prob(z).sum(-1)
    torch.testing.assert_close(found, truth, rtol=1e-14, atol=1e-14)


@pools
def test_order_absent_experts_and_stacked_views(name: str) -> None:
    rule = FAMILIES[name]()
    loc, scale = experts(dim=1)
    z = torch.randn(len(loc), 1, dtype=D)
    here = rule(loc, scale, MASKS).log_prob(z)
    if name != "weighted_product":  # its weights belong to the modalities
        there = rule(loc[:, [2, 0, 1]], scale[:, [2, 0, 1]], MASKS[:, [2, 0, 1]]).log_prob(z)
        torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-12)
        fewer = MASKS.clone()
        fewer[:, 1] = False
        two = rule(loc[:, [0, 2]], scale[:, [0, 2]], fewer[:, [0, 2]]).log_prob(z)
        torch.testing.assert_close(rule(loc, scale, fewer).log_prob(z), two, rtol=1e-12, atol=1e-12)
    views = torch.stack([MASKS, MASKS.flip(0)])
    stacked = rule(loc, scale, views)
    assert stacked.batch_shape == (2, len(loc))
    torch.testing.assert_close(stacked.log_prob(z)[0], here, rtol=1e-12, atol=1e-12)
    flipped = rule(loc, scale, views[1]).log_prob(z)
    torch.testing.assert_close(stacked.log_prob(z)[1], flipped, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e300, 0.0], ids=str)
@pools
def test_absent_experts_leak_neither_values_nor_gradients(name: str, junk: float) -> None:
    gradients_beside_junk(FAMILIES[name](), junk, 1)
