"""Exact posteriors as encoders, joint net and guide, run through the library's own machinery."""

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from pyro_mm.batch import Batch
from pyro_mm.data import LinearGaussian
from pyro_mm.guides import Experts, JointEncoder, product_of_posteriors
from pyro_mm.handlers import given, in_subsets
from pyro_mm.weights import log_weights

DIMS = {"a": 4, "b": 3, "c": 2}


@pytest.fixture(scope="module")
def truth() -> LinearGaussian:
    return LinearGaussian.random(DIMS, 3, seed=7, scales={"a": 0.5, "b": 0.8, "c": 1.1})


@pytest.fixture
def ragged(truth) -> Batch:
    """Rows with every pattern of presence, nothing included."""
    full = truth.sample(16, seed=2)
    bits = torch.arange(16)
    return Batch(full.x, {m: (bits >> i) % 2 == 1 for i, m in enumerate(DIMS)})


def test_weights_of_the_exact_guide_are_the_likelihood(truth, ragged):
    log_w = log_weights(truth.model(), truth.exact_guide(), ragged, 5)
    torch.testing.assert_close(log_w, truth.log_marginal(ragged).expand(5, 16), rtol=0, atol=1e-11)


def test_weights_under_subset_and_particle_plates(truth, ragged):
    groups = [("a", "b", "c"), ("b",), ("a", "c"), ()]
    log_w = log_weights(in_subsets(truth.model(), groups), in_subsets(truth.exact_guide(), groups), ragged, 3)
    expected = torch.stack([truth.log_marginal(ragged.only(*g)) for g in groups])
    torch.testing.assert_close(log_w, expected.expand(3, 4, 16), rtol=0, atol=1e-11)


def test_a_guide_shown_less_leaves_weights_that_average_to_the_likelihood(truth):
    batch = truth.sample(4, seed=3)
    k = 40_000
    log_w = log_weights(truth.model(), given(truth.exact_guide(), "a", "b"), batch, k)
    ratio = (log_w - truth.log_marginal(batch)).exp()
    error = (ratio.mean(0) - 1) / (ratio.std(0) / k**0.5)
    assert error.abs().max() < 4


def test_exact_guide_has_nothing_to_train(truth):
    assert list(truth.exact_guide().parameters()) == [] and truth.exact_guide().names == ("a", "b", "c")


def test_unimodal_posteriors_are_the_closest_mean_field(truth):
    batch = truth.sample(6, seed=4)
    for m, encoder in truth.unimodal_posteriors().items():
        mean, cov = truth.posterior(batch.only(m))
        q = encoder(batch.x[m])
        torch.testing.assert_close(q.mean, mean)
        torch.testing.assert_close(q.variance, 1 / torch.linalg.inv(cov).diagonal(dim1=-2, dim2=-1))
        divergence = kl_divergence(Independent(Normal(q.mean, q.stddev), 1), MultivariateNormal(mean, cov)).sum()
        slopes = torch.autograd.grad(divergence, list(encoder.parameters()))
        assert max(s.abs().max() for s in slopes) < 1e-10


def test_unimodal_posteriors_serve_a_guide(truth):
    batch = truth.sample(6, seed=4)
    guide = Experts(truth.unimodal_posteriors(), product_of_posteriors)
    q = guide.posterior(batch.only("b"))
    torch.testing.assert_close(q.mean, truth.posterior(batch.only("b"))[0])
    torch.testing.assert_close(guide.posterior(batch.only("b").without("b")).mean, torch.zeros(6, 3).double())


def test_encoders_are_new_each_time(truth):
    first = truth.unimodal_posteriors()["a"]
    with torch.no_grad():
        first.weight.zero_()
    x = truth.sample(2).x["a"]
    batch = Batch({"a": x})
    torch.testing.assert_close(truth.unimodal_posteriors()["a"](x).mean, truth.posterior(batch)[0])


def test_joint_net_in_a_joint_encoder(truth, ragged):
    guide = JointEncoder(truth.joint_posterior_net(), truth.latent)
    q = guide.posterior(ragged)
    mean, cov = truth.posterior(ragged)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.variance, 1 / torch.linalg.inv(cov).diagonal(dim1=-2, dim2=-1))
    nothing = ~ragged.present()
    assert torch.equal(q.mean[nothing], torch.zeros(2, 3).double())
    assert torch.equal(q.variance[nothing], torch.ones(2, 3).double())
