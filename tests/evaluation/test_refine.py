"""Refined proposals: the density that they ought to find."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import GradientSteps, HMCFit, Laplace, log_marginal
from tests.helpers.estimates import Prior, Stretched, truth
from tests.helpers.refined import LG, covariance, refined

D = torch.float64


def patterns(oracle: LinearGaussian = LG, n: int = 64) -> Batch:
    """Every subset of a, b, c, the empty one included."""
    kept = torch.arange(n) % 8
    return Batch(oracle.sample(n, seed=1).x, {m: (kept & (1 << i)) > 0 for i, m in enumerate("abc")})


@pytest.mark.parametrize("guide", [Stretched(LG, 1.5, 1.0), Stretched(LG, 0.5, -1.0)])
def test_laplace_finds_the_gaussian_posterior(guide: nn.Module) -> None:
    """Whatever is missing; where nothing is present, the prior."""
    batch = patterns()
    q = refined(LG.model(), guide, batch, Laplace(inflate=1.0))
    mean, exact = LG.posterior(batch)
    torch.testing.assert_close(q.loc, mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(covariance(q), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("inflate", [1.0, 1.3])
def test_laplace_in_four_dimensions_and_its_inflation(inflate: float) -> None:
    oracle = truth((12, 8, 5), 4)
    batch = patterns(oracle, 24)
    mean, exact = oracle.posterior(batch)
    q = refined(oracle.model(), Stretched(oracle, 1.5, 1.0), batch, Laplace(inflate=inflate))
    torch.testing.assert_close(q.loc, mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(covariance(q), inflate**2 * exact, atol=1e-6, rtol=0)
    default = refined(oracle.model(), Stretched(oracle, 1.5, 1.0), batch, Laplace())
    torch.testing.assert_close(covariance(default), 1.25**2 * exact, atol=1e-6, rtol=0)


class PartlyUseless(nn.Module):
    """z ~ N(0, I_3), of which x sees two coordinates: the third has its prior as posterior."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor([0.0, 0.0, 5.0], dtype=D), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :2], 0.5).to_event(1), obs=batch.x["x"])


class GuideOfPartlyUseless(nn.Module):
    def forward(self, batch: Batch) -> None:
        loc = torch.cat([batch.x["x"], torch.full((len(batch), 1), 5.0, dtype=D)], -1)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(loc, torch.tensor([0.6, 0.6, 2.0], dtype=D)).to_event(1))


def test_coordinates_that_the_data_say_nothing_of_are_left_as_in_the_prior() -> None:
    """Within the error of 4,000 draws from it, and not inflated."""
    batch = Batch({"x": 2 * torch.randn(40, 2, dtype=D)})
    q = refined(PartlyUseless(), GuideOfPartlyUseless(), batch, Laplace(inflate=1.5))
    gain = 4 / (4 + 0.25)
    torch.testing.assert_close(q.loc[:, :2], gain * batch.x["x"], atol=1e-6, rtol=0)
    spread = covariance(q).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(spread[:, :2], torch.full((40, 2), 1.5**2 * 0.25 * gain, dtype=D), atol=1e-6, rtol=0)
    assert (q.loc[:, 2] - 5).abs().max().item() < 4 * 2 / 4000**0.5
    assert (spread[:, 2].sqrt() - 2).abs().max().item() < 4 * 2 / 8000**0.5


def test_a_guide_that_is_the_prior_can_be_refined() -> None:
    """It cannot tell which coordinates the data speak of, so all of them are looked at."""
    batch = patterns()
    q = refined(LG.model(), Prior(LG), batch, Laplace(inflate=1.0))
    torch.testing.assert_close(q.loc, LG.posterior(batch)[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(covariance(q), LG.posterior(batch)[1], atol=1e-6, rtol=0)
    empty = Batch(batch.x, {m: torch.zeros(64, dtype=torch.bool) for m in "abc"})
    ev = log_marginal(LG.model(), Prior(LG), empty, 500, refine=True, seed=0)
    assert (ev.estimate.abs() < 4 * ev.se + 1e-9).all() and ev.estimate.abs().max() < 0.1


def test_gradient_steps_reach_the_optimum_of_the_mean_field_family() -> None:
    """argmin KL(q || p) of a Gaussian p: its mean, and the diagonal of its precision."""
    batch = patterns()
    q = refined(LG.model(), Stretched(LG, 1.5, 1.0), batch, GradientSteps(400, 8, inflate=1.0))
    mean, exact = LG.posterior(batch)
    best = 1 / exact.inverse().diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(q.loc / best.sqrt(), mean / best.sqrt(), atol=0.05, rtol=0)
    torch.testing.assert_close(covariance(q), torch.diag_embed(best), atol=0, rtol=0.1)


def test_gradient_steps_after_laplace_keep_its_correlations() -> None:
    """Its root standardises the posterior, so that the optimum has unit widths: the exact posterior."""
    batch = patterns()
    model, guide = LG.model(), Stretched(LG, 1.5, 1.0)
    before = refined(model, guide, batch, Laplace(inflate=1.4))
    q = refined(model, guide, batch, GradientSteps(300, 8, inflate=1.0), [before])
    mean, exact = LG.posterior(batch)
    root = torch.linalg.cholesky(exact)
    torch.testing.assert_close(
        torch.linalg.solve(root, (q.loc - mean).unsqueeze(-1)).abs().max().item(), 0.0, atol=0.05, rtol=0
    )
    assert (covariance(q) @ exact.inverse() - torch.eye(2, dtype=D)).abs().max().item() < 0.1


def test_an_hmc_fit_has_the_posteriors_moments() -> None:
    batch = patterns(n=48)
    q = refined(LG.model(), Stretched(LG, 1.5, 1.0), batch, HMCFit(chains=32, draws=60, inflate=1.0))
    mean, exact = LG.posterior(batch)
    root = torch.linalg.cholesky(exact)
    away = torch.linalg.solve(root, (q.loc - mean).unsqueeze(-1)).squeeze(-1)
    assert away.square().mean().sqrt().item() < 0.08, "of standard deviations"
    ratio = torch.linalg.solve(root, covariance(q)) @ torch.linalg.inv(root).mT
    torch.testing.assert_close(ratio.mean(0), torch.eye(2, dtype=D), atol=0.05, rtol=0)
    assert (ratio - torch.eye(2, dtype=D)).square().mean().sqrt().item() < 0.12
