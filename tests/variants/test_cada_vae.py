"""CADA-VAE: published weights and likelihoods, what its code draws, and that it has no density."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, log_conditional, log_marginal
from pyro_mm.handlers import given
from pyro_mm.likelihoods import Laplace
from pyro_mm.modality import Modality
from pyro_mm.networks import Linear
from pyro_mm.objectives import nll
from tests.helpers.coordinated import SIZES, D, Parts, linear, made
from tests.helpers.hierarchies import affine


def test_cada_vae_warms_up_as_published() -> None:
    objective = made("cada_vae")[0].objective
    own, crossed, apart = objective.terms[0].beta, objective.weights[3], objective.weights[-1]
    at = {0: (0.0, 0.0, 0.0), 6: (0.25 * 6 / 93, 0.0, 0.0), 14: (0.25 * 14 / 93, 0.0, 8.13 / 2)}
    at |= {48: (0.25 * 48 / 93, 2.37 / 2, 8.13), 93: (0.25, 2.37, 8.13), 100: (0.25, 2.37, 8.13)}
    for epochs, expected in at.items():
        objective.set_progress(epochs)
        assert [w.value.item() for w in (own, crossed, apart)] == pytest.approx(expected)
    # Weights that differ have names that differ.
    assert "w_1(t) E_q(z | a)[log p(b | z)]" in repr(objective) and "- w_2(t) W2(q(z | a), q(z | b))" in repr(objective)


def test_cada_vae_with_laplace_likelihoods_has_the_published_l1() -> None:
    torch.manual_seed(0)
    recipe = variants.cada_vae([Modality(m, (d,), Laplace(1.0), Linear()) for m, d in SIZES.items()], 2)
    batch = Batch({m: torch.randn(5, d) for m, d in SIZES.items()})
    with torch.no_grad():
        for encoder in recipe.guide.encoders.values():
            layer = linear(encoder)
            layer.weight[2:], layer.bias[2:] = 0.0, -50.0  # as good as no noise
        z = recipe.guide.encoders["a"](batch.x["a"]).base_dist.loc
        w, b = (t.float() for t in affine(recipe.model.decoders["b"]))
        l1 = (batch.x["b"] - z @ w.T - b).abs().sum(-1).mean()
        found = nll(given(recipe.model, "b"), given(recipe.guide, "a"))(batch)
    torch.testing.assert_close(found, l1 + 3 * torch.tensor(2.0).log(), rtol=0.0, atol=1e-2)


def test_the_draws_of_cada_vaes_code_are_not_from_its_posterior() -> None:
    """mu + sigma^2 e with one e for a row: another reconstruction term than under q, whose KL and W_2 are used."""
    recipe, batch = made("cada_vae")
    p = Parts(recipe, batch)
    q, (w, b) = p.q("a").base_dist, affine(recipe.model.decoders["a"])
    noise = torch.randn(20_000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=D)
    z = q.loc + q.scale.square() * noise
    code = dist.Normal(z @ w.T + b, 0.6).log_prob(batch.x["a"]).sum(-1).mean(-1)
    difference = code.mean() - p.fits("a", "a").mean()
    assert difference.abs() > 8 * code.std() / len(code) ** 0.5


def test_cada_vae_has_no_likelihood() -> None:
    recipe, batch = made("cada_vae")
    with pytest.raises(NoLikelihood, match=r"CADA-VAE is trained by distances, of reconstructions \(L1\)"):
        log_marginal(recipe.model, recipe.guide, batch, 10)
    with pytest.raises(NoLikelihood, match="bounds no log p"):
        log_conditional(recipe.model, recipe.guide, batch, "a", "b", 10)
