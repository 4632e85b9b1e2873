"""Guides with randomness of their own: random views are a mixture, hidden noise is averaged over."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation import Evidence, log_conditional, log_marginal
from pyro_mm.evaluation.components import guide_views, log_density
from pyro_mm.evaluation.proposals import Proposal, evaluating
from pyro_mm.guides.randomness import random_views, semi_implicit
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import replay, run
from tests.helpers.estimates import guide, hidden, judge, scored_by, truth
from tests.helpers.pairs import GuideOfNested, GuideOfPrivate, Nested, WithPrivate, data, pair

LG = truth()
GROUPS = (("a", "b", "c"), ("a",), ("b", "c"), ())
WEIGHTS = (0.4, 0.3, 0.2, 0.1)


class Dropped(nn.Module):
    """What `random_views` is, written by hand: the library cannot know that it is a mixture."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, batch: Batch) -> None:
        group = torch.multinomial(torch.tensor(WEIGHTS), len(batch), replacement=True)
        keep = {m: torch.tensor([m in g for g in GROUPS])[group] for m in batch.names}
        self.program(batch.masked(keep))


@pytest.mark.parametrize("kind", ["posteriors", "mean-field", "moe"])
def test_random_views_have_the_density_of_the_mixture(kind: str) -> None:
    """log sum_S w_S q(z | x_S), by hand, at whatever the proposal draws."""
    batch, q = hidden(LG.sample(20)), guide(kind, LG)
    proposal = Proposal(LG.model(), [(random_views(q, GROUPS, WEIGHTS), batch)], [1.0, 0.0], independent=True)
    with evaluating(seed=0):
        draws = proposal.draw(batch, proposal.assign(30))
        parts = [log_density(replay(particles(q, 30), batch.only(*g), draws.values)) for g in GROUPS]
    expected = torch.logsumexp(torch.stack(parts) + torch.tensor(WEIGHTS).log().view(-1, 1, 1), 0)
    torch.testing.assert_close(draws.log_q, expected, rtol=0, atol=1e-6)
    assert (draws.log_q - parts[0]).abs().max() > 0.5, "no single view has that density"


def test_views_come_as_often_as_their_weights_say() -> None:
    """Both in the guide itself and in a proposal."""
    batch = LG.sample(1)[torch.zeros(40_000, dtype=torch.long)]
    q = random_views(guide("exact", LG), GROUPS, WEIGHTS)
    with evaluating(seed=0):
        z = run(q, batch)["z"].value
        means = torch.stack([LG.posterior(batch[:1].only(*g))[0][0] for g in GROUPS])
        covariances = torch.stack([LG.posterior(batch[:1].only(*g))[1][0] for g in GROUPS])
    weights = torch.tensor(WEIGHTS).double()
    mean = weights @ means
    second = torch.einsum("s,sij->ij", weights, covariances + means.unsqueeze(-1) * means.unsqueeze(-2))
    error = (z.std(0) / len(z) ** 0.5).max().item()
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=4 * error)
    torch.testing.assert_close(z.T @ z / len(z), second, rtol=0, atol=0.05)


@pytest.mark.parametrize("independent", [False, True])
def test_the_likelihood_under_random_views_is_exact_and_sharper_than_single_draws(independent: bool) -> None:
    batch = hidden(LG.sample(300, seed=1))
    exact = LG.log_marginal(batch)
    options = {"independent": independent, "seed": 0}
    q = guide("posteriors", LG)
    mixed = log_marginal(LG.model(), random_views(q, GROUPS, WEIGHTS), batch, 500, **options)
    judge(mixed.estimate, mixed.se, exact, mean=0.01, rms=(0.8, 1.2) if independent else (0.5, 1.2))
    single = log_marginal(LG.model(), semi_implicit(Dropped(q), 0), batch, 500, **options)
    moves = single.se > 1e-6
    ratio = (single.se[moves] / mixed.se[moves]).median().item()
    assert ratio > 1.5, f"single draws are noisier {ratio:.2f} times"


def test_conditionals_under_random_views() -> None:
    batch = LG.sample(400, seed=1)
    q = random_views(guide("posteriors", LG), GROUPS, WEIGHTS)
    ev = log_conditional(LG.model(), q, batch, "a", ("b", "c"), 1000, independent=True, seed=0)
    judge(ev.estimate, ev.se, LG.log_conditional(batch, "a", ("b", "c")), mean=0.01)


def test_weights_that_are_none_are_refused() -> None:
    q = guide("moe", LG)
    for weights in ([0.5, 0.5], [0.5, 0.6, -0.1, 0.0], [0.0] * 4):
        with pytest.raises(ValueError, match="4 subsets need as many weights, none negative and not all 0"):
            random_views(q, GROUPS, weights)
    with pytest.raises(ValueError, match="replays must be at least 0, got -1"):
        semi_implicit(q, -1)
    shares = [share for share, _ in guide_views(random_views(q, GROUPS, [3.0, 0.0, 1.0, 0.0]), LG.sample(3))]
    assert shares == [0.75, 0.25], "weights need not sum to 1; a view of weight 0 is none"


# Noise inside the guide's forward, which no site shows.


class Noisy(nn.Module):
    """q(z | x, psi) = N(m + noise s psi, s^2), psi ~ N(0, I) drawn by plain torch for every row."""

    def __init__(self, noise: float = 0.8) -> None:
        super().__init__()
        self.net, self.noise = LG.joint_posterior_net(), noise

    def forward(self, batch: Batch) -> None:
        q = self.net(batch).base_dist
        loc = q.loc + self.noise * q.scale * torch.randn(len(batch), LG.latent).double()
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(loc, q.scale).to_event(1))


def copies(n: int) -> Batch:
    return LG.sample(1)[torch.zeros(n, dtype=torch.long)]


def weights(q: Program, n: int, shares: list[float], k: int = 1) -> Tensor:
    """p(x, z) / q_mix(z) / p(x), n independent ones: every row is a copy of one datum."""
    batch = copies(n)
    proposal = Proposal(LG.model(), [(q, batch)], shares, independent=True)
    with evaluating(seed=1):
        return (proposal.draw(batch, proposal.assign(k)).log_weight() - LG.log_marginal(batch)).exp().mean(0)


@pytest.mark.parametrize("shares", [[1.0, 0.0], [0.8, 0.2]])
def test_hidden_noise_is_sound_whatever_the_number_of_replays(shares: list[float]) -> None:
    """E[w] = p(x), and each further replay makes the weights more even."""
    spread = []
    for replays in (0, 1, 10):
        w = weights(semi_implicit(Noisy(), replays), 20_000, shares)
        assert (w.mean().item() - 1) / (w.std().item() / len(w) ** 0.5) == pytest.approx(0, abs=4)
        spread.append(w.std().item())
    assert spread[0] > 1.3 * spread[1] and spread[1] > 1.3 * spread[2]


def test_scoring_by_a_fresh_run_instead_is_wrong() -> None:
    """q(z | x, psi') with another psi' than z was drawn with: were the posterior N(m, s^2), the mean of p(x, z) / q
    would be p(x) (1 - 2 t^2 - t^4)^-1/2 for each of 2 dimensions, t the noise; 1.15 p(x) in all.
    """
    batch, q = copies(20_000), Noisy(0.25)
    with evaluating(seed=1):
        z = run(particles(q, 1), batch)["z"].value.squeeze(1)
    w = (scored_by(LG, q, z, batch)[0] - LG.log_marginal(batch)).exp()
    assert (w.mean().item() - 1) / (w.std().item() / len(w) ** 0.5) > 5
    assert w.mean().item() == pytest.approx(1 / (1 - 2 * 0.25**2 - 0.25**4), abs=0.05)
    right = weights(semi_implicit(q, 0), 20_000, [1.0, 0.0])
    assert right.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("defensive", [0.0, 0.1])
@pytest.mark.parametrize("replays", [1, 10])
def test_every_draw_has_noise_of_its_own(replays: int, defensive: float) -> None:
    """With noise shared by the draws of a pass, standard errors would be 5 times too small."""
    batch = LG.sample(200, seed=1)
    q = semi_implicit(Noisy(0.6), replays)
    ev = log_marginal(LG.model(), q, batch, 200, defensive=defensive, independent=True, seed=0)
    judge(ev.estimate, ev.se, LG.log_marginal(batch), mean=0.01, rms=(0.8, 1.3), under_4=0.98)


def test_conditionals_with_hidden_noise() -> None:
    batch = LG.sample(200, seed=1)
    q = semi_implicit(Noisy(0.6), 2)
    ev = log_conditional(LG.model(), q, batch, "a", ("b", "c"), 200, independent=True, seed=0)
    judge(ev.estimate, ev.se, LG.log_conditional(batch, "a", ("b", "c")), mean=0.02, rms=(0.8, 1.3), under_4=0.98)


class Apart(nn.Module):
    """The program, with a word for the number of rows that it saw."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program, self.rows = program, 0

    def forward(self, batch: Batch) -> None:
        self.rows = max(self.rows, len(batch))
        self.program(batch)


@pytest.mark.parametrize(("model", "q"), [(Nested, GuideOfNested), (WithPrivate, GuideOfPrivate)])
@pytest.mark.parametrize("shares", [[1.0, 0.0], [0.7, 0.3]])
def test_nested_and_private_latents_of_a_guide_without_noise(model: type, q: type, shares: list[float]) -> None:
    """No noise: whatever the replays, the density at the draws is the guide's own."""
    pair_ = pair(model, q)
    batch = Batch(
        data(6).x, {"a": torch.tensor([1, 1, 0, 0, 1, 0]).bool(), "b": torch.tensor([1, 0, 1, 0, 1, 1]).bool()}
    )
    counted = Apart(pair_[1])
    proposal = Proposal(pair_[0], [(semi_implicit(counted, 2), batch)], shares)
    with evaluating(seed=0):
        draws = proposal.draw(batch, proposal.assign(10))
        own = log_density(replay(particles(pair_[1], 10), batch, draws.values))
        prior = draws.log_prior
    parts = [own + torch.tensor(shares[0]).log(), prior + torch.tensor(shares[1]).log()]
    torch.testing.assert_close(draws.log_q, torch.logsumexp(torch.stack(parts), 0).to(draws.log_q), atol=1e-6, rtol=0)
    assert counted.rows == 60


def sharp(ev: Evidence) -> float:
    return ev.se.mean().item()


def test_more_replays_make_likelihoods_sharper() -> None:
    batch = LG.sample(60, seed=1)
    found = [log_marginal(LG.model(), semi_implicit(Noisy(), j), batch, 200, seed=0) for j in (0, 2, 10)]
    assert sharp(found[0]) > 1.4 * sharp(found[1]) and sharp(found[1]) > 1.2 * sharp(found[2])
