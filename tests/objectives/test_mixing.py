"""Weights of subsets, their entropy, and divergences of mixtures by component, in small numbers done by hand."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture
from pyro_mm.guides import Experts, mixture_of_experts, prior, product_without_prior
from pyro_mm.modality import encoders
from pyro_mm.objectives import Shares, componentwise_kl, elbo, entropy, kl, shared_elbo
from pyro_mm.objectives.components import component_kl
from tests.helpers.oracle import LG, gradients

D = torch.float64
GROUPS = [("a",), ("b",), ("a", "b")]


def shares() -> Shares:
    """pi = (0.2, 0.3, 0.5)."""
    out = Shares(GROUPS).double()
    with torch.no_grad():
        out.logits.copy_(torch.tensor([0.2, 0.3, 0.5], dtype=D).log())
    return out


def batch() -> Batch:
    """Rows with both, a, b, nothing."""
    x = {m: torch.zeros(4, 1, dtype=D) for m in "ab"}
    return Batch(x, {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, False, True, False])})


def test_rows_have_the_shares_of_the_groups_that_they_have_whole() -> None:
    truth = torch.tensor([[0.2, 1.0, 0.0, 0.0], [0.3, 0.0, 1.0, 0.0], [0.5, 0.0, 0.0, 0.0]], dtype=D)
    torch.testing.assert_close(shares().rows(batch()), truth)


def test_entropy_and_its_gradient() -> None:
    """H = -sum pi log pi in the one row of four that has several groups; dH/dlogit = -pi (log pi + H)."""
    pi = torch.tensor([0.2, 0.3, 0.5], dtype=D)
    h = -(pi * pi.log()).sum()
    own = shares()
    loss = entropy(own)(batch())
    torch.testing.assert_close(loss.detach(), -h / 4)
    torch.testing.assert_close(gradients(loss, own)["logits"], pi * (pi.log() + h) / 4)
    assert repr(entropy(own)) == "maximise  H(pi)"


def test_with_one_group_it_is_the_elbo() -> None:
    lg = LG({"a": 2, "b": 1})
    torch.manual_seed(0)
    model, guide = lg.model(), Experts(encoders(lg.modalities(), 2), product_without_prior).double()
    found = []
    for objective in (
        shared_elbo(model, guide, Shares([("a", "b")]).double(), beta=0.5, weights={"a": 2.0}, analytic_kl=True),
        elbo(model, guide, beta=0.5, weights={"a": 2.0}, analytic_kl=True),
    ):
        torch.manual_seed(1)
        loss = objective(lg.data(8))
        found.append((loss.detach(), gradients(loss, guide)))
    torch.testing.assert_close(found[0][0], found[1][0])
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name])


def test_component_kl_is_the_mean_and_more_than_the_mixtures() -> None:
    noise = torch.Generator().manual_seed(0)
    loc, scale = torch.randn(5, 3, 1, generator=noise, dtype=D), 0.4 + torch.rand(5, 3, 1, generator=noise, dtype=D)
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    mixture, single = Mixture(loc, scale, present), dist.Normal(loc[:, 0], 0.9).to_event(1)
    grid = torch.linspace(-12, 12, 6001, dtype=D).view(-1, 1, 1).expand(-1, 5, 1)
    log_mixture, log_single = mixture.expand((6001, 5)).log_prob(grid), single.expand((6001, 5)).log_prob(grid)
    for q, p, log_q, log_p in (
        (mixture, single, log_mixture, log_single),
        (single, mixture, log_single, log_mixture),
    ):
        exact = (log_q.exp() * (log_q - log_p)).sum(0) * (grid[1, 0, 0] - grid[0, 0, 0])
        found = component_kl(q, p)
        assert (found >= exact - 1e-9).all()
        alone = present.sum(-1) == 1  # with one component there is nothing to lose
        torch.testing.assert_close(found[alone], exact[alone], rtol=1e-6, atol=1e-9)
    one = Normal(loc[0, :, 0], scale[0, :, 0])
    truth = torch.distributions.kl_divergence(one, Normal(loc[0, 0, 0], 0.9)).mean()
    torch.testing.assert_close(component_kl(mixture, single)[0], truth)


def test_divergences_to_the_prior_and_by_component_are_printed_as_such() -> None:
    lg = LG({"a": 2, "b": 1})
    guide = Experts(encoders(lg.modalities(), 2), mixture_of_experts)
    assert repr(kl(guide, prior(lg.model()))) == "maximise  -KL(q(z | a, b) || p(z))"
    assert repr(componentwise_kl(guide, prior(lg.model()))) == "maximise  -mean_j KL_j(q(z | a, b) || p(z))"
    with pytest.raises(TypeError, match="Linear has no module `prior`"):
        prior(nn.Linear(1, 1))
