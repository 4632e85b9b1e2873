"""The guide of a JNF in every pattern of presence, and its product of flows against exact values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.distributions import MaskedFlow
from pyro_mm.evaluation import encode, generate, log_marginal, product_of_flows
from pyro_mm.guides import FlowSurrogate, JointEncoder, product_of_posteriors
from pyro_mm.handlers import given
from pyro_mm.weights import run

DIMS = {"a": 3, "b": 2, "c": 2}


def made(latent: int = 2, flat: bool = False) -> tuple[LinearGaussian, FlowSurrogate]:
    """Exact encoders below flows; `flat` flows are the identity."""
    torch.manual_seed(0)
    oracle = LinearGaussian.random(DIMS, latent, seed=1)
    flows = {m: MaskedFlow(latent, 2, (8,)).double() for m in DIMS}
    if flat:
        for flow in flows.values():
            for p in flow.parameters():
                torch.nn.init.zeros_(p)
    joint = JointEncoder(oracle.joint_posterior_net(), latent)
    return oracle, FlowSurrogate(joint, oracle.unimodal_posteriors(), flows, latent).double()


def rows(oracle: LinearGaussian, *patterns: str) -> Batch:
    data = oracle.sample(len(patterns), seed=2)
    return Batch(data.x, {m: torch.tensor([m in p for p in patterns]) for m in DIMS})


def test_every_pattern_has_the_density_that_it_should():
    oracle, guide = made()
    batch = rows(oracle, "abc", "a", "b", "", "ac")
    z = torch.randn(5, 2, dtype=torch.float64)
    own = {m: guide.expert(m, batch.x[m]).log_prob(z) for m in DIMS}
    mixture = torch.stack([own["a"], own["c"]]).logsumexp(0) - torch.tensor(2.0).log()
    expected = [guide.joint.posterior(batch).log_prob(z), own["a"], own["b"], guide.prior().log_prob(z), mixture]
    torch.testing.assert_close(guide.posterior(batch).log_prob(z), torch.stack([e[i] for i, e in enumerate(expected)]))
    stacked = guide.posterior(batch.subsets([("a", "c"), ("b",)])).log_prob(z)
    for i, group in enumerate([("a", "c"), ("b",)]):
        torch.testing.assert_close(stacked[i], guide.posterior(batch.only(*group)).log_prob(z))
    assert run(given(guide, "a"), Batch({"a": batch.x["a"]}))["z"].value.shape == (5, 2)
    with pytest.raises(ValueError, match=r"encoders of \['a', 'b', 'c'\], but flows of \['a'\]"):
        FlowSurrogate(guide.joint, dict(guide.encoders), {"a": guide.flows["a"]}, 2)


def z_score(draws: Tensor, mean: Tensor) -> Tensor:
    return (draws.mean(0) - mean) / (draws.std(0) / len(draws) ** 0.5)


def test_without_flows_the_product_is_that_of_gaussians():
    oracle, guide = made(flat=True)
    batch = rows(oracle, "ab", "bc", "abc", "a")
    program = product_of_flows(guide, warmup=40, steps=20, leaps=5)
    torch.manual_seed(3)
    draws = program.draws(batch, 300)
    q = {m: guide.encoders[m](batch.x[m]).base_dist for m in DIMS}
    loc, scale = (torch.stack([getattr(q[m], part) for m in DIMS], -2) for part in ("loc", "scale"))
    mask = torch.stack([batch.mask[m] for m in DIMS], -1)
    exact = product_of_posteriors(loc, scale, mask).base_dist
    assert bool((z_score(draws[:, :2], exact.loc[:2]).abs() < 4).all())
    torch.testing.assert_close(draws[:, :2].std(0), exact.scale[:2], rtol=0.17, atol=0)
    assert bool(program.acceptance[2:].isnan().all())
    assert bool((program.acceptance[:2] > 0.5).all()) and bool((program.step[:2] > 0.1).all())
    own = guide.posterior(batch)
    assert bool((z_score(draws[:, 3], own.parts[0].base.base_dist.loc[3]).abs() < 4).all())


def test_with_flows_the_product_has_the_moments_of_quadrature():
    oracle, guide = made()
    batch = rows(oracle, "ab")
    line = torch.linspace(-6, 6, 241, dtype=torch.float64)
    points = torch.cartesian_prod(line, line).unsqueeze(1)
    log_f = sum(guide.expert(m, batch.x[m]).log_prob(points) for m in "ab") - guide.prior().log_prob(points)
    share = log_f[:, 0].detach().softmax(0).unsqueeze(-1)
    mean = (share * points[:, 0]).sum(0)
    sd = (share * (points[:, 0] - mean) ** 2).sum(0).sqrt()
    torch.manual_seed(3)
    draws = product_of_flows(guide, warmup=40, steps=30, leaps=5).draws(batch, 600)[:, 0]
    assert bool((z_score(draws, mean).abs() < 4).all())
    torch.testing.assert_close(draws.std(0), sd, rtol=0.12, atol=0)
    mixture = guide.posterior(batch).expand((4000, 1)).sample()[:, 0]
    assert bool(((mixture.mean(0) - mean).abs() > 5 * sd / 600**0.5).any())  # the product is another distribution


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
