"""MEME: paired and unpaired rows by hand, and what has no density.  Its bound is in objectives/test_mutual.py."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily, kl_divergence

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, generate, log_marginal
from pyro_mm.storage import load, save
from tests.helpers.hierarchies import hidden, modalities
from tests.variants.test_published_losses import SIZES, likelihood, made


@pytest.mark.parametrize("missing", [False, True])
def test_the_objective_is_that_of_the_code_and_of_unpaired_rows(missing: bool) -> None:
    recipe, batch = made("meme", pseudo=4, samples=3, weight=5.0)
    batch = hidden(batch, 1) if missing else batch
    encode, priors = recipe.guide.encoders, recipe.model.prior.inputs

    def paired(s: str, t: str) -> Tensor:
        q, p = encode[s](batch.x[s]), encode[t](batch.x[t])
        z, _, more = q.rsample(), p.rsample(), q.rsample((3,))
        log_t = likelihood(recipe, batch, t, z)
        every = torch.cat([recipe.model.decoders[t](more).log_prob(batch.x[t]), log_t.unsqueeze(0)])
        label = every.exp().mean(0).log()
        w = (log_t - label).exp()
        return w * (likelihood(recipe, batch, s, z) - log_t - kl_divergence(q, p)) + 5.0 * label

    def unpaired(s: str, t: str) -> Tensor:
        q = encode[s](batch.x[s])
        z = q.rsample()
        parts = encode[t](priors[t].u)
        prior = MixtureSameFamily(torch.distributions.Categorical(torch.ones(4).double()), parts)
        return likelihood(recipe, batch, s, z) + prior.log_prob(z) - q.log_prob(z)

    def by_hand() -> Tensor:
        total = torch.zeros(len(batch), dtype=torch.float64)
        for s, t in permutations(SIZES, 2):
            total = total + torch.where(batch.mask[s] & batch.mask[t], paired(s, t), 0.0)
        for s, t in permutations(SIZES, 2):
            total = total + torch.where(batch.mask[s] & ~batch.mask[t], unpaired(s, t), 0.0)
        return -total.mean()

    torch.manual_seed(3)
    loss = recipe.objective(batch)
    torch.manual_seed(3)  # the same draws
    torch.testing.assert_close(loss, by_hand())


def test_it_generates_is_saved_and_has_no_joint_density(tmp_path: Any) -> None:
    torch.manual_seed(0)
    recipe = variants.meme(modalities(SIZES), 2, pseudo=5)
    data = hidden(Batch({m: torch.randn(6, d) for m, d in SIZES.items()}), 1)
    with pytest.raises(NoLikelihood, match="each modality given another"):
        log_marginal(recipe.model, recipe.guide, data, 10)
    save(recipe, tmp_path / "model")
    again = load(tmp_path / "model")
    one, two = (generate(r.model, r.guide, data.only("a"), 3, seed=0)["b"].mean for r in (recipe, again))
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match="there is only 'a'"):
        variants.meme(modalities({"a": 2}), 2)
    with pytest.raises(ValueError, match="at least 1 pseudo-sample, got 0"):
        variants.meme(modalities(SIZES), 2, pseudo=0)
