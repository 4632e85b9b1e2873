"""Learnt priors against densities on a grid, and likelihoods under them against quadrature and exact mixtures."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MultivariateNormal, Normal

from pyro_mm import likelihoods, networks
from pyro_mm.batch import Batch
from pyro_mm.evaluation import log_conditional, log_marginal
from pyro_mm.guides import Experts, backed, mixture_of_experts, product_of_experts
from pyro_mm.handlers import in_subsets, particles
from pyro_mm.modality import Modality, encoders
from pyro_mm.models import FlowPrior, GaussianMixture, Joint, VampPrior
from pyro_mm.objectives import elbo
from pyro_mm.weights import run
from tests.helpers.oracle import LG, set_to_exact_experts

D = torch.float64


def randomised(prior: nn.Module, spread: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    prior.double()
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(spread * torch.randn_like(p))
    return prior


def vamp(lg: LG, guide: Experts, fuse=product_of_experts, count: int = 4) -> VampPrior:
    """Inputs that are spread as data are."""
    prior = VampPrior(dict(guide.encoders.items()), fuse, count).double()
    noise = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for m, part in prior.inputs.items():
            part.u.copy_(torch.randn(count, lg.latent, generator=noise, dtype=D) @ lg.w[m].T + lg.b[m])
    return prior


def poe(lg: LG) -> Experts:
    torch.manual_seed(3)
    guide = Experts(encoders(lg.modalities(), lg.latent), product_of_experts).double()
    set_to_exact_experts(lg, guide.encoders)
    return guide


@pytest.mark.parametrize("kind", ["mixture", "flow", "vamp"])
def test_the_density_integrates_to_one_and_is_that_of_the_draws(kind: str) -> None:
    lg = LG({"a": 2, "b": 1})
    prior = {
        "mixture": lambda: randomised(GaussianMixture(2, 3)),
        "flow": lambda: randomised(FlowPrior(2, 2, (8,)), 0.2),
        "vamp": lambda: vamp(lg, poe(lg)),
    }[kind]()
    p = prior()
    axis = torch.linspace(-14, 14, 701, dtype=D)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    with torch.no_grad():
        density = p.expand(z.shape[:-1]).log_prob(z).exp() * (axis[1] - axis[0]) ** 2
        assert density.sum().item() == pytest.approx(1.0, abs=2e-3)
        torch.manual_seed(1)
        draws = p.expand((20_000,)).sample()
    for f in (lambda v: v[..., 0], lambda v: v[..., 1] ** 2, lambda v: torch.sin(v.sum(-1))):
        truth, found = (density * f(z)).sum(), f(draws)
        assert (found.mean() - truth).abs() < 4 * found.std() / len(draws) ** 0.5 + 3e-3 * found.std()


def test_a_gaussian_mixture_is_the_weighted_sum_of_its_parts() -> None:
    prior = randomised(GaussianMixture(2, 3))
    z = torch.randn(5, 2, dtype=D)
    loc, scale, shares = prior.moments()
    parts = Normal(loc, scale).log_prob(z.unsqueeze(1)).sum(-1) + shares.log()
    torch.testing.assert_close(prior().log_prob(z), parts.logsumexp(-1))
    assert not shares.requires_grad
    prior().log_prob(z).sum().backward()
    assert all(bool((p.grad != 0).all()) for p in prior.parameters())
    with pytest.raises(ValueError, match="at least 1 part"):
        GaussianMixture(2, 0)


def test_vamp_is_the_mean_of_the_posteriors_of_its_inputs() -> None:
    """Against the guide's own posterior of the same values as data; mixtures of experts have M parts for each."""
    lg = LG({"a": 3, "b": 2})
    guide, z = poe(lg), torch.randn(6, 2, dtype=D)
    for rule in (product_of_experts, mixture_of_experts):
        prior, guide.fuse = vamp(lg, guide, rule), rule
        data = Batch({m: part.u.detach() for m, part in prior.inputs.items()})
        each = guide.posterior(data).expand((6, 4)).log_prob(z.unsqueeze(1).expand(6, 4, 2))
        torch.testing.assert_close(prior().log_prob(z), each.logsumexp(-1) - torch.tensor(4.0, dtype=D).log())


def test_vamp_learns_the_inputs_of_labels_too() -> None:
    torch.manual_seed(0)
    modalities = [
        Modality("a", (3,), likelihoods.Normal(), networks.MLP((8,))),
        Modality("label", (), likelihoods.Categorical(4), networks.Embedding(8, (8,))),
    ]
    experts = encoders(modalities, 2)
    prior = VampPrior(experts, product_of_experts, 5)
    model = Joint({m.name: m.decoder(2) for m in modalities}, prior)
    guide = backed(Experts(experts, product_of_experts), prior)
    x = {"a": torch.randn(6, 3), "label": torch.randint(0, 4, (6,))}
    batch = Batch(x, {m: torch.tensor([True] * 5 + [False]) for m in x})
    elbo(model, guide)(batch).backward()
    for part in prior.inputs.values():
        assert bool((part.u.grad != 0).any()) and bool(torch.isfinite(part.u.grad).all())


def likelihood_on_grid(lg: LG, prior: nn.Module, batch: Batch) -> Tensor:
    """log integral p(z) prod_m N(x_m; W_m z + b_m, s_m^2) over one latent, by the trapezoid rule."""
    z = torch.linspace(-12, 12, 12_001, dtype=D).unsqueeze(-1)
    total = prior().expand((len(z),)).log_prob(z).unsqueeze(0).expand(len(batch), -1)
    for m in lg.dims:
        px = Normal(z @ lg.w[m].T + lg.b[m], lg.s[m]).log_prob(batch.x[m].unsqueeze(1)).sum(-1)
        total = total + torch.where(batch.mask[m].unsqueeze(-1), px, 0.0)
    return torch.where(batch.present(), total.logsumexp(-1) + (z[1, 0] - z[0, 0]).log(), 0.0)


@pytest.mark.parametrize("kind", ["mixture", "flow", "vamp"])
def test_likelihoods_under_it_are_those_of_quadrature(kind: str) -> None:
    lg = LG({"a": 2, "b": 1}, latent=1)
    guide = poe(lg)
    prior = {
        "mixture": lambda: randomised(GaussianMixture(1, 3)),
        "flow": lambda: randomised(FlowPrior(1, 2, (8,)), 0.2),
        "vamp": lambda: vamp(lg, guide),
    }[kind]()
    model = Joint(dict(lg.model().decoders.items()), prior)
    whole, batch = (
        backed(guide, prior),
        Batch(lg.data(30).x, {"a": torch.arange(30) % 3 != 0, "b": torch.arange(30) % 5 != 0}),
    )
    with torch.no_grad():
        exact = likelihood_on_grid(lg, prior, batch)
        ev = log_marginal(model, whole, batch, 3000, independent=True, seed=1)
        empty = ~batch.present()
        assert bool(empty.any()) and ev.estimate[empty].abs().max() < 1e-12
        z = (ev.estimate - exact)[~empty] / ev.se[~empty]
        assert z.abs().max() < 4.5 and 0.6 < z.square().mean().sqrt() < 1.4
        assert (ev.estimate - exact).abs().mean() < 0.05
        of = log_conditional(model, whole, batch, "a", "b", 3000, independent=True, seed=2)
        known = likelihood_on_grid(lg, prior, batch.only("b"))
        error = of.estimate - torch.where(batch.mask["a"], exact - known, 0.0)
        assert (error.abs() <= 4.5 * of.se + 1e-9).all() and error.abs().mean() < 0.06


def test_likelihoods_under_a_mixture_are_the_mixture_of_the_exact_ones() -> None:
    """Two latents: x given part c is Gaussian, N(W mu_c + b, W diag(sigma_c^2) W' + s^2 I)."""
    lg = LG({"a": 3, "b": 2})
    prior, guide, batch = randomised(GaussianMixture(2, 3)), poe(lg), lg.data(20, missing=True)
    model = Joint(dict(lg.model().decoders.items()), prior)
    exact = torch.zeros(20, dtype=D)
    loc, scale, shares = prior.moments()
    for i in range(20):
        seen = [m for m in lg.dims if bool(batch.mask[m][i])]
        if seen:
            w, b, x = (torch.cat([v[m] for m in seen]) for v in (lg.w, lg.b, {m: batch.x[m][i] for m in seen}))
            noise = torch.diag(torch.cat([torch.full((lg.dims[m],), lg.s[m] ** 2, dtype=D) for m in seen]))
            parts = MultivariateNormal(loc @ w.T + b, w @ torch.diag_embed(scale**2) @ w.T + noise).log_prob(x)
            exact[i] = (parts + shares.log()).logsumexp(0)
    with torch.no_grad():
        ev = log_marginal(model, backed(guide, prior), batch, 4000, independent=True, seed=1)
    moves = ev.se > 1e-9
    z = ((ev.estimate - exact) / ev.se)[moves]
    assert z.abs().max() < 4.5 and (ev.estimate - exact).abs().mean() < 0.05
    assert ev.estimate[~batch.present()].abs().max() < 1e-12


def test_a_backed_guide_is_the_guide_where_something_is_present_and_the_prior_elsewhere() -> None:
    lg = LG({"a": 3, "b": 2})
    guide, batch, prior = poe(lg), lg.data(10, missing=True), randomised(GaussianMixture(2, 2))
    some = batch.present()
    torch.manual_seed(2)
    site = run(backed(guide, prior), batch)["z"]
    own, new = guide.posterior(batch).log_prob(site.value), prior().expand((10,)).log_prob(site.value)
    torch.testing.assert_close(site.log_prob(), torch.where(some, own, new))
    groups = [("a",), ("b",), ("a", "b")]
    stacked = run(particles(in_subsets(backed(guide, prior), groups), 4), batch)["z"]
    assert stacked.value.shape == (4, 3, 10, 2)
    for s, group in enumerate(groups):
        seen = batch.only(*group)
        own, value = guide.posterior(seen).expand((4, 10)), stacked.value[:, s]
        truth = torch.where(seen.present(group), own.log_prob(value), prior().expand((4, 10)).log_prob(value))
        torch.testing.assert_close(stacked.log_prob()[:, s], truth)
    assert backed(guide, prior).names == ("a", "b")


def test_draws_of_rows_with_nothing_are_the_priors() -> None:
    lg = LG({"a": 1}, latent=1)
    prior = GaussianMixture(1, 2).double()
    with torch.no_grad():
        prior.loc.copy_(torch.tensor([[-5.0], [5.0]]))
        prior.logits.copy_(Categorical(torch.tensor([0.2, 0.8])).logits)
    nothing = Batch({"a": torch.zeros(4000, 1).double()}, {"a": torch.zeros(4000, dtype=torch.bool)})
    pyro.set_rng_seed(0)
    z = run(backed(poe(lg), prior), nothing)["z"].value
    assert (z > 0).double().mean().item() == pytest.approx(0.8, abs=0.03)
