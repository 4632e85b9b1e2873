"""Diffusions told by an angle: density, bound and draws against mixtures whose velocity is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_mm.distributions import Diffused, DiffusedBound, Normal
from pyro_mm.distributions.diffused import END, evenly, noised
from tests.helpers.diffusions import D, KnownDiffusion


def standard(*shape: int) -> torch.distributions.Independent:
    return Normal(torch.zeros(shape, dtype=D), torch.ones(shape, dtype=D)).to_event(1)


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_the_flow_has_the_density_of_the_data(dim: int) -> None:
    """log p by the probability flow of the true velocity is log p, to 0.02 nat in every one of 300 places."""
    truth = KnownDiffusion(dim)
    x = truth.sample(300)
    found = Diffused(truth.velocity, standard(dim)).log_prob(x)
    torch.testing.assert_close(found, truth.log_prob(x), atol=0.02, rtol=0)


def test_the_rule_is_of_fourth_order() -> None:
    truth = KnownDiffusion(2)
    x = truth.sample(200)
    exact = truth.log_prob(x)
    errors = [(Diffused(truth.velocity, standard(2), steps=n).log_prob(x) - exact).abs().mean() for n in (16, 32)]
    assert errors[1] < errors[0] / 8


def test_its_gradient_is_the_score() -> None:
    truth = KnownDiffusion(2)
    x = truth.sample(50)
    scores = []
    for density in (truth.log_prob, Diffused(truth.velocity, standard(2), steps=48).log_prob):
        at = x.clone().requires_grad_()
        scores.append(torch.autograd.grad(density(at).sum(), at)[0])
    torch.testing.assert_close(scores[1], scores[0], atol=0.2, rtol=0.02)


@pytest.mark.parametrize(("sampler", "steps"), [("flow", 24), ("ddim", 150), ("ancestral", 300)])
def test_draws_have_the_moments_and_the_mean_log_density_of_the_data(sampler: str, steps: int) -> None:
    truth, n = KnownDiffusion(2), 4000
    torch.manual_seed(0)
    drawn = Diffused(truth.velocity, standard(2), steps=steps, sampler=sampler).sample((n,))
    mean, variance = truth.moments
    torch.testing.assert_close(drawn.mean(0), mean, atol=5 * math.sqrt(variance.max().item() / n), rtol=0)
    torch.testing.assert_close(drawn.var(0), variance, atol=0, rtol=0.12)
    real, found = truth.log_prob(truth.sample(n, seed=9)), truth.log_prob(drawn)
    error = ((real.var() + found.var()) / n).sqrt()
    lag = 0.0 if sampler == "flow" else 0.05  # rules of first order
    assert (real.mean() - found.mean()).abs() < 4 * error + lag


def test_a_draw_by_the_flow_comes_back_from_where_it_came() -> None:
    truth = KnownDiffusion(2)
    flow = Diffused(truth.velocity, standard(20, 2), steps=48)
    torch.manual_seed(0)
    start = flow.base.rsample()
    torch.manual_seed(0)
    drawn = flow.sample()
    found = drawn
    for here, there in zip(flow.angles(found)[:-1], flow.angles(found)[1:], strict=True):
        h = there - here
        k1 = flow._field(found, here)
        k2 = flow._field(found + h / 2 * k1, here + h / 2)
        k3 = flow._field(found + h / 2 * k2, here + h / 2)
        found = found + h / 6 * (k1 + 2 * k2 + 2 * k3 + flow._field(found + h * k3, there))
    torch.testing.assert_close(found, start, atol=1e-3, rtol=0)


def test_the_bound_is_log_p_for_the_true_velocity_and_below_it_for_another() -> None:
    truth = KnownDiffusion(2)
    x = truth.sample(100).repeat(400, 1)
    torch.manual_seed(0)
    exact = truth.log_prob(x).view(400, 100).mean()

    def mean_and_error(velocity: object) -> tuple[float, float]:
        drawn = DiffusedBound(velocity, standard(2)).log_prob(x).view(400, 100).mean(1)
        return drawn.mean().item(), (drawn.std() / 20).item()

    found, error = mean_and_error(truth.velocity)
    assert abs(found - exact) < 4 * error + 0.02  # angles below 0.01 are one Gaussian
    crude, error = mean_and_error(lambda z, phi: torch.zeros_like(z))
    normal = standard(2).log_prob(x).mean()
    assert abs(crude - normal) < 4 * error  # v = 0 is N(0, I), whose bound is exact
    assert crude < exact - 1


def test_random_directions_give_the_trace_without_bias() -> None:
    truth = KnownDiffusion(6)
    x = truth.sample(4)
    torch.manual_seed(0)
    exact = Diffused(truth.velocity, standard(6)).log_prob(x)
    found = Diffused(truth.velocity, standard(6), probes=2).log_prob(x.expand(100, 4, 6))
    assert ((found.mean(0) - exact).abs() < 4 * found.std(0) / 10).all()
    assert (found.std(0) > 0.01).all()


def conditional(rho: float, at: Tensor, z: Tensor, phi: Tensor) -> Tensor:
    """The velocity of b | a ~ N(rho a, 1 - rho^2), in the second of two coordinates."""
    s2 = 1 - rho**2
    away = (z[..., 1:] - phi.cos() * rho * at) / (phi.cos().square() * s2 + phi.sin().square())
    x, eps = rho * at + phi.cos() * s2 * away, phi.sin() * away
    return torch.cat([torch.zeros_like(x), phi.cos() * eps - phi.sin() * x], -1)


def test_what_is_not_free_is_given() -> None:
    """a ~ N(1, 0.1^2), b | a from the flow: the density is that of the pair, rows with other free parts beside it."""
    rho = 0.8
    free = torch.tensor([[False, True], [False, False]])
    loc, scale = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=D), torch.tensor([[0.1, 1.0], [0.1, 0.3]], dtype=D)

    def velocity(z: Tensor, phi: Tensor) -> Tensor:
        return conditional(rho, z[..., :1], z, phi) + 7.0 * (~free)  # what it says of given parts must not matter

    flow = Diffused(velocity, Normal(loc, scale).to_event(1), free)
    torch.manual_seed(0)
    drawn = flow.sample((3000,))
    a, b = drawn[:, 0].T
    assert abs((b - rho * a).mean()) < 5 * 0.6 / math.sqrt(3000)
    assert abs((b - rho * a).var() - 0.36) < 0.05
    torch.testing.assert_close(drawn[:, 1].mean(0), loc[1], atol=0.03, rtol=0)
    first = Normal(loc[0, 0], scale[0, 0]).log_prob(a) + Normal(rho * a, math.sqrt(1 - rho**2)).log_prob(b)
    second = Normal(loc[1], scale[1]).log_prob(drawn[:, 1]).sum(-1)
    torch.testing.assert_close(flow.log_prob(drawn), torch.stack([first, second], 1), atol=5e-3, rtol=0)
    still = Diffused(velocity, Normal(loc, scale).to_event(1), torch.zeros_like(free))
    assert still.still and torch.equal(still.log_prob(loc), Normal(loc, scale).log_prob(loc).sum(-1))


def test_it_expands_and_says_what_it_cannot_do() -> None:
    truth = KnownDiffusion(2)
    flow = Diffused(truth.velocity, standard(2), steps=3).expand((4, 5))
    assert flow.sample((7,)).shape == (7, 4, 5, 2)
    assert flow.log_prob(torch.zeros(5, 2, dtype=D)).shape == (4, 5)
    with pytest.raises(ValueError, match="samplers are flow, ddim, ancestral; got 'euler'"):
        Diffused(truth.velocity, standard(2), sampler="euler")
    with pytest.raises(ValueError, match="steps and probes are at least 1; got 0 and None"):
        Diffused(truth.velocity, standard(2), steps=0)


def test_angles_are_spread_evenly_and_noise_keeps_the_variance() -> None:
    torch.manual_seed(0)
    even = evenly(torch.zeros(10, 10, dtype=D)).flatten().sort().values
    torch.testing.assert_close(even.diff(), torch.full((99,), 0.01, dtype=D))
    x = torch.randn(20_000, 1, dtype=D)
    angle = END * evenly(x)
    z, v = noised(x, angle)
    torch.testing.assert_close(angle.cos() * z - angle.sin() * v, x)
    assert abs(z.var() - 1) < 0.05 and abs(v.var() - 1) < 0.05
