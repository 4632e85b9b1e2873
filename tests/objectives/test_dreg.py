"""Doubly reparameterised gradients: IWAE's in expectation, with less noise."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import independent_components
from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.handlers import given, in_subsets
from pyro_mm.modality import encoders
from pyro_mm.objectives import Warmup, dreg, iwae
from tests.helpers.multisample import agree, off_centre
from tests.helpers.noise import WithNoise
from tests.helpers.oracle import LG, MeanField, assert_same_gradients, gradients, z_scores
from tests.helpers.programs import Layers, PerRow, PerRowLayers, PerRowMixture

D = torch.float64
Normal = torch.distributions.Normal


def replicas(rows: int) -> tuple[LG, Batch, PerRow]:
    """One datum `rows` times, a guide with parameters per row: every row is one draw of the gradient estimator."""
    lg = LG({"a": 4, "b": 3})
    one = lg.data(1)
    mean, covariance = lg.posterior(one)
    log_scale = covariance.diagonal(dim1=-1, dim2=-2).sqrt().log() + 0.2
    return lg, one[[0] * rows], PerRow(mean + 0.1, log_scale, rows)


@pytest.mark.parametrize(("k", "rows", "quieter"), [(2, 20_000, 1.0), (10, 8000, 2.0), (100, 2000, 5.0)])
def test_dreg_has_the_expected_gradient_of_iwae_and_less_noise(k, rows, quieter):
    lg, batch, guide = replicas(rows)
    model = lg.model()
    plain, doubly = (gradients(rows * objective(model, guide, k)(batch), guide) for objective in (iwae, dreg))
    agree(plain, doubly)
    for name in plain:
        assert (plain[name].std(0) > quieter * doubly[name].std(0)).all(), name
        assert z_scores(doubly[name], 0.0).abs().max().item() > 6  # there is a gradient to be right about


def test_dreg_by_hand():
    """The path gets w^2, log q none; model parameters get w (Tucker et al. 2019, eq. 8)."""
    lg = LG()
    batch, guide, noise = lg.data(5), MeanField(lg), torch.randn(8, 5, 2, dtype=D)
    model = lg.model()
    found = dreg(model, WithNoise(guide, z=noise.unsqueeze(1)), 8)(batch)
    loc, scale = guide.moments(batch)
    z = loc + scale * noise
    leaf = z.detach().requires_grad_()
    log_w = Normal(0.0, 1.0).log_prob(leaf).sum(-1) - Normal(loc.detach(), scale.detach()).log_prob(leaf).sum(-1)
    for m, decoder in model.decoders.items():
        mean = leaf @ decoder.net[0].weight.T + decoder.net[0].bias
        log_w = log_w + Normal(mean, lg.s[m]).log_prob(batch.x[m]).sum(-1)
    w = log_w.detach().softmax(0)
    model_gradient = gradients_of((w * log_w).sum() / -5, model)
    (path,) = torch.autograd.grad(log_w.sum(), leaf, retain_graph=True)
    guide_gradient = gradients(-(w.unsqueeze(-1) ** 2 * path * z).sum() / 5, guide)
    assert_same_gradients(gradients_of(found, model), model_gradient)
    assert_same_gradients(gradients(found, guide), guide_gradient)


def gradients_of(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """`gradients` that leaves the graph for another call."""
    named = dict(module.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), retain_graph=True), strict=True))


def test_dreg_of_two_layers_by_hand():
    """The gate stands between a layer and its densities, not between the layers: w^2 once on every path."""
    k, rows = 7, 3
    batch = Batch({"x": torch.tensor([0.5, -1.0, 2.0], dtype=D)})
    model, guide = Layers(), PerRowLayers(rows)
    noise = {n: torch.randn(k, 1, rows, dtype=D) for n in ("u", "z")}
    found = gradients(dreg(model, Plain(guide, **noise), k)(batch), guide)
    u = guide.m + guide.log_s.exp() * noise["u"][:, 0]
    z = guide.a + guide.b * u + guide.log_t.exp() * noise["z"][:, 0]
    lu, lz = u.detach().requires_grad_(), z.detach().requires_grad_()
    p = {n: v.detach() for n, v in guide.named_parameters()}
    log_w = (
        Normal(0.0, 1.0).log_prob(lu) + Normal(lu, 0.8).log_prob(lz) + Normal(model.w * lz, 0.5).log_prob(batch.x["x"])
    )
    log_q = Normal(p["m"], p["log_s"].exp()).log_prob(lu) + Normal(p["a"] + p["b"] * lu, p["log_t"].exp()).log_prob(lz)
    gu, gz = torch.autograd.grad((log_w - log_q).sum(), [lu, lz])
    w = (log_w - log_q).detach().softmax(0)
    truth = gradients(-(w**2 * (gu * u + gz * z)).sum() / rows, guide)
    assert_same_gradients(found, truth)


class Plain(WithNoise):
    """Noise for sites that are Normal without event dimensions."""

    def forward(self, batch: Batch) -> None:
        from pyro.poutine.messenger import Messenger

        noise = self.noise

        class Fixed(Messenger):
            def _pyro_sample(self, msg) -> None:
                if msg["name"] in noise and msg["value"] is None:
                    msg["value"], msg["done"] = msg["fn"].loc + msg["fn"].scale * noise[msg["name"]], True

        with Fixed():
            self.program(batch)


@pytest.mark.parametrize("k", [5, 100])
def test_dreg_of_two_layers_is_unbiased_and_quieter(k):
    rows = 40_000 // k
    batch = Batch({"x": torch.full((rows,), 1.2, dtype=D)})
    model, guide = Layers(), PerRowLayers(rows)
    plain, doubly = (gradients(rows * objective(model, guide, k)(batch), guide) for objective in (iwae, dreg))
    agree(plain, doubly)
    if k == 100:
        assert all((plain[n].std() > 3 * doubly[n].std()).item() for n in plain)


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_dreg_is_unbiased_for_any_beta(beta):
    """Squared weights alone would be the gradient of another function: the path's factor is w (1 - beta + beta w)."""
    lg, batch, guide = replicas(8000)
    model = lg.model()
    how = {"beta": beta, "weights": {"a": 0.5}}
    plain, doubly = (gradients(8000 * objective(model, guide, 10, **how)(batch), guide) for objective in (iwae, dreg))
    agree(plain, doubly)
    moving = dreg(model, guide, 10, beta=Warmup(1, 0.0, beta), weights={"a": 0.5})
    pyro.set_rng_seed(3)
    scheduled = gradients(moving(batch), guide)
    pyro.set_rng_seed(3)
    assert_same_gradients(scheduled, gradients(dreg(model, guide, 10, **how)(batch), guide), rtol=1e-6, atol=1e-9)


def test_dreg_of_a_mixture_is_unbiased():
    """Components are drawn independently, whatever the caller's setting: systematic ones would bias it (trap 10)."""
    rows, k = 20_000, 4
    model, batch, *moments = off_centre(rows)
    guide = PerRowMixture(*moments, rows)
    doubly = gradients(rows * dreg(model, guide, k)(batch), guide)
    with independent_components():
        plain = gradients(rows * iwae(model, guide, k)(batch), guide)
    agree(plain, doubly)


def test_dreg_under_a_plate_of_subsets_is_a_sum():
    lg = LG()
    batch, model = lg.data(5, missing=True), lg.model()
    groups = [("a", "b"), ("c",), ("a", "b", "c")]
    guide = Experts(encoders(lg.modalities(), 2), product_of_experts).double()
    noise = torch.randn(6, 3, 5, 2, dtype=D)
    together = dreg(in_subsets(model, groups), in_subsets(WithNoise(guide, z=noise), groups), 6)(batch)
    parts = sum(
        dreg(given(model, *g), given(WithNoise(guide, z=noise[:, s : s + 1]), *g), 6)(batch)
        for s, g in enumerate(groups)
    )
    programs = nn.ModuleList([model, guide])
    torch.testing.assert_close(together, parts, rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(together, programs), gradients(parts, programs))


@pytest.mark.parametrize("dim", [-2, -4])
def test_dreg_with_a_latent_in_a_plate_of_its_own(dim):
    """A plate of segments inside the datum: the same gradient as one latent vector of as many dimensions."""
    x = torch.randn(3, 4, dtype=D)

    class Model(nn.Module):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", 3, dim=-1), pyro.plate("segments", 4, dim=dim):
                z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
                value = x.T if dim == -2 else x.T.reshape(4, 1, 1, 3)
                pyro.sample("x", dist.Normal(z, 0.5), obs=value)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope, self.log_s = nn.Parameter(torch.tensor(0.6, dtype=D)), nn.Parameter(torch.tensor(-0.7, dtype=D))

        def forward(self, batch: Batch) -> None:
            value = x.T if dim == -2 else x.T.reshape(4, 1, 1, 3)
            with pyro.plate("data", 3, dim=-1), pyro.plate("segments", 4, dim=dim):
                pyro.sample("z", dist.Normal(self.slope * value, self.log_s.exp()))

    guide = Guide()
    noise = torch.randn(5, 4, 3, dtype=D)
    shaped = noise if dim == -2 else noise.permute(1, 0, 2).unsqueeze(2)
    found = gradients(dreg(Model(), Plain(guide, z=shaped), 5)(Batch({"x": x})), guide)
    z = guide.slope * x.T + guide.log_s.exp() * noise
    leaf = z.detach().requires_grad_()
    log_w = Normal(0.0, 1.0).log_prob(leaf) + Normal(leaf, 0.5).log_prob(x.T)
    log_w = (log_w - Normal(guide.slope.detach() * x.T, guide.log_s.detach().exp()).log_prob(leaf)).sum(1)
    (path,) = torch.autograd.grad(log_w.sum(), leaf)
    w = log_w.detach().softmax(0).unsqueeze(1)
    assert_same_gradients(found, gradients(-(w**2 * path * z).sum() / 3, guide))
