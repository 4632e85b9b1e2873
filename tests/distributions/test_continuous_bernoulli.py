"""The continuous Bernoulli from its logit: density, mean, sampler and entropy agree, saturated or not."""

from __future__ import annotations

import pytest
import torch

from pyro_mm.distributions import ContinuousBernoulli

D = torch.float64
LOGITS = [-300.0, -40.0, -3.0, -0.1001, -0.0999, -1e-3, 0.0, 1e-5, 0.05, 0.0999, 0.1001, 2.0, 40.0, 300.0]


def density(logit: float, n: int = 200_001) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linspace(0, 1, n, dtype=D)
    return x, ContinuousBernoulli(logits=torch.tensor(logit, dtype=D).expand(n)).log_prob(x).exp()


@pytest.mark.parametrize("logit", LOGITS)
def test_density_and_mean_by_quadrature(logit):
    x, p = density(logit)
    assert torch.trapezoid(p, x).item() == pytest.approx(1, abs=1e-6)
    mean = ContinuousBernoulli(logits=torch.tensor(logit, dtype=D)).mean.item()
    assert mean == pytest.approx(torch.trapezoid(p * x, x).item(), abs=1e-6)


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_quantiles_invert_the_integrated_density(logit, dtype):
    x, p = density(logit)
    below = torch.cat([torch.zeros(1, dtype=D), torch.cumulative_trapezoid(p, x)])
    u = torch.linspace(0.001, 0.999, 97, dtype=D)
    quantile = ContinuousBernoulli(logits=torch.tensor(logit, dtype=dtype)).icdf(u.to(dtype)).double()
    assert ((quantile >= 0) & (quantile <= 1)).all()
    at = torch.searchsorted(x, quantile).clamp(1, len(x) - 1)
    share = (quantile - x[at - 1]) / (x[at] - x[at - 1])
    found = below[at - 1] + share * (below[at] - below[at - 1])
    torch.testing.assert_close(found, u, rtol=0, atol=1e-5 if dtype is D else 3e-4)


@pytest.mark.parametrize("logit", [x for x in LOGITS if abs(x) < 10])
def test_torch_agrees_away_from_saturation(logit):
    ours = ContinuousBernoulli(logits=torch.tensor(logit, dtype=D))
    theirs = torch.distributions.ContinuousBernoulli(logits=torch.tensor(logit, dtype=D))
    x = torch.linspace(0, 1, 11, dtype=D)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-8)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-7)


def test_torch_is_wrong_when_saturated():
    """Why this class exists; when torch mends it, the class may go."""
    x = torch.linspace(0, 1, 100_001)
    logp = torch.distributions.ContinuousBernoulli(logits=torch.tensor(50.0)).log_prob(x).double()
    assert torch.trapezoid(logp.exp(), x.double()).item() < 0.5


@pytest.mark.parametrize("logit", LOGITS)
def test_gradients_are_finite_and_those_of_the_closed_form(logit):
    """d log p / d logit = x - mean: an exponential family."""
    raw = torch.tensor(logit, dtype=D, requires_grad=True)
    x = torch.tensor([0.0, 0.25, 1.0], dtype=D)
    p = ContinuousBernoulli(logits=raw.expand(3))
    for i in range(3):
        (found,) = torch.autograd.grad(p.log_prob(x)[i], raw, retain_graph=True)
        assert found.item() == pytest.approx((x[i] - p.mean[i]).item(), abs=1e-7)
    draws = ContinuousBernoulli(logits=raw.expand(1000)).rsample()
    (found,) = torch.autograd.grad(draws.mean(), raw)
    assert torch.isfinite(found)


def test_expanding_keeps_the_class():
    p = ContinuousBernoulli(logits=torch.tensor([50.0, -50.0])).expand((3, 2))
    assert type(p) is ContinuousBernoulli
    torch.testing.assert_close(p.mean, torch.tensor([[0.98, 0.02]]).expand(3, 2))
