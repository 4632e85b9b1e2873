"""Every observation model: its density against a closed form, total probability 1, what it refuses, what it learns."""

from __future__ import annotations

import itertools
from math import exp, lgamma, log, log1p, pi

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_mm import likelihoods as L
from pyro_mm.batch import Batch
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP, Linear

D = torch.float64


def scores(likelihood: L.Likelihood, raw: Tensor, values: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """log p of every value `(V, *shape)` at one raw output, learnt parameters at their start."""
    learnt = {k: v.to(raw.dtype) for k, v in likelihood.learnt(shape).items()}
    p = likelihood(raw.expand(len(values), *raw.shape), shape, **learnt)
    assert p.batch_shape == (len(values),)
    assert p.event_shape == shape
    return p.log_prob(values)


def plus(raw: float) -> float:
    return log1p(exp(raw)) + 1e-6


CLOSED = [
    (L.Bernoulli(), 0.7, 1.0, -log1p(exp(-0.7))),
    (L.Bernoulli(), 0.7, 0.0, -log1p(exp(0.7))),
    (L.PseudoBernoulli(), 0.7, 0.25, -0.25 * log1p(exp(-0.7)) - 0.75 * log1p(exp(0.7))),
    (L.ContinuousBernoulli(), 2.0, 0.25, 0.25 * 2.0 - log1p(exp(2.0)) + log(2.0 * (exp(2) + 1) / (exp(2) - 1))),
    (L.Binomial(5), 0.7, 2.0, log(10) - 2 * log1p(exp(-0.7)) - 3 * log1p(exp(0.7))),
    (L.Normal(0.5), 1.0, 2.0, -0.5 * 4 - log(0.5) - 0.5 * log(2 * pi)),
    (L.Normal(), 1.0, 2.0, -0.5 - 0.5 * log(2 * pi)),
    (L.Laplace(), 1.0, 2.5, -2.0 - log(1.5)),
    (L.Laplace(None), 1.0, 2.5, -1.5 - log(2.0)),
    (L.Poisson(), 0.7, 3.0, 3 * log(plus(0.7)) - plus(0.7) - log(6)),
    (
        L.NegativeBinomial(),
        0.7,
        3.0,
        lgamma(13) - lgamma(10) - lgamma(4) + 10 * log(10 / (10 + plus(0.7))) + 3 * log(plus(0.7) / (10 + plus(0.7))),
    ),
]


@pytest.mark.parametrize(("likelihood", "raw", "value", "truth"), CLOSED, ids=str)
def test_density_is_the_closed_form(likelihood, raw, value, truth):
    got = scores(likelihood, torch.tensor(raw, dtype=D), torch.tensor([value], dtype=D))
    assert got.item() == pytest.approx(truth, abs=2e-7)  # log_r starts as a float32 number


@pytest.mark.parametrize("raw", [-200.0, -30.0, -3.0, 0.0, 0.4, 8.0, 50.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("likelihood", [L.Bernoulli(), L.Binomial(16)], ids=str)
def test_probabilities_of_all_values_sum_to_one(likelihood, dtype, raw):
    values = torch.arange(2 if isinstance(likelihood, L.Bernoulli) else 17, dtype=dtype)
    total = scores(likelihood, torch.tensor(raw, dtype=dtype), values).double().exp().sum().item()
    assert total == pytest.approx(1, abs=1e-12 if dtype is D else 2e-4)


@pytest.mark.parametrize("raw", [-3.0, 0.0, 2.0, 5.0])
@pytest.mark.parametrize("likelihood", [L.Poisson(), L.NegativeBinomial()], ids=str)
def test_count_probabilities_sum_to_one(likelihood, raw):
    values = torch.arange(400, dtype=D)
    total = scores(likelihood, torch.tensor(raw, dtype=D), values).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("raw", [-200.0, -50.0, -20.0, -1.0, 0.0, 0.05, 0.0999, 0.1001, 3.0, 20.0, 50.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_grey_density_integrates_to_one_even_when_saturated(raw, dtype):
    x = torch.linspace(0, 1, 100_001, dtype=D)
    logp = scores(L.ContinuousBernoulli(), torch.tensor(raw, dtype=dtype), x.to(dtype)).double()
    assert torch.trapezoid(logp.exp(), x).item() == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("likelihood", [L.Normal(0.3), L.Normal(), L.Laplace(0.75), L.Laplace(None)], ids=str)
def test_real_densities_integrate_to_one(likelihood):
    x = torch.linspace(-40, 42, 400_001, dtype=D)
    logp = scores(likelihood, torch.tensor(1.0, dtype=D), x)
    assert torch.trapezoid(logp.exp(), x).item() == pytest.approx(1, abs=1e-6)


def test_labels_and_one_hot_vectors_agree_and_sum_to_one():
    raw = torch.tensor([0.3, -1.0, 2.0, 90.0], dtype=D)
    label = scores(L.Categorical(4), raw, torch.arange(4))
    hot = scores(L.OneHotCategorical(), raw, torch.eye(4, dtype=D), (4,))
    torch.testing.assert_close(label, raw.log_softmax(-1))
    torch.testing.assert_close(hot, label)
    assert label.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_several_labels_are_independent():
    raw = torch.randn(2, 3, dtype=D)
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    logp = scores(L.Categorical(3), raw, every, (2,))
    truth = raw.log_softmax(-1)
    torch.testing.assert_close(logp, truth[0][every[:, 0]] + truth[1][every[:, 1]])
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_an_event_sums_its_elements():
    for likelihood in (L.Bernoulli(), L.Binomial(3), L.Normal(0.5), L.Poisson()):
        raw, x = torch.randn(2, 3, dtype=D), torch.tensor([[1.0, 0, 1], [0, 0, 1]], dtype=D)
        whole = scores(likelihood, raw, x[None], (2, 3))
        parts = [scores(likelihood, r, v[None]) for r, v in zip(raw.flatten(), x.flatten(), strict=True)]
        torch.testing.assert_close(whole, torch.stack(parts).sum(0))


@pytest.mark.parametrize("raw", [-2.0, 1.0, 4.0])
@pytest.mark.parametrize("log_r", [-1.0, 0.5, 3.0])
def test_negative_binomial_mean_and_variance(raw, log_r):
    r = torch.tensor(log_r, dtype=D)
    p = L.NegativeBinomial()(torch.tensor(raw, dtype=D), (), log_r=r)
    mean = softplus(torch.tensor(raw, dtype=D)) + 1e-6
    variance = mean + mean**2 / r.exp()
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, variance)
    k = torch.arange(3000, dtype=D)
    mass = p.expand((3000,)).log_prob(k).exp()
    torch.testing.assert_close((mass * k).sum(), mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close((mass * (k - mean) ** 2).sum(), variance, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("raw", [-100.0, -4.0, 0.02, 4.0, 100.0])
def test_grey_sampler_and_mean_match_the_density(raw):
    p = L.ContinuousBernoulli()(torch.tensor(raw), ())
    x = torch.linspace(0, 1, 1_000_001, dtype=D)
    density = scores(L.ContinuousBernoulli(), torch.tensor(raw, dtype=D), x).exp()
    mean = torch.trapezoid(density * x, x).item()
    assert p.mean.item() == pytest.approx(mean, abs=1e-6)
    draws = p.expand((20_000,)).sample().double()
    assert draws.mean().item() == pytest.approx(mean, abs=4.5 * draws.std().item() / 20_000**0.5)
    # Kolmogorov-Smirnov distance to the integrated density; 1.95 / sqrt(n) is passed once in a thousand.
    cdf = torch.cat([torch.zeros(1, dtype=D), torch.cumulative_trapezoid(density, x)])
    at = cdf[(draws.sort().values * 1_000_000).round().long()]
    step = torch.arange(1, 20_001, dtype=D) / 20_000
    assert torch.maximum((at - step).abs(), (at - step + 1 / 20_000).abs()).max().item() < 1.95 / 20_000**0.5 + 1e-3


@pytest.mark.parametrize(
    ("likelihood", "bad", "words"),
    [
        (L.Bernoulli(), [0.0, 0.5], "0 or 1"),
        (L.Bernoulli(), [0.0, -1.0], "0 or 1"),
        (L.PseudoBernoulli(), [0.0, 1.01], r"values in \[0, 1\]"),
        (L.ContinuousBernoulli(), [-0.01, 1.0], r"values in \[0, 1\]"),
        (L.ContinuousBernoulli(), [0.0, torch.nan], r"values in \[0, 1\]"),
        (L.Binomial(16), [0.0, 17.0], "whole numbers from 0 to 16"),
        (L.Binomial(16), [0.0, 1.5], "whole numbers from 0 to 16"),
        (L.Binomial(16), [0.0, torch.nan], "whole numbers from 0 to 16"),
        (L.Normal(), [0.0, torch.inf], "finite"),
        (L.Laplace(), [0.0, torch.nan], "finite"),
        (L.Poisson(), [0.0, -1.0], "whole numbers from 0 up"),
        (L.Poisson(), [0.0, 0.5], "whole numbers from 0 up"),
        (L.Poisson(), [0.0, torch.inf], "whole numbers from 0 up"),
        (L.NegativeBinomial(), [2.0, 2.5], "whole numbers from 0 up"),
    ],
    ids=str,
)
def test_values_outside_the_support_are_refused(likelihood, bad, words):
    with pytest.raises(ValueError, match=f"'thing' must hold {words}.*; present row "):
        likelihood.check(torch.tensor(bad), "thing")


@pytest.mark.parametrize(
    ("likelihood", "good"),
    [
        (L.Bernoulli(), [0.0, 1.0]),
        (L.PseudoBernoulli(), [0.0, 0.3, 1.0]),
        (L.ContinuousBernoulli(), [0.0, 0.3, 1.0]),
        (L.Binomial(16), [0.0, 16.0]),
        (L.Normal(), [-1e9, 1e9]),
        (L.Poisson(), [0.0, 1e6]),
        (L.Categorical(3), [0, 2]),
        (L.OneHotCategorical(), [[0.0, 1.0], [1.0, 0.0]]),
        (L.Tokens(5), [[1, 2, 4], [0, 0, 0], [3, 0, 0]]),
    ],
    ids=str,
)
def test_values_inside_the_support_pass(likelihood, good):
    likelihood.check(torch.tensor(good), "thing")


@pytest.mark.parametrize(
    ("likelihood", "bad"),
    [
        (L.OneHotCategorical(), [[0.0, 0.0], [1.0, 0.0]]),
        (L.OneHotCategorical(), [[1.0, 1.0]]),
        (L.OneHotCategorical(), [[0.5, 0.5]]),
        (L.Tokens(5), [[1, 0, 2]]),
        (L.Tokens(5), [[1, 5, 0]]),
        (L.Categorical(3), [3]),
        (L.Categorical(3), [-1]),
    ],
    ids=str,
)
def test_bad_labels_and_sequences_are_refused(likelihood, bad):
    with pytest.raises(ValueError, match="'thing' must hold"):
        likelihood.check(torch.tensor(bad), "thing")


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="positive"):
        L.Normal(scale)


@pytest.mark.parametrize("likelihood", [L.OneHotCategorical(), L.Tokens(4)], ids=str)
def test_shapes_that_make_no_sense_are_refused_when_the_modality_is_made(likelihood):
    with pytest.raises(ValueError, match=r"needs event shape .*\(2, 3\)"):
        Modality("thing", (2, 3), likelihood)


SHAPES = [
    (L.Bernoulli(), (2, 3)),
    (L.ContinuousBernoulli(), (2,)),
    (L.Binomial(4), (2, 3)),
    (L.Normal(), ()),
    (L.Laplace(), (3,)),
    (L.Categorical(4), ()),
    (L.Categorical(4), (2,)),
    (L.OneHotCategorical(), (4,)),
    (L.Poisson(), (3,)),
    (L.NegativeBinomial(), (3,)),
    (L.Tokens(4, pad=1), (3,)),
]


@pytest.mark.parametrize(("likelihood", "shape"), SHAPES, ids=str)
def test_the_fill_value_is_data_of_its_own_likelihood(likelihood, shape):
    fill = likelihood.fill(shape)
    likelihood.check(fill.unsqueeze(0), "fill")
    assert torch.equal(likelihood.cast(fill, torch.get_default_dtype()), fill)
    raw = torch.zeros(5, *likelihood.raw_shape(shape))
    logp = likelihood(raw, shape, **likelihood.learnt(shape)).log_prob(fill.expand(5, *shape))
    assert torch.isfinite(logp).all()
    assert likelihood.features(fill.unsqueeze(0)).reshape(1, *likelihood.feature_shape(shape)).dtype is torch.float32


@pytest.mark.parametrize(("likelihood", "shape"), SHAPES, ids=str)
def test_samples_are_data_of_their_own_likelihood(likelihood, shape):
    raw = torch.randn(50, *likelihood.raw_shape(shape))
    draws = likelihood(raw, shape, **likelihood.learnt(shape)).sample()
    assert draws.shape == (50, *shape)
    likelihood.check(draws, "draws")


def test_features():
    assert torch.equal(L.Binomial(16).features(torch.tensor([0.0, 8.0, 16.0])), torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(L.Categorical(3).features(torch.tensor([2, 0])), torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
    torch.testing.assert_close(L.Poisson().features(torch.tensor([0.0, 9.0])), torch.tensor([0.0, log(10)]))
    hot = L.Tokens(3).features(torch.tensor([[2, 1, 0]]))
    assert hot.tolist() == [[[0, 0, 1], [0, 1, 0], [0, 0, 0]]]  # padding is all zeros


def test_equal_blueprints_are_equal():
    assert L.Normal(0.5) == L.Normal(0.5)
    assert L.Normal(0.5) != L.Laplace(0.5)
    assert len({L.Tokens(5), L.Tokens(5), L.Tokens(5, 1)}) == 2


@pytest.mark.parametrize("family", [L.Normal, L.Laplace])
@pytest.mark.parametrize("shared", [True, False])
def test_learnt_scales_reach_their_maximum_likelihood(family, shared):
    """The best Normal scale is the root mean square of the residuals, the best Laplace scale their mean size."""
    likelihood = family(None, shared)
    noise = torch.Generator().manual_seed(3)
    x = torch.randn(4000, 2, generator=noise, dtype=D) * torch.tensor([0.5, 2.0], dtype=D)
    decoder = Modality("x", (2,), likelihood, Linear()).decoder(1).double()
    for p in decoder.net.parameters():
        torch.nn.init.zeros_(p)
        p.requires_grad_(False)
    optimiser = torch.optim.LBFGS(decoder.learnt.parameters(), max_iter=50)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -decoder(torch.zeros(4000, 1, dtype=D)).log_prob(x).mean()
        value.backward()
        return value

    for _ in range(3):
        optimiser.step(loss)
    size = x.square() if family is L.Normal else x.abs()
    best = size.mean() if shared else size.mean(0)
    best = best.sqrt() if family is L.Normal else best
    torch.testing.assert_close(decoder.learnt["log_scale"].exp(), best, rtol=1e-4, atol=1e-5)


def test_the_dispersion_of_counts_trains():
    """Gradient of the mean log-density in log r against differences, and its sign: over-dispersed data pull r down."""
    modality = Modality("n", (1,), L.NegativeBinomial(), MLP((4,)))
    decoder = modality.decoder(1).double()
    x = torch.tensor([[0.0], [30.0], [0.0], [45.0]], dtype=D)
    z = torch.zeros(4, 1, dtype=D)

    def value() -> Tensor:
        return decoder(z).log_prob(x).mean()

    (gradient,) = torch.autograd.grad(value(), [decoder.learnt["log_r"]])
    with torch.no_grad():
        decoder.learnt["log_r"] += 1e-6
        high = value()
        decoder.learnt["log_r"] -= 2e-6
        low = value()
    assert gradient.item() == pytest.approx((high - low).item() / 2e-6, rel=1e-5)
    assert gradient.item() < -1


def test_a_batch_checks_against_the_likelihood():
    with pytest.raises(ValueError, match="'flag' must hold 0 or 1"):
        Batch.of({"flag": [0, 2]}, [Modality("flag", (), L.Bernoulli())])
