"""The mixture of experts: its density, its sampler and its gradient are one object."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mm.distributions import Mixture, independent_components
from tests.helpers.oracle import z_scores

D = torch.float64
LOC = torch.tensor([[-2.0], [0.5], [3.0], [50.0]], dtype=D)
SCALE = torch.tensor([[0.5], [1.0], [0.3], [2.0]], dtype=D)
PRESENT = torch.tensor([True, True, True, False])
WEIGHTS = torch.tensor([0.2, 0.5, 0.3, 0.0], dtype=D)
FAMILIES = [dist.Normal, dist.Laplace]


def shares(weights: Tensor) -> Tensor:
    return weights.to(D) / weights.to(D).sum()


def torch_mixture(weights: Tensor, family: type) -> torch.distributions.Distribution:
    """torch's own mixture of the present experts, one-dimensional."""
    keep = weights > 0
    parts = family(LOC[keep, 0], SCALE[keep, 0])
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(shares(weights)[keep]), parts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weights", [PRESENT, WEIGHTS, WEIGHTS * 7], ids=["bool", "weights", "unnormalised"])
def test_density_is_the_weighted_sum_and_integrates_to_one(family, weights):
    q = Mixture(LOC, SCALE, weights, family)
    x = torch.linspace(-60, 60, 120_001, dtype=D)
    logp = q.expand((len(x),)).log_prob(x.unsqueeze(-1))
    assert torch.trapezoid(logp.exp(), x).item() == pytest.approx(1, abs=1e-5)
    truth = torch_mixture(weights, family).log_prob(x)
    torch.testing.assert_close(logp, truth, rtol=1e-9, atol=1e-9)


def test_density_in_several_dimensions_is_the_sum_of_products():
    loc, scale = torch.randn(3, 2, dtype=D), torch.rand(3, 2, dtype=D) + 0.5
    weights = torch.tensor([1.0, 0.0, 3.0], dtype=D)
    grid = torch.linspace(-9, 9, 361, dtype=D)
    points = torch.cartesian_prod(grid, grid)
    density = Mixture(loc, scale, weights).expand((len(points),)).log_prob(points).exp()
    step = (grid[1] - grid[0]).item()
    assert density.sum().item() * step**2 == pytest.approx(1, abs=1e-8)
    parts = [torch.distributions.Normal(loc[j], scale[j]).log_prob(points).sum(-1).exp() for j in range(3)]
    torch.testing.assert_close(density, 0.25 * parts[0] + 0.75 * parts[2])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("independent", [False, True])
def test_sampler_matches_the_density(family, independent):
    """Kolmogorov-Smirnov distance to the integrated density; 1.95 / sqrt(n) is passed once in a thousand."""
    n, k = 500, 60
    q = Mixture(LOC, SCALE, WEIGHTS, family).expand((k, n))
    if independent:
        with independent_components():
            draws = q.rsample()
    else:
        draws = q.rsample()
    draws = draws.flatten().sort().values
    cdf = torch_mixture(WEIGHTS, family).cdf(draws)
    step = torch.arange(1, len(draws) + 1, dtype=D) / len(draws)
    assert (
        torch.maximum((cdf - step).abs(), (cdf - step + 1 / len(draws)).abs()).max().item() < 1.95 / len(draws) ** 0.5
    )


def chosen(q: Mixture, shape: tuple[int, ...]) -> Tensor:
    """Expert index of every draw, read off well separated experts."""
    draws = q.rsample(torch.Size(shape)) if shape else q.rsample()
    return (draws.unsqueeze(-2) - q.loc).abs().sum(-1).argmin(-1)


def separated(weights: Tensor, *batch: int) -> Mixture:
    j = weights.shape[-1]
    loc = 100.0 * torch.arange(j, dtype=D).view(j, 1)
    return Mixture(loc, torch.full_like(loc, 0.1), weights).expand(batch)


def test_systematic_draws_visit_every_present_expert_equally_often():
    present = torch.tensor([[True, True, False, True], [False, True, True, False], [True, True, True, True]])
    k = 12
    index = chosen(separated(present, k, 1, 3), ()).squeeze(1)
    for n in range(3):
        count = index[:, n].bincount(minlength=4)
        assert torch.equal(count, present[n] * (k // present[n].sum())), n


def test_systematic_draws_of_unequal_weights_differ_from_their_share_by_less_than_one():
    k = 37
    index = chosen(separated(WEIGHTS, k, 50), ())
    for n in range(50):
        count = index[:, n].bincount(minlength=4)
        assert ((count - k * shares(WEIGHTS)).abs() < 1 + 1e-9).all()


@pytest.mark.parametrize("independent", [False, True])
def test_every_single_draw_is_marginally_right(independent):
    """Chi-square of the expert of each particle over many data: systematic draws are uniform for every one of them."""
    k, n = 5, 20_000
    if independent:
        with independent_components():
            index = chosen(separated(WEIGHTS, k, n), ())
    else:
        index = chosen(separated(WEIGHTS, k, n), ())
    expected = n * shares(WEIGHTS)[:3]
    for i in range(k):
        count = index[i].bincount(minlength=4)
        assert count[3] == 0
        chi = ((count[:3] - expected) ** 2 / expected).sum().item()
        assert chi < 13.8  # 2 degrees of freedom, once in a thousand
    # The draws of one datum: independent ones agree as often as chance says, systematic ones of neighbours more.
    same = (index[0] == index[2]).double().mean().item()
    chance = (shares(WEIGHTS) ** 2).sum().item()
    error = 4 * (chance * (1 - chance) / n) ** 0.5
    assert (abs(same - chance) < error) is independent


def test_draws_of_different_data_are_independent():
    index = chosen(separated(torch.ones(2, dtype=D), 40_000), ())
    same = (index[::2] == index[1::2]).double().mean().item()
    assert same == pytest.approx(0.5, abs=4 * 0.5 / 20_000**0.5)


def test_the_context_manager_ends_with_its_block_even_after_an_error():
    with pytest.raises(RuntimeError), independent_components():
        raise RuntimeError
    index = chosen(separated(torch.ones(4, dtype=D), 4, 30), ())
    assert (index.sort(0).values == torch.arange(4).unsqueeze(-1)).all()


def test_absent_experts_are_never_chosen_at_any_rounding(monkeypatch):
    """The smallest and the largest number a generator can return fall into present experts."""
    weights = torch.tensor([[0.0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
    weights = torch.cat([weights, weights.to(D) * 0.1 / 3])
    for edge in (0.0, 1.0 - 2**-24, 1.0 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda shape, edge=edge, **kw: torch.full(shape, edge, **kw))
        for dtype in (torch.float32, D):
            q = separated(weights.to(dtype), 8)
            index = Mixture(q.loc.to(dtype), q.scale.to(dtype), q.weights.to(dtype))._component(torch.Size([8]))
            picked = weights.gather(-1, index.unsqueeze(-1))
            assert (picked > 0).all(), (edge, dtype, index)


def test_values_of_absent_experts_reach_neither_density_nor_draws():
    for junk in (1e30, -1e4):
        loc = torch.cat([LOC[:3], torch.full((1, 1), junk, dtype=D)]).requires_grad_()
        q, clean = Mixture(loc, SCALE, WEIGHTS), Mixture(LOC, SCALE, WEIGHTS)
        value = torch.tensor([0.7], dtype=D)
        assert torch.equal(q.log_prob(value), clean.log_prob(value))
        (gradient,) = torch.autograd.grad(q.log_prob(value), loc)
        assert gradient[3].item() == 0.0
        assert torch.isfinite(gradient).all()
    nowhere = Mixture(torch.cat([LOC[:3], torch.full((1, 1), torch.nan, dtype=D)]), SCALE, WEIGHTS)
    assert torch.equal(nowhere.log_prob(value), Mixture(LOC, SCALE, WEIGHTS).log_prob(value))
    assert torch.isfinite(nowhere.expand((1000,)).sample()).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_an_expectation_is_unbiased(family):
    """E z and E z^2 of the mixture have gradients in closed form; draws must agree with them on average."""
    weights = shares(WEIGHTS)[:3].unsqueeze(-1)
    loc, scale = (v[:3].repeat(2000, 1, 1).requires_grad_() for v in (LOC, SCALE))  # one copy per repetition
    draws = Mixture(loc, scale, WEIGHTS[:3], family).expand((20, 2000)).rsample()
    power = 2.0 if family is dist.Laplace else 1.0  # variance in units of scale^2
    for statistic, dloc, dscale in (
        (draws, weights, torch.zeros(3, 1, dtype=D)),
        (draws**2, 2 * weights * LOC[:3], 2 * weights * power * SCALE[:3]),
    ):
        found = torch.autograd.grad(statistic.mean(0).sum(), [loc, scale], retain_graph=True)
        for part, truth in zip(found, (dloc, dscale), strict=True):
            assert z_scores(part, truth).abs().max().item() < 4


def test_gradient_of_the_entropy_is_unbiased():
    """-E log q has a gradient through the density as well as through the draw; against quadrature."""
    loc = LOC[:2].clone().requires_grad_()
    x = torch.linspace(-12, 12, 40_001, dtype=D)
    logp = Mixture(loc, SCALE[:2], torch.ones(2, dtype=D)).expand((len(x),)).log_prob(x.unsqueeze(-1))
    (truth,) = torch.autograd.grad(-torch.trapezoid(logp.exp() * logp, x), loc)
    copies = LOC[:2].repeat(2000, 1, 1).requires_grad_()
    q = Mixture(copies, SCALE[:2], torch.ones(2, dtype=D)).expand((20, 2000))
    (found,) = torch.autograd.grad(-q.log_prob(q.rsample()).mean(0).sum(), copies)
    assert z_scores(found, truth).abs().max().item() < 4
    assert truth.abs().max().item() > 0.01


def test_mean_and_variance_are_those_of_the_density():
    for family in FAMILIES:
        q = Mixture(LOC, SCALE, WEIGHTS, family)
        truth = torch_mixture(WEIGHTS, family)
        torch.testing.assert_close(q.mean, truth.mean.unsqueeze(-1))
        torch.testing.assert_close(q.variance, truth.variance.unsqueeze(-1))


def test_learnt_weights_are_refused():
    with pytest.raises(ValueError, match="Mixture weights carry a gradient"):
        Mixture(LOC, SCALE, WEIGHTS.clone().requires_grad_())


def test_shapes_broadcast_and_expand_inside_plates():
    q = Mixture(LOC.expand(6, 4, 1), SCALE, PRESENT)
    assert q.batch_shape == (6,)
    assert q.event_shape == (1,)
    with pyro.plate("particles", 5, dim=-3), pyro.plate("data", 6, dim=-1):
        z = pyro.sample("z", q)
    assert z.shape == (5, 1, 6, 1)
    assert q.expand((5, 2, 6)).log_prob(z.expand(5, 2, 6, 1)).shape == (5, 2, 6)
    assert q.rsample((7,)).shape == (7, 6, 1)
    torch.testing.assert_close(q.expand((5, 1, 6)).log_prob(z), q.log_prob(z))


def test_no_expert_is_lost_between_single_and_double_precision():
    weights = torch.tensor([1.0, 1.0, 1.0])
    logw = Mixture(LOC[:3].float(), SCALE[:3].float(), weights).log_weights
    assert logw.exp().sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(Mixture(LOC, SCALE, PRESENT).log_weights[:3].exp(), torch.full((3,), 1 / 3, dtype=D))
