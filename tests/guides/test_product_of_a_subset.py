"""The product of a subset that is drawn: uniform over what a row has, a component of the mixture, and nothing else."""

from __future__ import annotations

import pytest
import torch

from pyro_mm.guides import mixture_of_products, product_of_a_subset, product_of_experts
from pyro_mm.guides.fusion import membership

D = torch.float64
MASKS = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)


def experts(rows: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(1)
    loc = torch.randn(rows, count, 2, generator=noise, dtype=D)
    return loc, 0.3 + torch.rand(rows, count, 2, generator=noise, dtype=D)


def test_every_component_of_the_mixture_is_drawn_equally_often():
    """And no other: the components of `mixture_of_products` that have weight, row by row, by their locations."""
    n = 6000
    loc, scale = experts(len(MASKS))
    whole = mixture_of_products(loc, scale, MASKS)
    drawn = product_of_a_subset(loc, scale, MASKS.expand(n, *MASKS.shape)).base_dist
    for i in range(len(MASKS)):
        parts = whole.weights[i] > 0
        apart = torch.cdist(drawn.loc[:, i], whole.loc[i, parts]).square()
        apart = apart + torch.cdist(drawn.scale[:, i], whole.scale[i, parts]).square()
        nearest = apart.min(-1)
        assert nearest.values.max() < 1e-14
        count = torch.bincount(nearest.indices, minlength=int(parts.sum())).double()
        expected = n / len(count)
        chi = ((count - expected) ** 2 / expected).sum()
        spread = (2 * (len(count) - 1)) ** 0.5
        assert abs(chi - (len(count) - 1)) <= 4 * spread


def test_rows_draw_apart_and_masks_may_have_any_shape():
    loc, scale = experts(300)
    views = torch.ones(3, 300, 4, dtype=torch.bool)
    q = product_of_a_subset(loc, scale, views)
    assert q.batch_shape == (3, 300) and q.event_shape == (2,)
    assert not torch.equal(q.base_dist.loc[0], q.base_dist.loc[1])


def test_nothing_of_what_is_absent_gets_in():
    loc, scale = (v.requires_grad_() for v in experts(len(MASKS)))
    torch.manual_seed(0)
    clean = product_of_a_subset(loc, scale, MASKS).base_dist
    torch.manual_seed(0)
    hidden = ~MASKS.unsqueeze(-1)
    spoilt = product_of_a_subset(loc.masked_fill(hidden, torch.inf), scale.masked_fill(hidden, torch.nan), MASKS)
    assert torch.equal(clean.loc, spoilt.base_dist.loc) and torch.equal(clean.scale, spoilt.base_dist.scale)
    gradients = torch.autograd.grad(clean.loc.sum() + clean.scale.sum(), [loc, scale])
    assert all((g[~MASKS] == 0).all() and g.isfinite().all() for g in gradients)
    assert (clean.loc[-1] == 0).all() and (clean.scale[-1] == 1).all()  # the prior


def test_a_prior_of_its_own():
    loc, scale = experts(2)
    prior = (torch.tensor([0.8, -1.0], dtype=D), torch.tensor([1.7, 0.4], dtype=D))
    alone = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)  # one subset, and none
    drawn, whole = (f(loc, scale, alone, prior).base_dist for f in (product_of_a_subset, product_of_experts))
    assert torch.equal(drawn.loc, whole.loc) and torch.equal(drawn.scale, whole.scale)


def test_many_modalities_do_not_overflow_and_are_not_listed():
    """Of 2000, half are drawn; a mixture of all subsets of 21 is refused before it is listed."""
    loc, scale = torch.zeros(200, 2000, 1, dtype=D), torch.ones(200, 2000, 1, dtype=D)
    members = product_of_a_subset(loc, scale, torch.ones(200, 2000, dtype=torch.bool)).base_dist.scale ** -2 - 1
    assert abs(members.mean() - 1000) < 4 * 22.4 / 200**0.5 and members.std() < 30
    with pytest.raises(ValueError, match=r"21 modalities have 2\^21 subsets.*product_of_a_subset"):
        membership(21)
