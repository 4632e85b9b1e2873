"""Sticking the landing: unbiased, quiet near the optimum, for mixtures and layers too."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.guides import mixture_of_experts
from pyro_mm.objectives import elbo
from tests.helpers.noise import WithNoise
from tests.helpers.objectives import pair
from tests.helpers.oracle import LG, assert_same_gradients, gradients, z_scores
from tests.helpers.programs import BottomUp, Layers, PerRow

D = torch.float64


@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_sticking_the_landing_is_unbiased_and_quieter_near_the_optimum(spread):
    lg = LG({"a": 4, "b": 3})
    rows = 20_000
    one = lg.data(1)
    batch = one[[0] * rows]
    mean, covariance = lg.posterior(one)
    log_scale = (covariance.inverse().diagonal(dim1=-1, dim2=-2) ** -0.5 * spread).log()
    guide = PerRow(mean, log_scale, rows)
    plain, landed, closed = (
        gradients(rows * elbo(lg.model(), guide, **how)(batch), guide)
        for how in ({}, {"stl": True}, {"analytic_kl": True})
    )
    # E: mean-field optimum for the posterior's precision P: grad_loc = P (loc - mean), grad_log_scale = P_dd s^2 - 1
    truth = {"loc": torch.zeros(2, dtype=D), "log_scale": torch.full((2,), spread**2 - 1, dtype=D)}
    for name in truth:
        for found in (plain, landed, closed):
            assert z_scores(found[name], truth[name]).abs().max().item() < 4.2
    if spread == 1.0:
        off = (covariance.inverse()[0, 0, 1].abs() / covariance.inverse()[0].diagonal().min()).item()
        assert off > 0.05  # so that the landing has some variance left
        for name in truth:
            assert (landed[name].std(0) < 0.6 * plain[name].std(0)).all()


def test_sticking_the_landing_at_the_exact_posterior_has_no_noise():
    lg = LG()
    batch = lg.data(6)
    mean, covariance = lg.posterior(batch)
    model = LG.model(lg)

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(mean)
            self.tril = nn.Parameter(torch.linalg.cholesky(covariance))

        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                pyro.sample("z", dist.MultivariateNormal(self.loc, scale_tril=self.tril))

    guide = Exact()
    landed = gradients(elbo(model, guide, stl=True, particles=5)(batch), guide)
    plain = gradients(elbo(model, guide, particles=5)(batch), guide)
    assert max(g.abs().max().item() for g in landed.values()) < 1e-12
    assert max(g.abs().max().item() for g in plain.values()) > 1e-2


def test_sticking_the_landing_for_a_mixture_and_for_two_layers():
    """Same expected gradient as the plain estimator, for guides whose log q is not a single Normal's."""
    lg, model, guide = pair(mixture_of_experts, {"a": 2, "b": 2})
    batch = lg.data(1)[[0] * 400]
    for p, q, data in (
        (model, guide, batch),
        (Layers(), BottomUp(), Batch({"x": torch.full((400,), 0.7, dtype=D)})),
    ):
        found = []
        for how in ({}, {"stl": True}):
            term = elbo(p, q, particles=10, **how)
            draws = [torch.cat([g.flatten() for g in gradients(term(data), q).values()]) for _ in range(25)]
            found.append(torch.stack(draws))
        difference = found[0].mean(0) - found[1].mean(0)
        error = ((found[0].var(0) + found[1].var(0)) / 25).sqrt()
        live = error > 1e-10
        assert live.any()
        z = difference[live] / error[live]
        assert z.abs().max().item() < 5
        assert z.square().mean().item() < 2


def test_a_closed_form_keeps_its_gradient_beside_sticking_the_landing():
    """With both asked for, sites with a closed form use it; a frozen closed form would train no guide."""
    lg, model, guide = pair()
    batch, noise = lg.data(10, missing=True), torch.randn(10, 2, dtype=D)
    quiet = WithNoise(guide, z=noise)
    both = elbo(model, quiet, analytic_kl=True, stl=True)(batch)
    closed = elbo(model, quiet, analytic_kl=True)(batch)
    torch.testing.assert_close(both, closed)
    assert_same_gradients(gradients(both, guide), gradients(closed, guide))
