"""Importance-weighted bounds: exact values, their order, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, mixture_of_products, product_of_experts
from pyro_mm.handlers import given
from pyro_mm.modality import encoders
from pyro_mm.objectives import dreg, elbo, iwae, looser
from tests.helpers.multisample import lme
from tests.helpers.noise import WithNoise
from tests.helpers.oracle import LG, ExactGuide, MeanField, assert_same_gradients, gradients

D = torch.float64
Normal = torch.distributions.Normal


def by_hand(lg: LG, guide: MeanField, batch: Batch, noise: Tensor) -> Tensor:
    """log w `(K, N)` of a mean-field guide at given noise."""
    loc, scale = guide.moments(batch)
    z = loc + scale * noise
    log_w = Normal(0.0, 1.0).log_prob(z).sum(-1) - Normal(loc, scale).log_prob(z).sum(-1)
    for m in lg.dims:
        log_w = log_w + Normal(z @ lg.w[m].T + lg.b[m], lg.s[m]).log_prob(batch.x[m]).sum(-1)
    return log_w


@pytest.mark.parametrize("objective", [iwae, dreg])
def test_value_by_hand(objective):
    lg = LG()
    batch, guide, noise = lg.data(5), MeanField(lg), torch.randn(8, 5, 2, dtype=D)
    loss = objective(lg.model(), WithNoise(guide, z=noise.unsqueeze(1)), 8)
    truth = lme(by_hand(lg, guide, batch, noise)).mean()
    torch.testing.assert_close(loss(batch), -truth, rtol=1e-12, atol=1e-12)
    assert loss.report()[objective.__name__] == pytest.approx(truth.item())


def test_gradient_of_iwae_by_hand():
    lg = LG()
    batch, guide, noise = lg.data(5), MeanField(lg), torch.randn(8, 5, 2, dtype=D)
    found = gradients(iwae(lg.model(), WithNoise(guide, z=noise.unsqueeze(1)), 8)(batch), guide)
    assert_same_gradients(found, gradients(-lme(by_hand(lg, guide, batch, noise)).mean(), guide))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("objective", [iwae, dreg])
def test_the_exact_posterior_gives_the_exact_likelihood(objective, k):
    lg = LG()
    batch = lg.data(10, missing=True)
    value = objective(lg.model(), ExactGuide(lg), k)(batch)
    torch.testing.assert_close(value, -lg.log_marginal(batch).mean(), rtol=0, atol=1e-12)


def test_bounds_come_in_order():
    """ELBO <= IWAE_2 <= IWAE_10 <= IWAE_100 <= log p, each step by more than its standard error."""
    lg = LG()
    batch, guide, model = lg.data(3000), MeanField(lg, spread=1.7), lg.model()
    truth = lg.log_marginal(batch)
    with torch.no_grad():
        gaps = []
        for k in (1, 2, 10, 100):
            log_w = by_hand(lg, guide, batch, torch.randn(k, 3000, 2, dtype=D))
            gaps.append(truth - lme(log_w))
            value = -(iwae(model, guide, k) if k > 1 else elbo(model, guide))(batch)
            error = 2**0.5 * gaps[-1].std() / 3000**0.5
            assert (value - lme(log_w).mean()).abs().item() < 4 * error.item()
    for loose, tight in pairwise(gaps):
        z = (loose - tight).mean() / ((loose.var() + tight.var()) / 3000).sqrt()
        assert z.item() > 4
    assert gaps[0].mean().item() > 0.2
    assert gaps[-1].mean().item() > -4 * (gaps[-1].std() / 3000**0.5).item()


def test_the_model_trains_as_with_iwae():
    lg = LG()
    batch, noise, model = lg.data(5, missing=True), torch.randn(6, 1, 5, 2, dtype=D), lg.model()
    guide = WithNoise(Experts(encoders(lg.modalities(), 2), product_of_experts).double(), z=noise)
    plain, doubly = (objective(model, guide, 6)(batch) for objective in (iwae, dreg))
    torch.testing.assert_close(plain, doubly)
    assert_same_gradients(gradients(plain, model), gradients(doubly, model))


def test_rows_without_a_source_are_not_counted():
    lg = LG()
    batch, model = lg.data(10, missing=True), lg.model()
    guide = Experts(encoders(lg.modalities(), 2), mixture_of_products).double()
    noise = torch.randn(6, 1, 10, 2, dtype=D)
    quiet = WithNoise(Experts(guide.encoders, product_of_experts), z=noise)
    keep = batch.mask["a"]
    for objective in (iwae, dreg):
        whole = objective(model, given(quiet, "a"), 6)(batch)
        rows = WithNoise(quiet.program, z=noise[:, :, keep])
        part = objective(model, given(rows, "a"), 6)(batch[keep]) * int(keep.sum()) / 10
        torch.testing.assert_close(whole, part, rtol=1e-12, atol=1e-12)
        programs = nn.ModuleList([model, guide])
        assert_same_gradients(gradients(whole, programs), gradients(part, programs))


class Coin(nn.Module):
    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Bernoulli(0.5))


def test_sites_without_reparameterisation_are_refused():
    batch = Batch({"a": torch.zeros(3)})
    for objective in (iwae(Coin(), Coin(), 3), dreg(Coin(), Coin(), 3), looser(Coin(), Named(), 3)):
        with pytest.raises(ValueError, match=r"guide site 'z' \(Bernoulli\) is not reparameterised"):
            objective(batch)


class Named(Coin):
    names = ("a",)


def test_settings_that_make_no_sense():
    for objective in (iwae, dreg, looser):
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            objective(Coin(), Named(), 0)
    with pytest.raises(ValueError, match="needs the names of the guide's experts"):
        looser(Coin(), Coin(), 3)
