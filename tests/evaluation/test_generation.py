"""Encoding, cross-generation and simulation against their exact moments."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform
from torch import Tensor, nn

from pyro_mm import likelihoods
from pyro_mm.batch import Batch
from pyro_mm.evaluation import encode, generate, simulate
from pyro_mm.guides import Experts, mixture_of_experts
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.networks import Linear
from tests.helpers.estimates import GUIDES, guide, hidden, truth
from tests.helpers.pairs import GuideOfNested, GuideOfPrivate, Nested, WithPrivate

LG = truth()
TEST = hidden(LG.sample(60, seed=1))
K = 4000


def near(mean: Tensor, draws: Tensor, exact: Tensor) -> None:
    """A mean over the first dimension of independent draws is the exact one within 5 standard errors everywhere."""
    se = draws.std(0) / len(draws) ** 0.5
    assert ((mean - exact).abs() <= 5 * se + 1e-9).all()


@pytest.mark.parametrize("kind", ["exact", *GUIDES])
def test_encode_gives_the_exact_mean_of_the_guide(kind: str) -> None:
    """Mixtures too; the draws have that mean, and as many of them are returned as asked for."""
    q = guide(kind, LG)
    post = encode(q, TEST, K, seed=0)
    torch.testing.assert_close(post.mean["z"], q.posterior(TEST).mean.detach())
    assert post.draws["z"].shape == (K, 60, 2)
    near(post.draws["z"].mean(0), post.draws["z"], post.mean["z"])
    torch.testing.assert_close(encode(q, TEST, 1).mean["z"], post.mean["z"])


class Deep(nn.Module):
    """u ~ N(x, 1), z ~ N(2 u, .5): z has mean 2 x only on average over u."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            u = pyro.sample("u", dist.Normal(batch.x["x"], 1.0))
            pyro.sample("z", dist.Normal(2 * u, 0.5))


class Flow(nn.Module):
    """z ~ x + 3 N(0, 1), a distribution without a known mean."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            base = dist.Normal(torch.zeros(()).double(), 1.0)
            pyro.sample("z", dist.TransformedDistribution(base, [AffineTransform(batch.x["x"], 3.0)]))


def test_encode_averages_over_the_latents_above() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    post = encode(Deep(), Batch({"x": x}), K, seed=0)
    torch.testing.assert_close(post.mean["u"], x)
    near(post.mean["z"], 2 * post.draws["u"], 2 * x)
    assert (post.mean["z"] - 2 * x).abs().max() < (post.draws["z"].mean(0) - 2 * x).abs().max() + 0.05


def test_encode_without_a_closed_mean_takes_that_of_the_draws() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    post = encode(Flow(), Batch({"x": x}), K, seed=0)
    torch.testing.assert_close(post.mean["z"], post.draws["z"].mean(0))
    near(post.mean["z"], post.draws["z"], x)


@pytest.mark.parametrize("shown", [("a",), ("b", "c"), ()])
def test_cross_generation_has_the_analytic_mean_and_variance(shown: tuple[str, ...]) -> None:
    """p(x_m | x_S) = N(W E[z] + b, W Cov W' + s^2 I), for every modality from any others."""
    view = TEST.only(*shown)
    out = generate(LG.model(), LG.exact_guide(), view, K, seed=0)
    assert list(out) == ["a", "b", "c"]
    for m, px in out.items():
        exact = LG.predictive(view, m)
        assert (px.batch_shape, px.event_shape) == ((K, 60), exact.event_shape)
        near(px.mean.mean(0), px.mean, exact.mean)
        draws = px.sample()
        near(draws.mean(0), draws, exact.mean)
        torch.testing.assert_close(draws.var(0), exact.variance, rtol=0.15, atol=0)
        torch.testing.assert_close(px.log_prob(draws), dist.Normal(px.mean, LG.scales[m]).log_prob(draws).sum(-1))


def test_prior_samples_come_from_a_batch_of_nothing() -> None:
    empty = Batch.missing(LG.modalities, 500).to(torch.float64)
    for m, px in generate(LG.model(), guide("moe", LG), empty, 20, seed=0).items():
        w = LG.weights[m]
        exact = (w**2).sum(-1) + LG.scales[m] ** 2
        torch.testing.assert_close(px.sample().flatten(0, 1).var(0), exact, rtol=0.1, atol=0)


@pytest.mark.parametrize(("model", "q"), [(WithPrivate, GuideOfPrivate), (Nested, GuideOfNested)])
def test_nothing_leaks_from_what_is_hidden(model: type, q: type) -> None:
    """GuideOfPrivate reads a hidden x_a for w_a: replaying that into the model would print it into the output."""
    torch.manual_seed(0)
    pair = model().double(), q().double()
    x = {"a": torch.randn(8, 3).double(), "b": torch.randn(8, 2).double()}
    hidden_a = [Batch({"a": a, "b": x["b"]}).only("b") for a in (x["a"], 100 + x["a"])]
    one, other = (generate(*pair, view, 3, seed=0) for view in hidden_a)
    for m in ("a", "b"):
        assert torch.equal(one[m].mean, other[m].mean)
    shown = generate(*pair, Batch({"a": 100 + x["a"], "b": x["b"]}), 3, seed=0)
    assert (shown["a"].mean - one["a"].mean).abs().min() > 1, "shown, it does change the output"


def test_labels_and_images_keep_their_shapes() -> None:
    mods = [
        Modality("image", (1, 2, 3), likelihoods.Bernoulli(), Linear()),
        Modality("label", (), likelihoods.Categorical(5), Linear()),
    ]
    model, q = Joint(decoders(mods, 2), 2), Experts(encoders(mods, 2), mixture_of_experts)
    data = Batch({"image": torch.ones(7, 1, 2, 3), "label": torch.arange(7) % 5})
    out = generate(model, q, data, 4, seed=0)
    assert out["image"].sample().shape == (4, 7, 1, 2, 3) and out["label"].sample().shape == (4, 7)
    torch.testing.assert_close(out["label"].probs.sum(-1), torch.ones(4, 7))
    assert torch.equal(out["label"].mode, out["label"].probs.argmax(-1))
    torch.testing.assert_close(out["image"].probs, out["image"].mean)
    torch.testing.assert_close(out["image"].logits.sigmoid(), out["image"].mean)
    torch.testing.assert_close(out["label"].logits.softmax(-1), out["label"].probs)
    torch.testing.assert_close(out["image"].variance, out["image"].mean * (1 - out["image"].mean))
    picked = out["label"].probs.gather(-1, data.x["label"].expand(4, 7).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(out["label"].log_prob(data.x["label"]), picked.log())


def test_simulated_data_have_the_models_moments_and_the_batchs_holes() -> None:
    pattern = hidden(LG.sample(4000, seed=1))
    data, latents = simulate(LG.model(), pattern, seed=0)
    assert all(torch.equal(data.mask[m], pattern.mask[m]) for m in pattern.names)
    z = latents["z"]
    torch.testing.assert_close(z.T.cov(), torch.eye(2).double(), rtol=0, atol=0.08)
    for m, w in LG.weights.items():
        seen = data.mask[m]
        residual = (data.x[m] - z @ w.T - LG.offsets[m])[seen] / LG.scales[m]
        assert residual.mean().abs() < 0.05 and residual.std().item() == pytest.approx(1, abs=0.04)


def test_simulated_latents_are_posterior_draws() -> None:
    """Standardised by the exact posterior given what is present, they are N(0, I): for every pattern of presence."""
    data, latents = simulate(LG.model(), hidden(LG.sample(6000, seed=1)), seed=0)
    mean, cov = LG.posterior(data)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (latents["z"] - mean).unsqueeze(-1), upper=False)
    torch.testing.assert_close(white.squeeze(-1).T.cov(), torch.eye(2).double(), rtol=0, atol=0.07)
    assert white.mean().abs() < 0.04
