"""Guides of one model: bounds in order, the gap is the exact KL, and the model is left as it was."""

from __future__ import annotations

import pytest
import torch

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.guide_zoo import guide_zoo

LG = LinearGaussian.random({"a": 4, "b": 3}, 2, seed=0)


@pytest.fixture(scope="module")
def zoo():
    torch.manual_seed(0)
    model = LG.model()
    before = [p.detach().clone() for p in model.parameters()]
    guides = {n: getattr(variants, n)(LG.modalities, 2).guide.double() for n in ("mvae", "mmvae")}
    train, test = LG.sample(1000, seed=1), LG.sample(60, seed=2)
    empty = Batch(test[:5].x, dict.fromkeys(test.names, torch.zeros(5, dtype=torch.bool)))  # rows that say nothing
    found = guide_zoo(
        model, guides, train, Batch.collate([empty, test]), k=400, epochs=25, lr=2e-2, batch_size=100, progress=False
    )
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    return found, guides, test


def test_the_tighter_bound_comes_first_and_none_is_above_the_truth(zoo) -> None:
    found, _, test = zoo
    assert list(found.guides) == ["mvae", "mmvae"], "a product fits a Gaussian posterior, a mixture cannot"
    exact = LG.log_marginal(test)
    assert (found.truth.estimate - exact).abs().max() < 0.1
    for s in found.summary():
        assert s["elbo"] < s["iwae"] + 0.02 and s["iwae"] < exact.mean().item() + 0.02
        assert s["gap"] == pytest.approx(exact.mean().item() - s["elbo"], abs=0.02)
    assert "mmvae" in repr(found) and "IWAE, K = 400" in repr(found)


def test_the_gap_is_the_divergence_from_the_exact_posterior(zoo) -> None:
    found, guides, test = zoo
    mean, cov = LG.posterior(test)
    q = guides["mvae"].posterior(test).base_dist
    p = torch.distributions.MultivariateNormal(mean, cov)
    q = torch.distributions.MultivariateNormal(q.loc, torch.diag_embed(q.scale**2))
    kl = torch.distributions.kl_divergence(q, p)
    assert (found.gap("mvae") - kl).mean().abs() < 0.03


def test_a_guide_of_another_model_is_named() -> None:
    stranger = variants.dmvae(LG.modalities, 2).guide.double()
    with pytest.raises(ValueError, match="guide 'dmvae': guide site 'w_a' is not in the model"):
        guide_zoo(
            LG.model(), {"dmvae": stranger}, LG.sample(20, seed=1), LG.sample(5, seed=2), epochs=1, progress=False
        )
    with pytest.raises(ValueError, match="no guide"):
        guide_zoo(LG.model(), {}, LG.sample(20, seed=1), LG.sample(5, seed=2))
