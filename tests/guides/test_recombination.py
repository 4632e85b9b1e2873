"""Recombined concepts against enumeration of every concept over discrete factors, and of the images each describes."""

from __future__ import annotations

from itertools import product

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mm.guides import conjunction, ignore, in_common, mixture_of_experts, product_of_posteriors

D = torch.float64
SCALE = 0.2  # of q(z | image)
VALUES = torch.tensor([-1.0, 0.0, 1.0], dtype=D) * (1.5 * (1 - SCALE**2)) ** 0.5  # with SCALE, of variance 1
FACTORS = 3
IMAGES = torch.tensor(list(product(range(3), repeat=FACTORS)))
CONCEPTS = torch.tensor(list(product((-1, 0, 1, 2), repeat=FACTORS)))  # -1: left open


def grounded(concepts: Tensor) -> dist.TorchDistribution:
    """The Gaussian q that minimises E KL(q(z | image) || q) over the images that a concept describes: its moments."""
    fits = ((concepts.unsqueeze(1) == IMAGES) | (concepts.unsqueeze(1) == -1)).all(-1).to(D)
    share = (fits / fits.sum(-1, keepdim=True)).unsqueeze(-1)
    z = VALUES[IMAGES]
    loc = (share * z).sum(1)
    variance = (share * (z.square() + SCALE**2)).sum(1) - loc.square()
    return dist.Normal(loc, variance.sqrt()).to_event(1)


def pairs() -> tuple[Tensor, Tensor]:
    """All pairs of concepts."""
    n = len(CONCEPTS)
    return CONCEPTS.repeat_interleave(n, 0), CONCEPTS.repeat(n, 1)


def same(found: dist.TorchDistribution, truth: dist.TorchDistribution, rows: Tensor | None = None) -> None:
    keep = slice(None) if rows is None else rows
    torch.testing.assert_close(found.base_dist.loc[keep], truth.base_dist.loc[keep], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.base_dist.scale[keep], truth.base_dist.scale[keep], rtol=1e-9, atol=1e-9)


def test_and_is_the_union_of_what_two_concepts_specify() -> None:
    """Of every pair that describes an image: the posterior of the images that both describe."""
    one, two = pairs()
    possible = ~((one != two) & (one >= 0) & (two >= 0)).any(-1)
    assert 0 < int(possible.sum()) < len(one)
    same(conjunction(grounded(one), grounded(two)), grounded(torch.maximum(one, two)), possible)


def test_in_common_is_the_intersection() -> None:
    one, two = pairs()
    same(in_common(grounded(one), grounded(two)), grounded(torch.where(one == two, one, -1)))


def test_ignore_is_the_difference() -> None:
    one, two = pairs()
    same(ignore(grounded(one), grounded(two)), grounded(torch.where(one == two, -1, one)))


def test_what_is_in_common_and_what_is_not_make_up_the_concept() -> None:
    one, two = pairs()
    q, r = grounded(one), grounded(two)
    same(conjunction(ignore(q, r), in_common(q, r)), q)


def test_and_is_idempotent_unlike_a_product_of_evidence() -> None:
    q = grounded(CONCEPTS)
    same(conjunction(q, q), q)
    loc, scale = (torch.stack([x, x], -2) for x in (q.base_dist.loc, q.base_dist.scale))
    seen = torch.ones(len(CONCEPTS), 2, dtype=torch.bool)
    evidence = product_of_posteriors(loc, scale, seen).base_dist.scale
    specified = CONCEPTS >= 0
    expected = torch.tensor(2 / SCALE**2 - 1, dtype=D) ** -0.5  # two observations of one value, the prior once
    torch.testing.assert_close(evidence[specified], expected.expand(int(specified.sum())))


def test_where_values_agree_nearly_the_result_has_the_moments_of_their_mixture() -> None:
    """By quadrature of the mixture's density."""
    loc, scale = torch.tensor([[0.3], [0.45]], dtype=D), torch.tensor([[0.2], [0.3]], dtype=D)
    q, r = (dist.Normal(loc[i], scale[i]).to_event(1) for i in (0, 1))
    z = torch.linspace(-4, 5, 20_001, dtype=D)
    density = mixture_of_experts(loc, scale, torch.tensor([True, True])).log_prob(z.unsqueeze(-1)).exp()
    mean = torch.trapezoid(z * density, z)
    spread = torch.trapezoid((z - mean).square() * density, z).sqrt()
    for found in (in_common(q, r).base_dist, conjunction(q, r).base_dist):
        torch.testing.assert_close(torch.cat([found.loc, found.scale]), torch.stack([mean, spread]))


def test_another_prior_and_another_threshold() -> None:
    prior = (torch.tensor([2.0], dtype=D), torch.tensor([4.0], dtype=D))
    q = dist.Normal(torch.tensor([1.0], dtype=D), torch.tensor([1.5], dtype=D)).to_event(1)
    same(in_common(q, q, prior), q)  # 1.5 is narrow beside 4
    same(in_common(q, q, prior, threshold=0.3), dist.Normal(*prior).to_event(1))
    same(ignore(q, q, prior), dist.Normal(*prior).to_event(1))
    same(in_common(q, q), dist.Normal(torch.zeros(1, dtype=D), torch.ones(1, dtype=D)).to_event(1))


def test_what_cannot_be_recombined() -> None:
    q = grounded(CONCEPTS[:2])
    with pytest.raises(TypeError, match="dimension by dimension"):
        conjunction(q, dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(ValueError, match="threshold, which must be positive; got 0"):
        in_common(q, q, threshold=0)
