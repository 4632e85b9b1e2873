"""MEME's bound of one modality given another: exact values, what the published form loses, and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import NoLikelihood, log_conditional, log_marginal
from pyro_mm.guides import Experts, barycentre
from pyro_mm.models import Directed
from pyro_mm.objectives import mutual


def exact() -> tuple[LinearGaussian, Any, dict[str, Experts], Batch]:
    """A model of one latent, its exact unimodal posteriors, and data."""
    oracle = LinearGaussian.random({"a": 2, "b": 2}, latent=1, seed=1)
    q = {m: Experts({m: e}, barycentre) for m, e in oracle.unimodal_posteriors().items()}
    return oracle, oracle.model(), q, oracle.sample(40, seed=2)


def mean_of(objective: Any, batch: Batch, repeats: int = 20) -> tuple[float, float]:
    """The bound's mean, and its standard error."""
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([-objective(batch) for _ in range(repeats)])
    return draws.mean().item(), (draws.std() / repeats**0.5).item()


def test_the_bound_is_tight_at_exact_posteriors() -> None:
    oracle, model, q, batch = exact()
    for s, t in (("a", "b"), ("b", "a")):
        found, se = mean_of(mutual(model, q[s], q[t], s, t, samples=1000, weight=1.0, closed=False), batch)
        truth = oracle.log_conditional(batch, s, t).mean().item()
        assert abs(found - truth) < 4 * se + 2e-3, (found, truth, se)


def test_elsewhere_it_is_a_bound_of_the_directed_model() -> None:
    """A poor q(z|a), q(z|b) as it is: below log p(a|b), p(a|b) = integral q(z|b) p(a|z) dz, Gaussian here."""
    oracle, model, q, batch = exact()
    with torch.no_grad():
        encoder = q["a"].encoders["a"]
        encoder.bias += 0.5
        encoder.log_scale += 0.3
    p = q["b"].posterior(batch).base_dist
    w, b, s = oracle.weights["a"], oracle.offsets["a"], oracle.scales["a"]
    covariance = p.scale[:, :, None] ** 2 * (w @ w.T) + s**2 * torch.eye(2, dtype=torch.float64)
    truth = torch.distributions.MultivariateNormal(p.loc @ w.T + b, covariance).log_prob(batch.x["a"])
    found, se = mean_of(mutual(model, q["a"], q["b"], "a", "b", samples=1000, weight=1.0, closed=False), batch)
    assert found < truth.mean().item() - 0.02 - 4 * se
    directed = Directed("a", model.decoders["a"], q["b"])
    guide = Experts({"a": encoder, "b": q["b"].encoders["b"]}, barycentre)
    ev = log_conditional(directed, guide, batch, "a", "b", 2000, seed=0)
    assert bool(((ev.estimate - truth).abs() < 5 * ev.se + 1e-6).all())
    with pytest.raises(NoLikelihood, match="a model of a given b"):
        log_marginal(directed, guide, batch, 10)
    half = Batch(batch.x, {"b": torch.arange(40) < 20})
    assert bool((log_conditional(directed, guide, half, "a", "b", 10, seed=0).estimate[20:] == 0).all())


def test_the_published_form_differs_by_what_the_weight_cannot_reach() -> None:
    """w KL(q(z|s) || q(z|t)) for E[w log q(z|s)/q(z|t)]: exact posteriors lose KL - E_{p(z|s,t)} log q(z|s)/q(z|t)."""
    oracle, model, q, batch = exact()
    found, se = mean_of(mutual(model, q["a"], q["b"], "a", "b", samples=1000, weight=1.0), batch)
    a, b = (q[m].posterior(batch).base_dist for m in "ab")
    mean, covariance = oracle.posterior(batch)
    variance = covariance[..., 0]

    def expected_log(p: Any) -> Tensor:
        return p.log_prob(mean) - 0.5 * variance / p.scale**2

    lost = kl_divergence(a, b) - (expected_log(a) - expected_log(b))
    truth = oracle.log_conditional(batch, "a", "b").mean().item()
    assert lost.mean().item() > 0.05
    assert abs(found - (truth - lost.mean().item())) < 4 * se + 2e-3


def test_gradients_do_not_pass_through_the_weight() -> None:
    _, model, q, batch = exact()
    objective, names = mutual(model, q["a"], q["b"], "a", "b", weight=0.0), dict(q["b"].named_parameters())
    torch.manual_seed(0)
    found = torch.autograd.grad(objective(batch), list(names.values()))
    torch.manual_seed(0)
    a, b = (q[m].posterior(batch) for m in "ab")
    z, _ = a.rsample().detach(), b.rsample()
    log_t = model.decoders["b"](z).log_prob(batch.x["b"])
    more = a.rsample((10,)).detach()
    every = torch.cat([model.decoders["b"](more).log_prob(batch.x["b"]), log_t.unsqueeze(0)])
    w = (log_t - every.logsumexp(0) + torch.tensor(11.0).log()).exp().detach()
    by_hand = torch.autograd.grad((w * kl_divergence(a, b)).mean(), list(names.values()))
    for one, other in zip(found, by_hand, strict=True):
        torch.testing.assert_close(one, other)


def test_it_prints_as_its_formula() -> None:
    _, model, q, _ = exact()
    assert repr(mutual(model, q["a"], q["b"], "a", "b")) == (
        "maximise  (E_q(z | a)[w (log p(a | z) - log p(b | z) - KL(q(z | a) || q(z | b)))] + 10 log q(b | a))"
    )
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        mutual(model, q["a"], q["b"], "a", "b", samples=0)
