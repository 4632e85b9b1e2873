"""Refined proposals: the density that they ought to find, its sampler, and likelihoods from it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import Cascade, GradientSteps, HMCFit, Laplace, log_conditional, log_marginal
from pyro_mm.evaluation.check.densities import bridge
from pyro_mm.evaluation.effort import Effort, fit
from pyro_mm.evaluation.latents import Coordinates
from pyro_mm.evaluation.marginal import Marginal
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.evaluation.refine import Refined, Refiner
from pyro_mm.evaluation.refine.cascade import efficiency
from pyro_mm.evaluation.target import Target
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import run
from tests.helpers.estimates import Folded, OneMode, Prior, Stretched, hidden, judge, truth
from tests.helpers.oracle import LG as Oracle
from tests.helpers.pairs import SIZES, GuideOfNested, GuideOfPrivate, MoE, Nested, WithPrivate, data, pair
from tests.helpers.programs import BottomUp, Layers, Private, PrivateGuide

D = torch.float64
LG = truth()
REFINERS: dict[str, Refiner] = {
    "Laplace": Laplace(),
    "Student Laplace": Laplace(dof=5.0),
    "gradient": GradientSteps(60, 4),
    "HMC": HMCFit(),
    "cascade": Cascade((Laplace(), GradientSteps(40, 4))),
}


def patterns(oracle: LinearGaussian = LG, n: int = 64) -> Batch:
    """Every subset of a, b, c, the empty one included."""
    kept = torch.arange(n) % 8
    return Batch(oracle.sample(n, seed=1).x, {m: (kept & (1 << i)) > 0 for i, m in enumerate("abc")})


def refined(
    model: Program, guide: Program, batch: Batch, refiner: Refiner, before: list[Refined] | None = None
) -> Refined:
    with evaluating(model, guide, seed=0):
        return fit(Marginal(model, guide, "", Effort()), batch, refiner, before or [])[0]


def covariance(q: Refined) -> Tensor:
    return q.root @ q.root.mT


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


# The density and its sampler.


def made(dof: float, positive: bool = False, n: int = 6, dim: int = 3) -> Refined:
    """Some density over a latent of two coordinates and one that is masked in every third row."""

    def guide(batch: Batch) -> None:
        family = dist.LogNormal if positive else dist.Normal
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", family(torch.zeros(2, dtype=D), 1.0).to_event(1))
            with pyro.poutine.mask(mask=batch.mask["a"]):
                pyro.sample("w", family(torch.zeros(dim - 2, dtype=D), 1.0).to_event(1))

    batch = Batch({"a": torch.zeros(n, 1, dtype=D)}, {"a": torch.arange(n) % 3 > 0})
    where = Coordinates.of(run(particles(guide, 1), batch), n)
    root = torch.tril(0.3 * torch.randn(n, dim, dim, dtype=D), -1)
    root = root + torch.diag_embed(0.5 + torch.rand(n, dim, dtype=D))
    return Refined(where, torch.randn(n, dim, dtype=D), root, dof)


@pytest.mark.parametrize("dof", [inf, 4.0])
def test_the_density_is_that_of_the_multivariate_t(dof: float) -> None:
    """And in rows in which w is masked, of z alone: its own marginal."""
    q = made(dof)
    u = 2 * torch.randn(5, 6, 3, dtype=D)
    found = q.log_density(u)
    for i in range(6):
        size = 3 if i % 3 else 2
        loc, root = q.loc[i, :size], q.root[i, :size, :size]
        law = dist.MultivariateStudentT(dof, loc, root) if dof < inf else dist.MultivariateNormal(loc, scale_tril=root)
        torch.testing.assert_close(found[:, i], law.log_prob(u[:, i, :size]))
    lost = u.clone()
    lost[:, 0, 2] = inf
    torch.testing.assert_close(q.log_density(lost)[:, 0], found[:, 0])


@pytest.mark.parametrize("dof", [inf, 4.0])
@pytest.mark.parametrize("positive", [False, True])
def test_the_density_of_the_latents_integrates_to_one(dof: float, positive: bool) -> None:
    """Over z itself, its Jacobian included: sum over the cells of a grid in log z for a positive one."""
    q = made(dof, positive, n=3)[torch.tensor([0])]
    line = torch.linspace(-60, 60, 1201, dtype=D)
    u = torch.cartesian_prod(line, line).view(-1, 1, 2)
    z = (u.exp() if positive else u).unsqueeze(1)
    size = torch.where(torch.tensor(positive), u.sum(-1), 0.0) + 2 * (line[1] - line[0]).log()
    w = torch.ones(len(u), 1, 1, 1, dtype=D)
    total = torch.logsumexp((q.log_prob({"z": z, "w": w}, len(u)) + size)[:, 0], 0)
    assert total.exp().item() == pytest.approx(1, abs=2e-3 if dof < inf else 1e-6)


@pytest.mark.parametrize("dof", [inf, 4.0])
@pytest.mark.parametrize("positive", [False, True])
def test_the_sampler_matches_the_density(dof: float, positive: bool) -> None:
    """Mean of r / (q/2 + r/2) = 1; and a density that is off by a tenth in its widths is found out."""
    q = made(dof, positive, n=60)
    rows = torch.arange(60)[torch.arange(60) % 3 > 0]
    part = q[rows]
    pilots, draws = part.sample(200), part.sample(2000)
    off, error = bridge(pilots, draws, part.log_density)
    assert abs(off) < 4 * error and error < 0.002
    narrow = Refined(part.coordinates, part.loc, 0.9 * part.root, dof)
    off, error = bridge(pilots, draws, narrow.log_density)
    assert abs(off) > 6 * error
    made_ = q.draw(50)
    torch.testing.assert_close(made_.log_q, q.log_prob(made_.values, 50))


def test_rows_are_replaced_one_by_one() -> None:
    one, other, at = made(inf), made(inf), torch.tensor([1, 4])
    both = one.replaced(at, other[at])
    u = torch.randn(5, 6, 3, dtype=D)
    expected = one.log_density(u)
    expected[:, at] = other.log_density(u)[:, at]
    torch.testing.assert_close(both.log_density(u), expected)
    with pytest.raises(ValueError, match="inf and 4 degrees of freedom cannot stand side by side"):
        one.replaced(at, made(4.0)[at])


# Likelihoods.


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


def test_one_mode_of_two_is_flagged() -> None:
    """Refining sharpens the view of the mode that the guide knows; what shows the other are the guide and the prior
    beside it, and the k-hat of what they find.
    """
    x = torch.full((60,), 6.0, dtype=D) + 0.5 * torch.randn(60, dtype=D)
    batch = Batch({"x": x})
    alone = refined(Folded(), OneMode(), batch, Laplace())
    where = Target(Folded(), batch, alone.coordinates)
    with torch.no_grad():
        u = alone.sample(2000)
        seen = torch.logsumexp(where(u) - alone.log_density(u), 0) - log(2000)
    assert (seen - Folded.exact(x)).mean().item() == pytest.approx(-log(2), abs=0.05), "half of the mass, silently"
    ev = log_marginal(Folded(), OneMode(), batch, 2000, refine=Laplace(), seed=0)
    error = ev.estimate - Folded.exact(x)
    assert abs(error.mean().item()) < 0.1
    assert ev.unreliable_share > 0.9 and ev.khat.median().item() > 1
    silent = log_marginal(Folded(), OneMode(), batch, 2000, refine=Laplace(), defensive=0.0, seed=0)
    assert silent.unreliable_share < 0.2 and (silent.estimate - Folded.exact(x)).mean().item() < -0.6


class Fixed:
    """A refiner that finds what it is told, and counts the rows that it was asked for."""

    def __init__(self, scale: Tensor) -> None:
        self.scale, self.rows = scale, 0

    def __call__(self, target: Target, pilots: Tensor, before: Refined | None = None) -> Refined:
        mean, exact = LG.posterior(target.batch)
        self.rows += len(mean)
        scale = self.scale[target.batch.x["row"].long()]
        return Refined(target.coordinates, mean, scale.view(-1, 1, 1) * torch.linalg.cholesky(exact))


def test_a_cascade_takes_the_best_for_every_row() -> None:
    """First good in even rows and bad in the others; then good in half of these and worse in the rest."""
    n = 40
    kind = torch.arange(n) % 4
    data_ = LG.sample(n, seed=1)
    batch = Batch({**data_.x, "row": torch.arange(n).double()})
    first = Fixed(torch.tensor([1.1, 5.0, 1.1, 5.0], dtype=D)[kind])
    second = Fixed(torch.tensor([9.0, 1.2, 9.0, 20.0], dtype=D)[kind])
    third = Fixed(torch.full((n,), 1.0, dtype=D))
    q = refined(LG.model(), Stretched(LG, 1.0), batch, Cascade((first, second)))
    assert (first.rows, second.rows) == (n, n // 2)
    found = covariance(q).diagonal(dim1=-2, dim2=-1) / LG.posterior(batch)[1].diagonal(dim1=-2, dim2=-1)
    wanted = torch.tensor([1.1, 1.2, 1.1, 5.0], dtype=D)[kind].square()
    torch.testing.assert_close(found, wanted.unsqueeze(-1).expand(n, 2))
    refined(LG.model(), Stretched(LG, 1.0), batch, Cascade((Fixed(torch.ones(n, dtype=D)), third)))
    assert third.rows == 0


@pytest.mark.parametrize("scale", [1.2, 2.0])
def test_the_efficiency_of_too_wide_a_gaussian_in_closed_form(scale: float) -> None:
    """(sqrt(2 c^2 - 1) / c^2)^D."""
    batch = LG.sample(200, seed=1)
    where = refined(LG.model(), Stretched(LG, 1.0), batch, Laplace(inflate=1.0))
    q = Refined(where.coordinates, where.loc, scale * where.root)
    with torch.no_grad():
        share = efficiency(q, Target(LG.model(), batch, q.coordinates), 2000)
    assert share.mean().item() == pytest.approx(((2 * scale**2 - 1) ** 0.5 / scale**2) ** 2, rel=0.02)


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
