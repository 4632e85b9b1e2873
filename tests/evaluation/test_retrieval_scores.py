"""Distances between posteriors of all pairs of rows, against the linear-Gaussian model's exact posteriors."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, TanhTransform, kl_divergence
from torch.nn.functional import cosine_similarity

from pyro_mm.data.toy import LinearGaussian
from pyro_mm.distributions import Mixture
from pyro_mm.evaluation.frechet import frechet_distance
from pyro_mm.evaluation.retrieval_scores import by_cosine, by_kl, by_sampled_kl, by_wasserstein
from pyro_mm.guides import semi_implicit
from pyro_mm.guides.randomness import random_views
from pyro_mm.handlers import Subsets
from pyro_mm.variants import mopoe
from pyro_mm.weights import run

VIEWS = (("b",), ("a",))  # of, given


@pytest.fixture(scope="module")
def truth():
    return LinearGaussian.random({"a": 4, "b": 3}, 2, seed=1)


def drawing(posterior):
    """The guide z ~ posterior(batch)."""

    def guide(batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", posterior(batch))

    return guide


def moments(truth, batch, m):
    return truth.posterior(batch.only(m))


@pytest.fixture(scope="module")
def exact(truth):
    """Guide, queries, gallery, and full posteriors of every row of each."""
    queries, gallery = truth.sample(3, seed=2), truth.sample(4, seed=3)
    q, g = (MultivariateNormal(*moments(truth, b, m)) for b, m in ((queries, "a"), (gallery, "b")))
    return truth.exact_guide(), queries, gallery, q, g


def by_hand(q, g, distance):
    rows = [[distance(q, i, g, j) for j in range(4)] for i in range(3)]
    return torch.tensor(rows, dtype=torch.float64)


def one(q, i):
    return MultivariateNormal(q.loc[i], q.covariance_matrix[i])


def test_a_guide_that_sees_nothing_finds_nothing():
    """Means from draws: were a row's noise the same under both views, it would find itself by that alone."""
    rows = LinearGaussian.random({"a": 4, "b": 3}, 2, seed=1).sample(60, seed=5)

    def posterior(batch):  # knows no mean
        return dist.TransformedDistribution(dist.Normal(torch.zeros(len(batch), 5), 1.0), TanhTransform()).to_event(1)

    scores = partial(by_cosine, k=1, kept={})(None, drawing(posterior), rows, rows, *VIEWS)
    assert (scores.argmax(-1) == torch.arange(60)).double().mean() < 0.1
    again = by_cosine(None, drawing(posterior), rows, rows, *VIEWS, k=1)
    torch.testing.assert_close(again, scores)


def test_means_are_kept_for_the_other_direction(exact):
    guide, queries, *_ = exact
    passes = []

    def counting(batch):
        passes.append(len(batch))
        return guide(batch)

    score = partial(by_cosine, kept={})
    there = score(None, counting, queries, queries, *VIEWS)
    once = passes.count(3)
    back = score(None, counting, queries, queries, *VIEWS[::-1])
    assert passes.count(3) == once >= 2
    torch.testing.assert_close(there, by_cosine(None, guide, queries, queries, *VIEWS))
    torch.testing.assert_close(back, by_cosine(None, guide, queries, queries, *VIEWS[::-1]))


def test_full_gaussians(exact):
    guide, queries, gallery, q, g = exact
    asked = (None, guide, queries, gallery, *VIEWS)
    cos = by_hand(q, g, lambda q, i, g, j: cosine_similarity(q.loc[i], g.loc[j], dim=0).item())
    kl = by_hand(q, g, lambda q, i, g, j: kl_divergence(one(q, i), one(g, j)).item())
    w = by_hand(
        q,
        g,
        lambda q, i, g, j: frechet_distance(q.loc[i], q.covariance_matrix[i], g.loc[j], g.covariance_matrix[j]) ** 0.5,
    )
    torch.testing.assert_close(by_cosine(*asked), cos)
    torch.testing.assert_close(by_kl(*asked), -kl)
    torch.testing.assert_close(by_wasserstein(*asked), -w)
    torch.testing.assert_close(by_kl(*asked, chunk=2), -kl)
    sampled = torch.stack([by_sampled_kl(*asked, k=100, seed=s) for s in range(20)])
    error = sampled.std(0) / 20**0.5
    assert ((sampled.mean(0) + kl).abs() < 4.5 * error).all()


def test_diagonal_gaussians_and_mixtures_of_which_one_component_is_left(truth, exact):
    _, queries, gallery, q, g = exact

    def parts(batch):
        loc, covariance = truth.posterior(batch)
        return loc, covariance.diagonal(dim1=-2, dim2=-1).sqrt()

    def normal(batch):
        return dist.Normal(*parts(batch)).to_event(1)

    def mixture(batch):
        loc, scale = (torch.stack([torch.full_like(t, 7.0), t], -2) for t in parts(batch))
        return Mixture(loc, scale, torch.tensor([False, True]).expand(len(batch), 2))

    m, s, n, t = q.loc, q.variance.sqrt(), g.loc, g.variance.sqrt()
    kl = 0.5 * ((s[:, None] / t) ** 2 + ((m[:, None] - n) / t) ** 2 - 1).sum(-1) + (t.log() - s.log()[:, None]).sum(-1)
    w = ((m[:, None] - n).square() + (s[:, None] - t).square()).sum(-1).sqrt()
    for posterior in (normal, mixture):
        asked = (None, drawing(posterior), queries, gallery, *VIEWS)
        torch.testing.assert_close(by_kl(*asked), -kl)
        torch.testing.assert_close(by_wasserstein(*asked), -w)


def test_the_order_of_the_gallery_changes_nothing(exact):
    guide, queries, gallery, _, _ = exact
    order = torch.tensor([2, 0, 3, 1])
    for score in (by_cosine, by_kl, by_wasserstein, by_sampled_kl):
        found = score(None, guide, queries, gallery, *VIEWS)
        torch.testing.assert_close(score(None, guide, queries, gallery[order], *VIEWS), found[:, order])


def test_mixtures_have_a_sampled_divergence_only(truth, exact):
    _, queries, gallery, _, _ = exact

    def mixture(batch):
        loc = torch.stack([batch.x["a"][:, :1], -batch.x["a"][:, 1:2]], -2)
        return Mixture(loc, torch.ones_like(loc), torch.ones(len(batch), 2))

    asked = (None, drawing(mixture), queries, gallery, *VIEWS)
    for score in (by_kl, by_wasserstein):
        with pytest.raises(ValueError, match=r"latent 'z' has a posterior Mixture.*by_sampled_kl"):
            score(*asked)
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64).view(-1, 1, 1)
    q, g = mixture(queries).log_prob(z), mixture(gallery).log_prob(z)
    kl = (q.exp().unsqueeze(-1) * (q.unsqueeze(-1) - g.unsqueeze(1))).sum(0) * 24 / 4000
    sampled = torch.stack([by_sampled_kl(*asked, k=100, seed=s) for s in range(20)])
    assert ((sampled.mean(0) + kl).abs() < 4.5 * sampled.std(0) / 20**0.5 + 1e-6).all()


def test_one_modality_shown_to_a_mixture_of_experts_is_a_gaussian(truth):
    recipe = mopoe(truth.modalities, 2)
    rows = truth.sample(3, seed=2).to(torch.float32)
    found = by_kl(recipe.model, recipe.guide, rows, rows, *VIEWS)
    with torch.no_grad():
        q, g = (run(recipe.guide, rows.only(m))["z"].fn for m in "ab")
    q, g = Normal(q.mean[:, None], q.variance[:, None].sqrt()), Normal(g.mean, g.variance.sqrt())
    expected = kl_divergence(q, g).sum(-1)
    torch.testing.assert_close(found.float(), -expected)


def hierarchy(batch):
    with pyro.plate("data", len(batch), dim=-1):
        top = pyro.sample("top", dist.Normal(batch.x["a"].mean(-1), 1.0))
        pyro.sample("z", dist.Normal(top, 1.0))


def test_what_has_no_gaussian_posterior_says_so(truth, exact):
    guide, queries, gallery, _, _ = exact
    with pytest.raises(ValueError, match="latent 'z' depends on latents drawn before it"):
        by_kl(None, hierarchy, queries, gallery, *VIEWS)
    for hidden in (semi_implicit(guide, 0), random_views(guide, Subsets([("a",), ("b",)]))):
        for score in (by_kl, by_sampled_kl):
            with pytest.raises(ValueError, match="randomness that no site shows"):
                score(None, hidden, queries, gallery, *VIEWS)


def test_latents_of_a_chain_are_compared_together(exact):
    """KL of p(top) p(z | top) of equal conditionals: that of the tops."""
    _, queries, gallery, _, _ = exact
    m, n = queries.x["a"].mean(-1), gallery.x["a"].mean(-1)
    sampled = torch.stack([by_sampled_kl(None, hierarchy, queries, gallery, *VIEWS, seed=s) for s in range(20)])
    assert ((sampled.mean(0) + 0.5 * (m[:, None] - n) ** 2).abs() < 4.5 * sampled.std(0) / 20**0.5 + 1e-9).all()


def private(depends):
    def guide(batch):
        with pyro.plate("data", len(batch), dim=-1):
            total = 0.0
            for m in ("a", "b"):
                with pyro.poutine.mask(mask=batch.mask[m]):
                    w = pyro.sample(f"w_{m}", dist.Normal(batch.x[m].sum(-1), 1.0))
                total = total + depends * torch.where(batch.mask[m], w, 0.0)
            pyro.sample("z", dist.Normal(total + batch.x["b"][:, 0], 1.0))

    return guide


def test_private_latents_are_left_out_and_must_not_matter(exact):
    _, queries, gallery, _, _ = exact
    kl = 0.5 * (queries.x["b"][:, :1] - gallery.x["b"][:, 0]) ** 2
    torch.testing.assert_close(by_kl(None, private(0.0), queries, gallery, *VIEWS), -kl)
    sampled = torch.stack([by_sampled_kl(None, private(0.0), queries, gallery, *VIEWS, seed=s) for s in range(20)])
    assert ((sampled.mean(0) + kl).abs() < 4.5 * sampled.std(0) / 20**0.5 + 1e-9).all()
    with pytest.raises(ValueError, match="latent 'z' depends on"):
        by_kl(None, private(1.0), queries, gallery, *VIEWS)
    with pytest.raises(ValueError, match=r"\['z'\] depend on \['w_a', 'w_b'\]"):
        by_sampled_kl(None, private(1.0), queries, gallery, *VIEWS)


def test_with_no_latent_in_common_there_is_nothing_to_compare(exact):
    def guide(batch):
        with pyro.plate("data", len(batch), dim=-1):
            for m in ("a", "b"):
                with pyro.poutine.mask(mask=batch.mask[m]):
                    pyro.sample(f"w_{m}", dist.Normal(batch.x[m].sum(-1), 1.0))

    _, queries, gallery, _, _ = exact
    with pytest.raises(ValueError, match=r"\['w_a'\] for the queries and \['w_b'\] for the gallery"):
        partial(by_cosine, k=2)(None, guide, queries, gallery, *VIEWS)
