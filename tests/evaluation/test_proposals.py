"""Mixture proposals: components in fixed shares, draws from where they say, scored by the mixture's density."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture
from pyro_mm.evaluation import encode, log_marginal, simulate
from pyro_mm.evaluation.proposals import Proposal, evaluating, shares_of
from pyro_mm.handlers import given, in_subsets
from pyro_mm.weights import replay
from tests.helpers.estimates import Prior, Stretched, guide, hidden, truth

LG = truth()


@pytest.mark.parametrize("k", [1, 7, 10, 100, 1001])
@pytest.mark.parametrize("shares", [[0.9, 0.1], [0.45, 0.45, 0.1], [0.2, 0.3, 0.0, 0.5], [1.0, 0.0]])
def test_components_come_in_fixed_shares(shares: list[float], k: int) -> None:
    """Within one particle of the shares, and the density uses what was in fact drawn."""
    batch = LG.sample(2)
    proposal = Proposal(LG.model(), [(Prior(LG), batch)] * (len(shares) - 1), shares)
    which = proposal.assign(k)
    assert which.shape == (k, 1)
    count = torch.bincount(which.flatten(), minlength=len(shares))
    assert all(abs(n - k * a) <= 1 for n, a in zip(count.tolist(), shares, strict=True))
    assert proposal._exact == (count.double() / k).tolist()


def test_every_chunk_of_particles_sees_every_component() -> None:
    which = Proposal(LG.model(), [(Prior(LG), LG.sample(2))], [0.9, 0.1]).assign(1000)
    per_chunk = torch.stack([(part == 1).sum() for part in which.split(50)])
    assert per_chunk.min() >= 4 and per_chunk.max() <= 6


def test_independent_components_differ_between_rows() -> None:
    proposal = Proposal(LG.model(), [(Prior(LG), LG.sample(400))], [0.9, 0.1], independent=True)
    which = proposal.assign(300).double()
    assert which.shape == (300, 400)
    assert which.mean().item() == pytest.approx(0.1, abs=4 * 0.3 / 120_000**0.5)
    assert which.sum(0).std().item() == pytest.approx((300 * 0.09) ** 0.5, rel=0.15), "binomial, row by row"


@pytest.mark.parametrize("independent", [False, True])
def test_draws_are_scored_by_the_mixture_density(independent: bool) -> None:
    batch = hidden(LG.sample(20))
    views = [(guide("moe", LG), batch), (guide("posteriors", LG), batch.only("a")), (Prior(LG), batch)]
    proposal = Proposal(LG.model(), views, [0.3, 0.3, 0.2, 0.2], independent)
    with evaluating(LG.model(), seed=0):
        draws = proposal.draw(batch, proposal.assign(10))
        for i in range(10):
            z = {"z": draws.values["z"][i, 0]}
            parts = [replay(g, view, z)["z"].log_prob() for g, view in views]
            parts.append(replay(LG.model(), batch, z)["z"].log_prob())
            expected = torch.logsumexp(torch.stack(parts) + torch.tensor(proposal._exact).log().unsqueeze(-1), 0)
            torch.testing.assert_close(draws.log_q[i], expected)


class MixturePrior(nn.Module):
    """z from one of two far components, nothing observed."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            loc = torch.tensor([[-50.0], [50.0]], dtype=torch.float64)
            pyro.sample("z", Mixture(loc, torch.ones_like(loc), torch.ones(2)))


@pytest.mark.parametrize("independent", [False, True])
def test_components_are_independent_only_when_asked_for(independent: bool) -> None:
    """Of guide and prior alike: of 100 particles, systematically 50 in either component; independently sd 5."""
    batch = LG.sample(400)
    proposal = Proposal(MixturePrior(), [(MixturePrior(), batch)], [0.5, 0.5], independent)
    with evaluating(seed=0):
        z = proposal.draw(batch, proposal.assign(100)).values["z"]
    right = (z > 0).sum((0, 1, -1)).double()
    assert right.mean().item() == pytest.approx(50, abs=1)
    assert right.std().item() == pytest.approx(5, abs=0.7) if independent else right.std().item() < 2.5


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("shares", [[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
def test_the_mean_weight_is_the_likelihood(shares: list[float], independent: bool) -> None:
    """Two bad guides and the prior, on 2000 copies of one datum: E[w] = p(x)."""
    batch = LG.sample(1)[torch.zeros(2000, dtype=torch.long)]
    wide = [(Stretched(LG, 2.0, 1.0), batch), (Stretched(LG, 1.5, -1.0), batch)]
    proposal = Proposal(LG.model(), wide, shares, independent)
    with evaluating(seed=1):
        w = (proposal.draw(batch, proposal.assign(12)).log_weight() - LG.log_marginal(batch)).exp().mean(0)
    assert (w.mean().item() - 1) / (w.std().item() / 2000**0.5) == pytest.approx(0, abs=4)


def test_refuses_shares_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"\[0.5, 0.6\] must be 2 non-negative numbers of sum 1"):
        Proposal(LG.model(), [(Prior(LG), LG.sample(2))], [0.5, 0.6])
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        shares_of(1, 1.0)


class ThreeDimensional(nn.Module):
    """A latent dimension too many."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))


class Forgetful(nn.Module):
    """Draws z only where a is shown."""

    def forward(self, batch: Batch) -> None:
        if "a" not in batch.hidden:
            Prior(LG)(batch)


def test_names_the_site_and_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"site 'z' has event shape \(3,\) in the guide and \(2,\) in the model"):
        log_marginal(LG.model(), ThreeDimensional(), LG.sample(4), 10)


def test_names_a_site_that_one_view_lacks() -> None:
    batch = LG.sample(4)
    proposal = Proposal(LG.model(), [(Forgetful(), batch), (Forgetful(), batch.only("b"))], [0.5, 0.5, 0.0])
    with pytest.raises(ValueError, match="site 'z' is drawn by the guide under one view of the data and missing"):
        proposal.draw(batch, proposal.assign(4))


def test_a_stack_of_views_has_no_likelihood_per_row() -> None:
    groups = [("a",), ("b",)]
    pair = in_subsets(LG.model(), groups), in_subsets(guide("moe", LG), groups)
    with pytest.raises(ValueError, match=r"2 values per row.*batch.only\(...\)"):
        log_marginal(*pair, LG.sample(4), 10)


def test_evaluating_puts_everything_back() -> None:
    """Flags (also of modules behind functions and handlers), gradients and random state; after an error too."""
    inner, outer = nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    outer[0].eval()
    programs = (given(outer, "a"), lambda batch: inner(batch))
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), evaluating(*programs, seed=3):
        assert not (outer.training or outer[0].training or outer[1].training or inner.training)
        assert not torch.is_grad_enabled()
        first = torch.rand(3)
        raise RuntimeError("stop")
    assert inner.training and outer.training and outer[1].training and not outer[0].training
    assert torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())
    with evaluating(seed=3):
        assert torch.equal(torch.rand(3), first)


def test_a_seed_never_meets_the_noise_that_made_the_data() -> None:
    """With one stream per seed, prior draws would be the latents of data simulated with that seed: -12.7 for -19.4."""
    model, prior = LG.model(), Prior(LG)
    sources = (LG.simulate(500, seed=3), simulate(model, LG.sample(500), seed=3))
    for data, made in sources:
        z = made if isinstance(made, torch.Tensor) else made["z"]
        drawn = encode(prior, data, 1, seed=3).draws["z"][0]
        assert abs(torch.corrcoef(torch.stack([drawn.flatten(), z.flatten()]))[0, 1].item()) < 0.15
        assert (
            log_marginal(model, prior, data, 1, defensive=0.0, seed=3).mean < LG.log_marginal(data).mean().item() - 20
        )


def test_without_a_seed_the_callers_stream_goes_on() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with evaluating():
        first = torch.rand(1)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)
