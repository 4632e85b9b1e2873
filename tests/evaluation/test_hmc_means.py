"""HMC and importance sampling see the exact posterior, that of stock NUTS, and each other."""

from __future__ import annotations

import json

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation import HMCFit, NoLikelihood
from pyro_mm.evaluation.hmc_means import Means, hmc_means
from tests.helpers.estimates import Folded, OneMode, Stretched, guide, hidden, truth
from tests.helpers.pairs import GuideOfNested, GuideOfPrivate, Nested, WithPrivate
from tests.helpers.pairs import data as pair_data
from tests.helpers.pairs import pair as pair_of

LG = truth((12, 8, 5), 4)
TEST = hidden(LG.sample(40, seed=1))
SHORT = HMCFit(chains=12, warmup=40, draws=40)


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


@pytest.mark.parametrize("kind", ["poe", "moe"])
def test_both_means_are_the_exact_ones_and_both_ends_enclose_the_truth(kind: str) -> None:
    found = hmc_means(LG.model(), guide(kind, LG), TEST, 500, hmc=SHORT, seed=0)
    mean, covariance = LG.posterior(TEST)
    for side in (found.hmc, found.importance):
        assert 0.8 < rms((side.value - mean) / side.se) < 1.3
    torch.testing.assert_close(found.sd, covariance.diagonal(dim1=-2, dim2=-1).sqrt(), rtol=0.25, atol=0)
    assert 0.8 < rms(found.z) < 1.3 and found.difference.abs().max() < 0.4
    assert found.unmixed_share < 0.05 and found.coordinates == ("z[0]", "z[1]", "z[2]", "z[3]")
    exact = LG.log_marginal(TEST)
    assert (found.lower - exact).mean().abs() < 0.02 and (found.upper - exact).mean().abs() < 0.02
    gap, se = found.gap
    assert -3 * se < gap < 0.02
    numbers = json.loads(json.dumps(found.summary()))
    there = TEST.present()
    assert not bool(there.all()) and numbers["lower"] == pytest.approx(found.lower[there].mean().item())
    assert gap == pytest.approx((found.upper - found.lower)[there].mean().item())
    assert numbers["n"] == 40 and numbers["rms_z"] == pytest.approx(rms(found.z))
    assert "of 4 coordinates, importance sampling against HMC (N=40): rms z" in repr(found)


def test_a_missed_mode_is_missing_from_both_unless_the_prior_finds_it() -> None:
    """Chains stay on the guide's side; the share of prior draws finds the other one, and the two disagree."""
    data = Batch({"x": torch.full((8,), 5.0).double()})
    blind = hmc_means(Folded(), OneMode(), data, 500, hmc=SHORT, refine=False, defensive=0.0, seed=0)
    assert rms(blind.z) < 2 and blind.gap[0] < 0.01
    torch.testing.assert_close(blind.lower, Folded.exact(data.x["x"]) - 0.6931, atol=0.05, rtol=0)
    seeing = hmc_means(Folded(), OneMode(), data, 4000, hmc=SHORT, refine=False, seed=0)
    assert rms(seeing.z) > 10 and seeing.difference.abs().min() > 2


def nuts(row: Batch, draws: int) -> Tensor:
    """u = (log z, y) of one row, `(draws, 5)`."""
    model, _ = pair_of(Nested, GuideOfNested)
    chain = MCMC(NUTS(model.requires_grad_(False)), num_samples=draws, warmup_steps=80, disable_progbar=True)
    chain.run(row)
    found = chain.get_samples()
    return torch.cat([found["z"].reshape(draws, 2).log(), found["y"].reshape(draws, 3)], -1)


@pytest.mark.slow
def test_moments_are_those_of_nuts() -> None:
    """A log-normal latent and three in a nested plate, two rows, one of them with a modality missing."""
    data = Batch(pair_data(2).x, {"a": torch.tensor([True, True]), "b": torch.tensor([True, False])})
    found = hmc_means(*pair_of(Nested, GuideOfNested), data, 4000, seed=0)
    assert found.coordinates == ("z[0]", "z[1]", "y[0]", "y[1]", "y[2]")
    for i in range(2):
        u = nuts(data[i], 200)
        se = u.std(0) / 70**0.5  # an effective number of draws on the safe side
        for side in (found.hmc, found.importance):
            z = (side.value[i] - u.mean(0)) / (side.se[i].square() + se.square()).sqrt()
            assert z.abs().max() < 3.5
        torch.testing.assert_close(found.sd[i], u.std(0), rtol=0.35, atol=0)


class Private(WithPrivate):
    """w_a, a latent of modality a alone, and none that no guide knows."""

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        return super(WithPrivate, self).observation(m, z, batch) if m == "b" else super().observation(m, z, batch)


def test_masked_latents_are_nan_and_count_nowhere() -> None:
    data = hidden(pair_data(20))
    found = hmc_means(*pair_of(Private, GuideOfPrivate), data, 500, hmc=SHORT, seed=0)
    assert found.coordinates == ("z[0]", "z[1]", "w_a")
    for values in (found.hmc.value, found.hmc.se, found.importance.value, found.sd, found.rhat, found.z):
        assert torch.equal(values[:, 2].isnan(), ~data.mask["a"]) and not values[:, :2].isnan().any()
    numbers = found.summary()
    assert 0.7 < numbers["rms_z"] < 1.3 and numbers["unmixed_share"] < 0.1


def test_blocks_of_rows_and_seeds() -> None:
    pair = LG.model(), Stretched(LG, 0.8)
    few = HMCFit(chains=4, warmup=10, draws=5)
    state = torch.get_rng_state()
    first, again = (hmc_means(*pair, TEST[:6], 50, hmc=few, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.hmc.value, again.hmc.value) and torch.equal(first.lower, again.lower)
    small = hmc_means(*pair, TEST[:6], 50, hmc=few, chunk=100, seed=1)
    assert small.hmc.value.shape == (6, 4) and small.upper.shape == (6,) and not small.upper.requires_grad
    assert rms((small.importance - first.importance).value / (small.importance - first.importance).se) < 2


def test_chains_that_disagree_are_counted() -> None:
    found = hmc_means(LG.model(), Stretched(LG, 3.0), TEST, 100, hmc=HMCFit(6, 0, 6, 1), seed=0)
    assert found.unmixed_share > 0.5
    assert isinstance(found, Means) and "R-hat > 1.05" in repr(found)


def test_what_cannot_be_compared_is_refused() -> None:
    model, q = LG.model(), Stretched(LG, 0.5)
    with pytest.raises(ValueError, match="at least 2 chains of 4 draws are needed, got 1 of 30"):
        hmc_means(model, q, TEST, hmc=HMCFit(chains=1))
    model.no_likelihood = "it is a stand-in"
    with pytest.raises(NoLikelihood, match="it is a stand-in"):
        hmc_means(model, q, TEST)
