"""Modules of classes: Bayes by hand, expectation maximisation against the gradient, several against the one model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.modules import (
    ClassMixture,
    Counts,
    Gaussians,
    UnitGaussians,
    agree,
    em,
    k_means,
    likelihood_message,
    log_evidence,
    log_responsibilities,
    posterior_message,
)

D = torch.float64
WORDS = torch.tensor([[8, 1, 1, 2], [1, 8, 1, 2], [8, 1, 1, 2], [1, 8, 1, 2]], dtype=D)
CENTERS = torch.tensor([[-2.5, 0.0], [-2.5, 1.2], [2.5, 0.0], [2.5, 1.2]], dtype=D)
SHARES = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=D)


def rows(n: int = 120, seed: int = 0) -> tuple[Batch, Tensor]:
    """Four classes: codes tell two pairs apart, words the members of a pair; and the classes."""
    torch.manual_seed(seed)
    c = torch.multinomial(SHARES, n, replacement=True)
    code = CENTERS[c] + 0.7 * torch.randn(n, 2, dtype=D)
    words = dist.Multinomial(6, WORDS[c] / 12).sample()
    return Batch({"code": code, "words": words}), c


def part(name: str) -> ClassMixture:
    parts = {"code": lambda: Gaussians(2, 4), "words": lambda: Counts(4, 4)}
    return ClassMixture({name: parts[name]()}, 4).double()


def whole() -> ClassMixture:
    return ClassMixture({"code": Gaussians(2, 4), "words": Counts(4, 4)}, 4).double()


def missing(batch: Batch) -> Batch:
    """Every third row without words, every fourth without a code."""
    i = torch.arange(len(batch))
    return Batch(batch.x, {"words": i % 3 != 0, "code": i % 4 != 0})


def logs_of(code: ClassMixture, words: ClassMixture, batch: Batch, shares: Tensor | None = None) -> Tensor:
    """log p(c) p(code | c) p(words | c) `(N, C)` written out, a missing one left out; p(c) is the first module's."""
    gaussians, counts = code.parts["code"], words.parts["words"]
    out = (code.logits.log_softmax(-1) if shares is None else shares).expand(len(batch), 4)
    tril = gaussians.tril()
    off = torch.linalg.solve_triangular(tril, (batch.x["code"].unsqueeze(1) - gaussians.loc).unsqueeze(-1), upper=False)
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    normal = -0.5 * off.squeeze(-1).square().sum(-1) - log_det - torch.log(torch.tensor(2 * torch.pi, dtype=D))
    x = batch.x["words"]
    ways = (x.sum(-1) + 1).lgamma() - (x + 1).lgamma().sum(-1)
    counted = ways.unsqueeze(-1) + x @ counts.logits.log_softmax(-1).T
    zero = torch.zeros((), dtype=D)
    out = out + torch.where(batch.mask["code"].unsqueeze(-1), normal, zero)
    return out + torch.where(batch.mask["words"].unsqueeze(-1), counted, zero)


def one_program(code: ClassMixture, words: ClassMixture, batch: Batch) -> None:
    """The single model, in plain Pyro."""
    with pyro.plate("data", len(batch)):
        c = pyro.sample("c", dist.Categorical(logits=code.logits), infer={"enumerate": "parallel"})
        normal = dist.MultivariateNormal(code.parts["code"].loc[c], scale_tril=code.parts["code"].tril()[c])
        pyro.sample("code", normal.mask(batch.mask["code"]), obs=batch.x["code"])
        counts = dist.Multinomial(6, logits=words.parts["words"].logits[c], validate_args=False)
        pyro.sample("words", counts.mask(batch.mask["words"]), obs=batch.x["words"])


def test_responsibilities_and_evidence_are_bayes_rule_with_rows_missing_anything():
    batch, _ = rows(24)
    batch, model = missing(batch), whole()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    total = logs_of(model, model, batch).detach()
    torch.testing.assert_close(log_responsibilities(model, batch), total.log_softmax(-1), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(log_evidence(model, batch), total.logsumexp(-1), rtol=1e-9, atol=1e-10)
    empty = ~batch.mask["code"] & ~batch.mask["words"]
    assert int(empty.sum()) == 2
    torch.testing.assert_close(log_evidence(model, batch)[empty], torch.zeros(2, dtype=D), rtol=0, atol=1e-12)


@pytest.mark.parametrize("code", [Gaussians, UnitGaussians])
def test_expectation_maximisation_rises_to_where_the_gradient_is_nothing(code):
    batch, _ = rows()
    batch = missing(batch)
    model = ClassMixture({"code": code(2, 4), "words": Counts(4, 4)}, 4).double()
    # Started in a pair of clusters, so that it has some way to go.
    r = torch.softmax(4 * torch.randn(len(batch), 4, dtype=D), -1)
    heights = []
    for _ in range(12):
        r = em(model, batch, r, steps=0)
        heights.append(float((log_evidence(model, batch).sum() + model.log_prior()).detach()))
    rises = torch.tensor(heights).diff()
    assert rises.min() > -1e-9 and heights[-1] - heights[0] > 10
    em(model, batch, r, steps=400)
    evidence = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, lambda batch: None, batch)
    slopes = torch.autograd.grad(evidence - model.log_prior(), list(model.parameters()))
    # Of sums over 120 rows; the upper triangle of `raw` is not used.
    assert max(float(s.abs().max()) for s in slopes) < 1e-3


def test_two_modules_that_agree_are_expectation_maximisation_of_the_one_model():
    batch, _ = rows()
    batch = missing(batch)
    start = k_means(batch.x["code"], 4)
    code, words, joint = part("code"), part("words"), whole()
    for steps in (0, 1, 3, 25):
        apart = agree([code, words], batch, start, steps)
        together = em(joint, batch, start, steps)
        torch.testing.assert_close(apart, together, rtol=0, atol=1e-8)
    torch.testing.assert_close(code.logits, joint.logits, rtol=0, atol=1e-8)
    torch.testing.assert_close(words.parts["words"].logits, joint.parts["words"].logits, rtol=0, atol=1e-7)
    # And these are what stock Pyro and Bayes' rule make of the one program at the modules' parameters.
    estimator = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    found = estimator.compute_marginals(one_program, lambda *a: None, code, words, batch)["c"].probs
    torch.testing.assert_close(apart, found, rtol=0, atol=1e-10)
    torch.testing.assert_close(apart, logs_of(code, words, batch).softmax(-1), rtol=0, atol=1e-10)


def test_sending_posteriors_back_counts_the_shares_twice():
    batch, _ = rows()
    code, words = part("code"), part("words")
    agree([code, words], batch, k_means(batch.x["code"], 4), 10)
    flat, own = likelihood_message(words, batch), posterior_message(words, batch)
    shares = words.logits.log_softmax(-1)
    torch.testing.assert_close((flat + shares).log_softmax(-1), own, rtol=0, atol=1e-9)
    # One step of each from here: the published message gives p(c)^2.
    published = agree([code, words], batch, logs_of(code, words, batch).softmax(-1).detach(), 0, send=posterior_message)
    squared = code.logits.log_softmax(-1) + words.logits.log_softmax(-1)
    by_hand = logs_of(code, words, batch, squared).softmax(-1)
    torch.testing.assert_close(published, by_hand, rtol=0, atol=1e-9)
    right = logs_of(code, words, batch).softmax(-1)
    assert (published - right).abs().max() > 0.05


def test_words_tell_apart_what_codes_do_not():
    batch, truth = rows(300, seed=1)
    start = k_means(batch.x["code"], 4)
    alone = em(part("code"), batch, start, 40)
    both = agree([part("code"), part("words")], batch, start, 40)
    scores = [adjusted_rand_score(truth, r.argmax(-1)) for r in (alone, both)]
    best = logs_at_truth(batch).argmax(-1)
    print("ARI", scores, "by the true parameters", adjusted_rand_score(truth, best))
    assert scores[1] > scores[0] + 0.15


def logs_at_truth(batch: Batch) -> Tensor:
    """log p(c, code, words) `(N, C)` by the parameters that made the rows."""
    normal = dist.Normal(CENTERS, 0.7).to_event(1).log_prob(batch.x["code"].unsqueeze(1))
    return SHARES.log() + normal + batch.x["words"] @ (WORDS / 12).log().T


def test_mistakes_are_named():
    batch, _ = rows(10)
    with pytest.raises(ValueError, match="at least two classes"):
        ClassMixture({"words": Counts(4, 1)}, 1)
    with pytest.raises(ValueError, match="pseudo-count must be positive"):
        Counts(4, 2, pseudo=0.0)
    with pytest.raises(ValueError, match="covariances' prior must be positive"):
        Gaussians(2, 2, scale=0.0)
    with pytest.raises(ValueError, match=r"modules have \[4, 4\] classes, responsibilities 3"):
        agree([part("code"), part("words")], batch, torch.ones(10, 3, dtype=D) / 3)
