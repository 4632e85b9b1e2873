"""Divergences between guides, and of a mixture's components from the prior, against closed forms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, Surrogate, mixture_of_experts, mixture_of_products, product_of_experts
from pyro_mm.guides.joint_encoder import Concatenation, JointEncoder
from pyro_mm.handlers import given
from pyro_mm.modality import encoders
from pyro_mm.objectives import componentwise_elbo, elbo, kl
from tests.helpers.noise import WithNoise
from tests.helpers.objectives import pair
from tests.helpers.oracle import assert_same_gradients, gradients, z_scores

D = torch.float64
Normal = torch.distributions.Normal


def test_divergence_of_two_guides_is_the_closed_form():
    lg, _, guide = pair()
    batch = lg.data(10, missing=True)
    other = Surrogate(JointEncoder(Concatenation(lg.modalities(), 2, 8), 2), encoders(lg.modalities(), 2)).double()
    q, p = guide.posterior(batch).base_dist, other.posterior(batch).base_dist
    truth = kl_divergence(q, p).sum() / 10
    found = kl(guide, other)
    torch.testing.assert_close(found(batch), truth, rtol=1e-12, atol=1e-12)
    programs = nn.ModuleList([guide, other])
    assert_same_gradients(gradients(found(batch), programs), gradients(truth, programs))
    assert found.report()["kl"] == pytest.approx(truth.item())
    draws = torch.stack([kl(guide, other, analytic=False, particles=100)(batch).detach() for _ in range(40)])
    assert z_scores(draws, truth.item()).abs().item() < 4
    assert kl(guide, guide)(batch).item() == 0.0


def test_divergence_from_one_modality_counts_rows_that_have_it():
    lg, _, guide = pair()
    batch = lg.data(10, missing=True)
    q, p = guide.posterior(batch).base_dist, guide.posterior(batch.only("a")).base_dist
    truth = (kl_divergence(q, p).sum(-1) * batch.mask["a"]).sum() / 10
    torch.testing.assert_close(kl(guide, given(guide, "a"))(batch), truth, rtol=1e-12, atol=1e-12)


def test_divergence_of_discrete_guides_is_exact_and_trains():
    """A single discrete site: nothing depends on the draw, so its closed form is the whole gradient."""

    class Guide(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor(logits, dtype=D))

        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                pyro.sample("z", dist.Categorical(logits=self.logits.expand(len(batch), -1)))

    q, p = Guide([0.1, 1.0, -0.5]), Guide([0.0, 0.0, 1.0])
    log_q, log_p = q.logits.log_softmax(-1), p.logits.log_softmax(-1)
    truth = (log_q.exp() * (log_q - log_p)).sum()
    found = kl(q, p)(Batch({"x": torch.zeros(4)}))
    programs = nn.ModuleList([q, p])
    torch.testing.assert_close(found, truth)
    assert_same_gradients(gradients(found, programs), gradients(truth, programs))


def test_mixture_divergences_are_sampled_and_unbiased():
    lg, _, guide = pair(mixture_of_experts, {"a": 2, "b": 2})
    other = Experts(encoders(lg.modalities(), 2), product_of_experts).double()
    batch = lg.data(3)
    grid = torch.linspace(-7, 7, 241, dtype=D)
    points = torch.cartesian_prod(grid, grid).unsqueeze(1)
    with torch.no_grad():
        q, p = (g.posterior(batch).expand((len(points), 3)).log_prob(points.expand(-1, 3, 2)) for g in (guide, other))
        truth = ((q.exp() * (q - p)).sum(0) * (grid[1] - grid[0]) ** 2).mean().item()
        draws = torch.stack([kl(guide, other, particles=200)(batch) for _ in range(40)])
    assert z_scores(draws, truth).abs().item() < 4


@pytest.mark.parametrize("fuse", [mixture_of_products, mixture_of_experts])
@pytest.mark.parametrize("missing", [False, True])
def test_componentwise_divergence_by_hand_and_below_the_mixtures_own_bound(fuse, missing):
    lg, model, guide = pair(fuse)
    batch = lg.data(5, missing=missing)
    published = componentwise_elbo(model, guide, beta=0.5)
    published(batch)
    q = guide.posterior(batch)
    truth = torch.zeros((), dtype=D)
    for n in range(5):
        present = q.weights[n] > 0
        each = kl_divergence(Normal(q.loc[n, present], q.scale[n, present]), Normal(torch.zeros(1, dtype=D), 1.0))
        truth = truth + each.sum(-1).mean()
    assert published.report()["elbo/kl"] == pytest.approx(0.5 * truth.item() / 5)
    # The gap is the information of the index about z: between 0 and the log of the number of components.
    own = elbo(model, guide, particles=200)
    draws = []
    for _ in range(20):
        own(batch)
        draws.append(own.report()["elbo/kl"])
    tight, error = torch.tensor(draws).mean().item(), 4 * torch.tensor(draws).std().item() / 20**0.5
    most = (q.weights > 0).sum(-1).double().log().mean().item()
    assert -error < truth.item() / 5 - tight - 0.01 < most + error


def test_componentwise_with_an_ordinary_guide_is_the_closed_form():
    lg, model, guide = pair()
    batch, quiet = lg.data(5), WithNoise(guide, z=torch.randn(5, 2, dtype=D))
    torch.testing.assert_close(componentwise_elbo(model, quiet)(batch), elbo(model, quiet, analytic_kl=True)(batch))


def test_componentwise_divergences_are_refused_where_closed_forms_are():
    from pyro_mm.distributions import Mixture

    class Mixed(nn.Module):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                loc = batch.x["x"].reshape(-1, 1, 1) * torch.ones(2, 1, dtype=D)
                z = pyro.sample("z", Mixture(loc, torch.ones_like(loc), torch.ones(2, dtype=D)))
                pyro.sample("u", dist.Normal(z, 1.0).to_event(1))

    class Model(nn.Module):
        def forward(self, batch: Batch) -> None:
            one = torch.ones(1, dtype=D)
            with pyro.plate("data", len(batch), dim=-1):
                u = pyro.sample("u", dist.Normal(0 * one, one).to_event(1))
                pyro.sample("z", dist.Normal(u, one).to_event(1))

    with pytest.raises(ValueError, match="not valid at site 'z'"):
        componentwise_elbo(Model(), Mixed())(Batch({"x": torch.zeros(3, dtype=D)}))
