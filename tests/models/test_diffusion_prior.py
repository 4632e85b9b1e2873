"""Diffusions as priors: what they are before they are fitted, and how near to the truth afterwards."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, log_marginal
from pyro_mm.models import DiffusionPrior, Joint
from pyro_mm.models.diffusion_prior import Averaged, Velocity
from pyro_mm.objectives import denoising, dreg, elbo, iwae
from pyro_mm.weights import log_weights
from tests.helpers.diffusions import KnownDiffusion
from tests.helpers.oracle import LG, ExactGuide

D = torch.float64


class Rows(torch.nn.Module):
    """A guide whose z is the data themselves."""

    names = ("x",)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Delta(batch.x["x"], event_dim=1))


def fitted(prior: DiffusionPrior, x: torch.Tensor, steps: int, lr: float, size: int = 256) -> None:
    objective = denoising(Rows(), prior.velocity)
    optimiser = torch.optim.Adam([p for p in prior.parameters() if p.requires_grad], lr, fused=True)
    objective.train()
    for i in range(steps):
        optimiser.param_groups[0]["lr"] = lr * (1 - i / steps)
        optimiser.zero_grad()
        objective(Batch({"x": x[torch.randint(len(x), (size,))]})).backward()
        optimiser.step()
    prior.eval()


def test_unfitted_it_is_the_standard_normal() -> None:
    prior = DiffusionPrior(3, width=16).double()
    z = torch.randn(20, 3, dtype=D)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(prior().log_prob(z), normal)
    torch.manual_seed(0)
    one = prior().sample((5,))
    torch.manual_seed(0)
    torch.testing.assert_close(one, torch.randn(5, 3, dtype=D))


@pytest.mark.slow
def test_fitted_to_a_mixture_its_flow_has_the_mixtures_density() -> None:
    """Within 0.05 nat of the exact value, on average over new data, and its draws are as likely as real ones."""
    torch.manual_seed(0)
    truth = KnownDiffusion(2)
    prior = DiffusionPrior(2, width=128)
    fitted(prior, truth.sample(20_000).float(), 2000, 3e-3)
    x = truth.sample(2000, seed=5).float()
    with torch.no_grad():
        density, bound = prior(), prior.bound()
        error = density.log_prob(x) - truth.log_prob(x.double())
        drawn = truth.log_prob(density.sample((2000,)).double())
        below = torch.stack([bound.log_prob(x) for _ in range(100)]).mean(0).mean() - truth.log_prob(x.double()).mean()
    assert abs(error.mean()) < 0.05
    assert error.abs().mean() < 0.15
    assert abs(drawn.mean() - truth.log_prob(x.double()).mean()) < 0.12
    assert -0.4 < below < 0.05


class Known(torch.nn.Module):
    """The exact velocity of a mixture of Gaussians."""

    def __init__(self, truth: KnownDiffusion) -> None:
        super().__init__()
        self.truth = truth

    def forward(self, z: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
        return self.truth.velocity(z, angle)


def mixture_evidence(truth: KnownDiffusion, lg: LG, batch: Batch) -> torch.Tensor:
    """log sum_c w_c N(x; W mu_c + b, W S_c W' + R), exact."""
    w, b = torch.cat(list(lg.w.values())), torch.cat(list(lg.b.values()))
    noise = torch.cat([torch.full((d,), lg.s[m] ** 2, dtype=D) for m, d in lg.dims.items()]).diag()
    x = torch.cat([batch.x[m] for m in lg.dims], -1)
    parts = [
        torch.distributions.MultivariateNormal(w @ mu + b, w @ s.square().diag() @ w.T + noise).log_prob(x)
        for mu, s in zip(truth.mu, truth.s, strict=True)
    ]
    return (torch.stack(parts, -1) + truth.w.log()).logsumexp(-1)


def test_likelihoods_under_it_are_exact_and_say_how_the_prior_was_computed() -> None:
    """A mixture's own velocity, linear-Gaussian decoders: log p(x) is a mixture of Gaussians in closed form."""
    torch.manual_seed(0)
    truth, lg = KnownDiffusion(2), LG({"a": 3, "b": 2})
    prior = DiffusionPrior(2, steps=12, net=Known(truth))
    model, guide = Joint(lg.model().decoders, prior), ExactGuide(lg)
    z = truth.sample(20, seed=7)
    batch = Batch({m: z @ lg.w[m].T + lg.b[m] + lg.s[m] * torch.randn(20, d, dtype=D) for m, d in lg.dims.items()})
    ev = log_marginal(model, guide, batch, 400, refine=False, defensive=0.5, seed=0)
    error = ev.estimate - mixture_evidence(truth, lg, batch)
    assert abs(error.mean()) < 0.05
    assert ((error / ev.se.clamp(min=0.005)).abs() < 5).all()
    assert ev.proposal.endswith("; p(z) by the probability flow, 12 steps of Runge and Kutta")
    prior.options["probes"] = 3
    assert "trace by 3 random directions, which biases weights" in prior.density_note


def test_the_error_of_its_steps_is_small_where_draws_lie_and_seen_where_they_do_not() -> None:
    truth = KnownDiffusion(2)
    prior = DiffusionPrior(2, steps=12, net=Known(truth))
    near, far = truth.sample(200, seed=7), 4.0 * torch.randn(200, 2, dtype=D)
    for z, most in ((near, 0.05), (far, 100.0)):
        with torch.no_grad():
            true = prior().log_prob(z) - truth.log_prob(z)
        told = prior.error(z)
        assert true.abs().max() < most
        wrong = true.abs() > 0.5
        assert (told[wrong] / true[wrong]).min() > 0.3 if bool(wrong.any()) else told.abs().max() < 0.05
        assert bool(wrong.any()) == (most > 1)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_draws_that_do_not_follow_its_density_give_no_likelihood(sampler: str) -> None:
    lg = LG({"a": 3, "b": 2})
    prior = DiffusionPrior(2, width=8, sampler=sampler).double()
    model, guide, batch = Joint(lg.model().decoders, prior), ExactGuide(lg), lg.data(4)
    with pytest.raises(NoLikelihood, match=f"draws by '{sampler}', and these draws do not follow the flow's density"):
        log_marginal(model, guide, batch, 10)
    prior.options["sampler"] = "flow"
    assert log_marginal(model, guide, batch, 10).estimate.isfinite().all()


def test_the_mean_of_the_weights_is_what_it_uses() -> None:
    net = Velocity(2, 8, 1)
    mean: Any = Averaged(net)
    weights = []
    for step in range(3):
        with torch.no_grad():
            net.enter.weight += 1.0
        assert mean.learning() is net and int(mean.steps) == step + 1
        weights.append(net.enter.weight.clone())
    expected = weights[0] - 1.0
    for step, w in enumerate(weights, 1):
        kept = step / (step + 10)
        expected = kept * expected + (1 - kept) * w
    torch.testing.assert_close(mean.mean.enter.weight.detach(), expected)
    mean.eval()
    assert mean.learning() is mean.mean and int(mean.steps) == 3
    assert not any(p.requires_grad for p in mean.mean.parameters())


def test_its_bound_trains_the_network_and_is_exact_before_that() -> None:
    torch.manual_seed(0)
    prior = DiffusionPrior(2, width=8).double().train()
    z = torch.randn(4000, 2, dtype=D)
    bound = prior.bound().log_prob(z)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert abs((bound - normal).mean()) < 4 * (bound - normal).std() / 4000**0.5
    bound.mean().backward()
    assert prior.velocity.net.leave[-1].weight.grad.abs().sum() > 0 and int(prior.velocity.steps) == 1


def test_its_bound_is_no_density_and_likelihoods_say_so() -> None:
    """One draw of a bound, exponentiated, is too large on average; with one draw it is an ELBO like any other."""
    lg = LG({"a": 3, "b": 2})
    prior = DiffusionPrior(2, width=8).double().train()
    exact = lg.model()
    model = Joint(exact.decoders, prior.bound)
    guide = variants.mvae(lg.modalities(), 2).guide.double()
    batch = lg.data(20)
    with pytest.raises(NoLikelihood, match=r"DiffusionPrior\.bound, one noisy draw of a lower bound"):
        log_marginal(model, guide, batch, 10)
    for objective in (iwae(model, guide, 2), dreg(model, guide, 2)):
        with pytest.raises(ValueError, match="'z' gives a noisy draw of a bound"):
            objective(batch)
    with pytest.raises(ValueError, match="'z' gives a noisy draw of a bound"):
        log_weights(model, guide, batch, 2)
    assert torch.isfinite(iwae(model, guide, 1)(batch)) and torch.isfinite(elbo(model, guide)(batch))
    log_marginal(Joint(exact.decoders, prior), guide, batch, 10)


def test_rows_with_nothing_present_teach_it_nothing() -> None:
    torch.manual_seed(0)
    prior = DiffusionPrior(2, width=8)
    objective = denoising(Rows(), prior.velocity).eval()
    x = torch.randn(6, 2)
    junk, mask = x.clone(), torch.tensor([True, False, True, True, False, True])
    junk[~mask] = 100.0
    losses = []
    for value in (x, junk):
        torch.manual_seed(1)
        losses.append(objective(Batch._view({"x": value}, {"x": mask})))
    assert torch.equal(*losses)
    assert objective(Batch._view({"x": x}, {"x": torch.zeros(6, dtype=torch.bool)})) == 0
