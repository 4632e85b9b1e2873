"""The linear-Gaussian oracle against numpy and scipy, which share no code with it."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from pyro_mm.batch import Batch
from pyro_mm.data import LinearGaussian

DIMS = {"a": 12, "b": 8, "c": 5}
SCALES = {"a": 0.5, "b": 0.7, "c": 0.6}
SUBSETS = [s for r in range(4) for s in combinations(DIMS, r)]


@pytest.fixture(scope="module")
def truth() -> LinearGaussian:
    return LinearGaussian.random(DIMS, 4, seed=0, scales=SCALES)


@pytest.fixture(scope="module")
def batch(truth) -> Batch:
    return truth.sample(16, seed=1)


def joint(truth):
    """Mean, covariance and index ranges of (z, x_a, x_b, x_c) together, in numpy."""
    w = np.concatenate([truth.weights[m].numpy() for m in DIMS])
    mean = np.concatenate([np.zeros(truth.latent), *(truth.offsets[m].numpy() for m in DIMS)])
    noise = np.concatenate([np.full(d, truth.scales[m] ** 2) for m, d in DIMS.items()])
    top = np.concatenate([np.eye(truth.latent), w.T], 1)
    covariance = np.concatenate([top, np.concatenate([w, w @ w.T + np.diag(noise)], 1)])
    places, start = {"z": range(truth.latent)}, truth.latent
    for m, d in DIMS.items():
        places[m], start = range(start, start + d), start + d
    return mean, covariance, places


def gather(places, names):
    return np.array([i for m in names for i in places[m]], dtype=int)


def conditional(truth, of, given, x):
    """Mean `(N, d)` and covariance `(d, d)` of `of` given the values of `given`, by the Schur complement."""
    mean, cov, places = joint(truth)
    a, b = gather(places, of), gather(places, given)
    if not len(b):
        return np.tile(mean[a], (len(x["a"]), 1)), cov[np.ix_(a, a)]
    gain = cov[np.ix_(a, b)] @ np.linalg.inv(cov[np.ix_(b, b)])
    seen = np.concatenate([x[m].numpy() for m in given], 1)
    return mean[a] + (seen - mean[b]) @ gain.T, cov[np.ix_(a, a)] - gain @ cov[np.ix_(b, a)]


def density(x, mean, cov):
    return np.array([multivariate_normal.logpdf(v, m, cov) for v, m in zip(x, mean, strict=True)])


def values(batch, names):
    return np.concatenate([batch.x[m].numpy() for m in names], 1)


@pytest.mark.parametrize("names", SUBSETS[1:])
def test_log_marginal_of_every_subset(truth, batch, names):
    mean, cov, places = joint(truth)
    at = gather(places, names)
    expected = density(values(batch, names), np.tile(mean[at], (len(batch), 1)), cov[np.ix_(at, at)])
    np.testing.assert_allclose(truth.log_marginal(batch.only(*names)), expected, rtol=1e-10)


def test_figures_of_the_reference_document(truth):
    """The model made from seed 0 and N=200 rows from seed 1."""
    batch = truth.sample(200, seed=1)
    found = [truth.log_marginal(batch.only(*names)).mean().item() for names in (("a", "b", "c"), "a", "b", "c")]
    assert found == pytest.approx([-29.5336, -15.3931, -13.6468, -7.9506], abs=5e-5)
    assert truth.log_marginal(batch).std().item() == pytest.approx(3.12, abs=5e-3)
    assert truth.log_conditional(batch, "a", "b").mean().item() == pytest.approx(-11.0062, abs=5e-5)


def test_each_row_has_its_own_subset(truth):
    batch = truth.sample(len(SUBSETS), seed=3)
    mask = {m: torch.tensor([m in s for s in SUBSETS]) for m in DIMS}
    mixed = Batch(batch.x, mask)
    each = [truth.log_marginal(batch.only(*s)[i]) for i, s in enumerate(SUBSETS)]
    torch.testing.assert_close(truth.log_marginal(mixed), torch.cat(each), rtol=1e-12, atol=0)
    assert truth.log_marginal(mixed)[0] == 0.0
    mean, cov = truth.posterior(mixed)
    for i, s in enumerate(SUBSETS):
        alone = truth.posterior(batch.only(*s)[i])
        torch.testing.assert_close(mean[i], alone[0][0])
        torch.testing.assert_close(cov[i], alone[1][0])
    assert torch.equal(mean[0], torch.zeros(4).double()) and torch.equal(cov[0], torch.eye(4).double())


@pytest.mark.parametrize("names", SUBSETS)
def test_posterior_is_the_conditional_of_the_joint_gaussian(truth, batch, names):
    mean, cov = conditional(truth, ["z"], names, batch.x)
    found = truth.posterior(batch.only(*names))
    np.testing.assert_allclose(found[0], mean, atol=1e-12)
    np.testing.assert_allclose(found[1], np.tile(cov, (len(batch), 1, 1)), atol=1e-12)
    np.testing.assert_allclose(truth.precision(batch.only(*names))[0], np.linalg.inv(cov), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("of", "given"), [("a", "b"), ("c", ("a", "b")), (("a", "b"), "c"), ("b", ())])
def test_log_conditional(truth, batch, of, given):
    mean, cov = conditional(truth, of, given, batch.x)
    found = truth.log_conditional(batch, of, given)
    np.testing.assert_allclose(found, density(values(batch, of), mean, cov), rtol=1e-9)


def test_log_conditional_of_rows_that_lack_a_part(truth, batch):
    assert torch.equal(truth.log_conditional(batch.without("a"), "a", "b"), torch.zeros(16).double())
    expected = truth.log_marginal(batch.only("a"))
    torch.testing.assert_close(truth.log_conditional(batch.without("b"), "a", "b"), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("m", DIMS)
def test_predictive_is_the_conditional_of_the_joint_gaussian(truth, batch, m):
    given = [n for n in DIMS if n != m]
    mean, cov = conditional(truth, [m], given, batch.x)
    found = truth.predictive(batch.without(m), m)
    np.testing.assert_allclose(found.mean, mean, atol=1e-11)
    np.testing.assert_allclose(found.covariance_matrix[0], cov, atol=1e-11)


@pytest.mark.parametrize("names", [("a",), ("b", "c")])
def test_plug_in(truth, batch, names):
    g = torch.Generator().manual_seed(5)
    loc = torch.randn(16, 4, generator=g, dtype=torch.float64)
    scale = torch.rand(16, 4, generator=g, dtype=torch.float64) + 0.2
    root = torch.rand(16, 4, 4, generator=g, dtype=torch.float64).tril() + torch.eye(4)
    w = np.concatenate([truth.weights[m].numpy() for m in names])
    b = np.concatenate([truth.offsets[m].numpy() for m in names])
    noise = np.diag(np.concatenate([np.full(DIMS[m], SCALES[m] ** 2) for m in names]))
    for q, cov in (
        (torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1), (scale**2).diag_embed()),
        (torch.distributions.MultivariateNormal(loc, scale_tril=root), root @ root.mT),
    ):
        rows = zip(values(batch, names), loc.numpy(), cov.numpy(), strict=True)
        expected = [multivariate_normal.logpdf(x, w @ m + b, w @ c @ w.T + noise) for x, m, c in rows]
        np.testing.assert_allclose(truth.plug_in(batch, names, q), expected, rtol=1e-9)


def test_plug_in_at_the_exact_posterior_is_the_conditional(truth, batch):
    q = truth.exact_guide().posterior(batch.only("b"))
    found = truth.plug_in(batch, ("a", "c"), q)
    torch.testing.assert_close(found, truth.log_conditional(batch, ("a", "c"), "b"), rtol=1e-10, atol=0)


def test_stacked_views(truth, batch):
    views = batch.subsets([("a",), ("b", "c"), ()])
    rows = [truth.log_marginal(batch.only(*s)) for s in (("a",), ("b", "c"), ())]
    torch.testing.assert_close(truth.log_marginal(views), torch.stack(rows), rtol=1e-12, atol=0)
    means = [truth.posterior(batch.only(*s))[0] for s in (("a",), ("b", "c"), ())]
    torch.testing.assert_close(truth.posterior(views)[0], torch.stack(means))


def test_what_is_hidden_changes_nothing(truth, batch):
    extreme = Batch({**batch.x, "b": torch.full_like(batch.x["b"], 1e300)})
    for answer in (truth.log_marginal, lambda b: truth.posterior(b)[0]):
        assert torch.equal(answer(extreme.without("b")), answer(batch.without("b")))


def test_absent_and_foreign_modalities(truth, batch):
    foreign = Batch({"a": batch.x["a"], "other": torch.zeros(16, 3)})
    assert torch.equal(truth.log_marginal(foreign), truth.log_marginal(batch.only("a")))


def test_model_is_these_numbers_and_new_each_time(truth, batch):
    model = truth.model()
    z = torch.randn(16, 4, dtype=torch.float64)
    for m in DIMS:
        p = model.decoders[m](z).base_dist
        torch.testing.assert_close(p.loc, z @ truth.weights[m].T + truth.offsets[m])
        assert torch.equal(p.scale, torch.full_like(p.loc, SCALES[m]))
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert torch.equal(next(truth.model().decoders["a"].net.parameters()), truth.weights["a"])
    assert truth.weights["a"].abs().min() > 0
    assert next(model.parameters()).dtype == model.prior().mean.dtype == torch.float64


def test_simulated_rows_come_from_their_latents(truth):
    batch, z = truth.simulate(4000, seed=2)
    assert torch.equal(truth.sample(4000, seed=2).x["b"], batch.x["b"])
    for m, d in DIMS.items():
        noise = (batch.x[m] - z @ truth.weights[m].T - truth.offsets[m]) / SCALES[m]
        # A sum of n standard normal squares has mean n and variance 2n.
        assert abs((noise**2).sum() - 4000 * d) < 4 * (2 * 4000 * d) ** 0.5


def test_single_precision_agrees():
    weights = {"a": torch.tensor([[1.0, 0.5], [0.0, 2.0]]), "b": torch.tensor([[1.0, -1.0]])}
    single = LinearGaussian(weights, scales=0.5)
    double = LinearGaussian({m: w.double() for m, w in weights.items()}, scales={"a": 0.5, "b": 0.5})
    batch = double.sample(50, seed=1)
    assert single.log_marginal(batch).dtype == torch.float32
    torch.testing.assert_close(single.log_marginal(batch).double(), double.log_marginal(batch), rtol=1e-5, atol=1e-5)


W = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LinearGaussian({}), "at least one modality"),
        (lambda: LinearGaussian({"a": W, "b": torch.ones(3, 4)}), r"'b': weights \(3, 4\).*\(d, 2\)"),
        (lambda: LinearGaussian({"a": W, "b": W.double()}), "'b'.*float64"),
        (lambda: LinearGaussian({"a": W}, {"a": torch.zeros(2)}), r"'a'.*offsets \(2,\)"),
        (lambda: LinearGaussian({"a": W}, {"b": torch.zeros(3)}), r"offsets are given for \['b'\]"),
        (lambda: LinearGaussian({"a": W}, scales={"a": 0.0}), "'a': the scale must be positive, got 0"),
        (lambda: LinearGaussian({"a": W}, scales={}), r"scales are given for \[\]"),
    ],
)
def test_refuses_what_does_not_fit(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_refuses_bad_questions(truth, batch):
    with pytest.raises(ValueError, match=r"\['a'\] cannot be predicted and given at once"):
        truth.log_conditional(batch, ("a", "b"), "a")
    with pytest.raises(ValueError, match=r"unknown modality \['d'\]"):
        truth.log_conditional(batch, "d", "a")
    with pytest.raises(TypeError, match="Gaussian q"):
        laplace = torch.distributions.Laplace(torch.zeros(16, 4), torch.ones(16, 4))
        truth.plug_in(batch, "a", torch.distributions.Independent(laplace, 1))
