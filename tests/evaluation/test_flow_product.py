"""Draws from a product of flows against exact values and quadrature."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_mm.evaluation import encode, generate, log_marginal, product_of_flows
from pyro_mm.guides import product_of_posteriors
from tests.helpers.flows import DIMS, made, rows


def z_score(draws: Tensor, mean: Tensor) -> Tensor:
    return (draws.mean(0) - mean) / (draws.std(0) / len(draws) ** 0.5)


def test_without_flows_the_product_is_that_of_gaussians():
    oracle, guide = made(flat=True)
    batch = rows(oracle, "ab", "bc", "abc", "a")
    program = product_of_flows(guide, warmup=30, steps=12, leaps=5)
    torch.manual_seed(3)
    draws = program.draws(batch, 200)
    q = {m: guide.encoders[m](batch.x[m]).base_dist for m in DIMS}
    loc, scale = (torch.stack([getattr(q[m], part) for m in DIMS], -2) for part in ("loc", "scale"))
    mask = torch.stack([batch.mask[m] for m in DIMS], -1)
    exact = product_of_posteriors(loc, scale, mask).base_dist
    assert bool((z_score(draws[:, :2], exact.loc[:2]).abs() < 4).all())
    torch.testing.assert_close(draws[:, :2].std(0), exact.scale[:2], rtol=0.2, atol=0)
    assert bool(program.acceptance[2:].isnan().all())
    assert bool((program.acceptance[:2] > 0.5).all()) and bool((program.step[:2] > 0.1).all())
    own = guide.posterior(batch)
    assert bool((z_score(draws[:, 3], own.parts[0].base.base_dist.loc[3]).abs() < 4).all())


def test_with_flows_the_product_has_the_moments_of_quadrature():
    oracle, guide = made()
    batch = rows(oracle, "ab")
    line = torch.linspace(-6, 6, 121, dtype=torch.float64)
    points = torch.cartesian_prod(line, line).unsqueeze(1)
    log_f = sum(guide.expert(m, batch.x[m]).log_prob(points) for m in "ab") - guide.prior().log_prob(points)
    share = log_f[:, 0].detach().softmax(0).unsqueeze(-1)
    mean = (share * points[:, 0]).sum(0)
    sd = (share * (points[:, 0] - mean) ** 2).sum(0).sqrt()
    torch.manual_seed(3)
    draws = product_of_flows(guide, warmup=30, steps=20, leaps=5).draws(batch, 400)[:, 0]
    assert bool((z_score(draws, mean).abs() < 4).all())
    torch.testing.assert_close(draws.std(0), sd, rtol=0.15, atol=0)
    mixture = guide.posterior(batch).expand((4000, 1)).sample()[:, 0]
    assert bool(((mixture.mean(0) - mean).abs() > 5 * sd / 400**0.5).any())  # the product is another distribution


def test_it_generates_and_encodes_and_has_no_density():
    oracle, guide = made()
    batch = rows(oracle, "ab", "a", "abc", "")
    program = product_of_flows(guide, warmup=5, steps=5, leaps=2, chains=2)
    made_of = generate(oracle.model(), program, batch, 3, seed=0)
    assert made_of["c"].mean.shape == (3, 4, 2)
    assert encode(program, batch, 5, seed=0).draws["z"].shape == (5, 4, 2)
    with pytest.raises(NotImplementedError, match="give likelihoods the recipe's own guide"):
        log_marginal(oracle.model(), program, batch, 10, refine=False)
    with pytest.raises(ValueError, match="one subset of the modalities at a time"):
        program.draws(batch.subsets([("a", "b"), ("c",)]), 2)
    with pytest.raises(TypeError, match="guide of a JNF"):
        product_of_flows(oracle.exact_guide())
    with pytest.raises(ValueError, match="at least 1 step, leap and chain"):
        product_of_flows(guide, steps=0)
