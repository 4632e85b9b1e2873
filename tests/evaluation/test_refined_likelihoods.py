"""Likelihoods from refined proposals, latents of every kind, and what cannot be refined."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import Cascade, GradientSteps, HMCFit, Laplace, log_conditional, log_marginal
from pyro_mm.evaluation.refine import Refiner
from tests.helpers.estimates import Stretched, hidden, judge
from tests.helpers.oracle import LG as Oracle
from tests.helpers.pairs import SIZES, GuideOfNested, GuideOfPrivate, MoE, Nested, WithPrivate, data, pair
from tests.helpers.programs import BottomUp, Layers, Private, PrivateGuide
from tests.helpers.refined import LG, covariance, refined

D = torch.float64


REFINERS: dict[str, Refiner] = {
    "Laplace": Laplace(),
    "Student Laplace": Laplace(dof=5.0),
    "gradient": GradientSteps(60, 4),
    "HMC": HMCFit(),
    "cascade": Cascade((Laplace(), GradientSteps(40, 4))),
}


@pytest.mark.parametrize("name", REFINERS)
def test_likelihoods_from_every_refiner_are_exact(name: str) -> None:
    """A poor guide, any modality missing, few draws."""
    batch, q = hidden(LG.sample(200, seed=1)), Stretched(LG, 0.6, 1.5)
    ev = log_marginal(LG.model(), q, batch, 200, refine=REFINERS[name], independent=True, seed=0)
    judge(ev.estimate, ev.se, LG.log_marginal(batch), mean=0.02)
    plain = log_marginal(LG.model(), q, batch, 200, independent=True, seed=0)
    assert ev.se.mean().item() < 0.5 * plain.se.mean().item()


@pytest.mark.parametrize("name", ["Laplace", "gradient"])
def test_conditionals_from_refined_proposals_are_exact(name: str) -> None:
    batch, q = LG.sample(200, seed=1), Stretched(LG, 0.6, 1.5)
    ev = log_conditional(LG.model(), q, batch, "a", "b", 300, refine=REFINERS[name], independent=True, seed=0)
    judge(ev.estimate, ev.se, LG.log_conditional(batch, "a", "b"), mean=0.02)


class Binary(nn.Module):
    """z ~ N(0, I_2);  20 pixels ~ Bernoulli(ReLU network(z))."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 20)).double()
        with torch.no_grad():
            for p in self.net.parameters():
                p.mul_(3.0)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=batch.x["x"])

    def exact(self, x: Tensor) -> Tensor:
        line = torch.linspace(-7, 7, 281, dtype=D)
        z = torch.cartesian_prod(line, line)
        prior = dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1).log_prob(z)
        with torch.no_grad():
            logits = self.net(z)
        log_x = logits @ x.T + torch.nn.functional.logsigmoid(-logits).sum(-1, keepdim=True)
        return torch.logsumexp(prior.unsqueeze(-1) + log_x, 0) + 2 * (line[1] - line[0]).log()


class Vague(nn.Module):
    """z ~ N(0.3, 1.2^2)."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.full((2,), 0.3, dtype=D), 1.2).to_event(1))


@pytest.mark.parametrize("name", REFINERS)
def test_a_posterior_with_kinks_is_that_of_quadrature(name: str) -> None:
    torch.manual_seed(1)
    model = Binary()
    with torch.no_grad():
        batch = Batch({"x": torch.bernoulli(torch.sigmoid(model.net(torch.randn(100, 2, dtype=D))))})
    ev = log_marginal(model, Vague(), batch, 500, refine=REFINERS[name], independent=True, seed=0)
    judge(ev.estimate, ev.se, model.exact(batch.x["x"]), mean=0.02, rms=(0.75, 1.25), under_4=0.98)


@dataclass(frozen=True)
class Case:
    """A pair and what its likelihood is."""

    model: Any
    guide: Any
    batch: Batch
    exact: Tensor


def layers() -> Case:
    x = 2 * torch.randn(60, dtype=D)
    return Case(Layers(), BottomUp(), Batch({"x": x}), Layers().log_marginal(x))


def private() -> Case:
    """z and w_m integrated out: x_S is Gaussian with covariance W W' + blocks of V_m V_m' + s_m^2 I."""
    lg = Oracle()
    batch = lg.data(60, missing=True)
    model = Private(lg)
    exact = torch.zeros(60, dtype=D)
    for i in range(60):
        seen = [m for m in lg.dims if bool(batch.mask[m][i])]
        if seen:
            w, b = torch.cat([lg.w[m] for m in seen]), torch.cat([lg.b[m] for m in seen])
            own = [model.v[m].detach() @ model.v[m].detach().T + lg.s[m] ** 2 * torch.eye(lg.dims[m]) for m in seen]
            law = dist.MultivariateNormal(b, w @ w.T + torch.block_diag(*own))
            exact[i] = law.log_prob(torch.cat([batch.x[m][i] for m in seen]))
    shared = Stretched(LinearGaussian(lg.w, lg.b, lg.s), 1.3)
    return Case(model, PrivateGuide(lg, shared), batch, exact)


def nested() -> Case:
    """y integrated out, z > 0 on a grid of its logarithms."""
    model, guide = pair(Nested, GuideOfNested)
    batch = Batch(data(40).x, {"a": torch.arange(40) % 3 > 0, "b": torch.arange(40) % 4 > 0})
    line = torch.linspace(-7, 7, 401, dtype=D)
    log_z = torch.cartesian_prod(line, line)
    out = dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1).log_prob(log_z) + 2 * (line[1] - line[0]).log()
    out = out.unsqueeze(-1)
    for m, variance in (("a", 1.25), ("b", 0.25)):
        with torch.no_grad():
            loc = model.nets[m](log_z.exp()).unsqueeze(1)
        seen = dist.Normal(loc, variance**0.5).to_event(1).log_prob(batch.x[m])
        out = out + torch.where(batch.mask[m], seen, 0.0)
    return Case(model, guide, batch, torch.logsumexp(out, 0))


CASES = {"hierarchical": layers, "private": private, "nested and positive": nested}
BOTH = Cascade((Laplace(), GradientSteps(40, 4)), enough=1.0)


@pytest.mark.parametrize(
    "refiner", [Laplace(), BOTH, pytest.param(HMCFit(), marks=pytest.mark.slow)], ids=["Laplace", "both", "HMC"]
)
@pytest.mark.parametrize("case", CASES)
def test_latents_of_every_kind_can_be_refined(case: str, refiner: Refiner) -> None:
    known = CASES[case]()
    ev = log_marginal(known.model, known.guide, known.batch, 300, refine=refiner, independent=True, seed=0)
    judge(ev.estimate, ev.se, known.exact.detach(), mean=0.025, rms=(0.75, 1.25), under_4=0.98)
    assert ev.unreliable_share <= 0.05
    plain = log_marginal(known.model, known.guide, known.batch, 300, refine=False, independent=True, seed=0)
    assert ev.se.mean().item() < 0.7 * plain.se.mean().item()


def test_a_mean_field_density_of_correlated_latents_is_too_narrow_and_flagged() -> None:
    """z and w_m of `Private` are strongly correlated: KL(q || p) is least for widths far below the posterior's."""
    known = private()
    ev = log_marginal(known.model, known.guide, known.batch, 300, refine=GradientSteps(200, 8), seed=0)
    full = known.batch.mask["a"] & known.batch.mask["c"]
    error = ev.estimate - known.exact.detach()
    assert error[full].mean().item() < -0.1, "a bound that is loose"
    assert (~ev.reliable[full]).double().mean().item() > 0.4


def test_a_positive_private_latent_of_a_missing_modality_disturbs_nothing() -> None:
    """Its width would grow with every gradient step, up to values whose exponential overflows in the decoder."""

    class Model(nn.Module):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
                with pyro.poutine.mask(mask=batch.mask["a"]):
                    w = pyro.sample("w_a", dist.LogNormal(torch.zeros((), dtype=D), 1.0))
                    pyro.sample("a", dist.Normal(z * (10 * w).exp(), 1.0), obs=batch.x["a"])
                with pyro.poutine.mask(mask=batch.mask["b"]):
                    pyro.sample("b", dist.Normal(z, 0.5), obs=batch.x["b"])

    def guide(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            with pyro.poutine.mask(mask=batch.mask["a"]):
                pyro.sample("w_a", dist.LogNormal(torch.zeros((), dtype=D), 0.1))

    x = torch.randn(20, dtype=D)
    batch = Batch({"a": x, "b": 2 * x}, {"a": torch.zeros(20, dtype=torch.bool)})
    q = refined(Model(), guide, batch, GradientSteps(300, 4, inflate=1.0))
    torch.testing.assert_close(q.loc[:, 0], 2 * x * 4 / 5, atol=0.03, rtol=0)
    torch.testing.assert_close(covariance(q)[:, 0, 0], torch.full((20,), 0.2, dtype=D), atol=0, rtol=0.1)


def test_a_mixture_guide_can_be_refined() -> None:
    model, guide = pair(guide=MoE)
    batch = data(40)
    ev = log_marginal(model, guide, batch, 300, refine=Laplace(), independent=True, seed=0)
    w, b = (torch.cat([getattr(model.nets[m], p).detach() for m in SIZES]) for p in ("weight", "bias"))
    law = dist.MultivariateNormal(b, w @ w.T + 0.25 * torch.eye(5, dtype=D))
    judge(ev.estimate, ev.se, law.log_prob(torch.cat([batch.x[m] for m in SIZES], -1)), rms=(0.75, 1.25), under_4=0.98)


def test_a_conditional_prior_can_be_refined() -> None:
    """z ~ N(3 y, 1) given y, not one prior for all: x ~ N(z, 1) has log p(x | y) = N(3 y, 2)."""

    def model(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(3 * batch.x["y"], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch.x["x"])

    def guide(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(batch.x["x"], 1.5))

    y = torch.randn(60, dtype=D)
    batch = Batch({"x": 3 * y + 2**0.5 * torch.randn(60, dtype=D), "y": y})
    q = refined(model, guide, batch, Laplace(inflate=1.0))
    torch.testing.assert_close(q.loc[:, 0], (batch.x["x"] + 3 * y) / 2, atol=1e-6, rtol=0)
    ev = log_marginal(model, guide, batch, 300, refine=Laplace(), independent=True, seed=0)
    judge(ev.estimate, ev.se, dist.Normal(3 * y, 2**0.5).log_prob(batch.x["x"]), rms=(0.7, 1.3))


def test_a_latent_that_cannot_be_refined_is_named() -> None:
    def kinds(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            kind = pyro.sample("kind", dist.Categorical(torch.ones(2, dtype=D)))
            z = pyro.sample("z", dist.Normal(kind.double(), 1.0))
            if "obs" in batch.x:
                pyro.sample("obs", dist.Normal(z, 1.0), obs=batch.x["obs"])

    def guide(batch: Batch) -> None:
        kinds(Batch({"other": batch.x["obs"]}))

    batch = Batch({"obs": torch.randn(5, dtype=D)})
    with pytest.raises(ValueError, match=r"latent 'kind' \(Categorical\) has no density over real numbers"):
        log_marginal(kinds, guide, batch, 10, refine=True)
    exact = torch.logsumexp(dist.Normal(torch.tensor([[0.0], [1.0]]).double(), 2**0.5).log_prob(batch.x["obs"]), 0)
    ev = log_marginal(kinds, guide, batch, target_se=0.02, seed=0)
    judge(ev.estimate, ev.se, exact - log(2), rms=(0.0, 2.0))
    model, q = pair(WithPrivate, GuideOfPrivate)
    with pytest.raises(ValueError, match=r"the model's latents \['u'\] are not in the guide: a proposal cannot"):
        log_marginal(model, q, data(), 10, refine=Laplace())
