"""Annealing in both directions, against exact values."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import NoLikelihood, ais, log_marginal_ais, sandwich
from pyro_mm.evaluation.hmc import State, adapted, first_step, transition
from pyro_mm.guides import random_views
from pyro_mm.models import Conditional
from tests.helpers.estimates import Folded, OneMode, Prior, Stretched, above, guide, hidden, truth
from tests.helpers.pairs import GuideOfNested, GuideOfPrivate, Nested, WithPrivate

LG = truth()
TEST = hidden(LG.sample(150, seed=1))


@pytest.mark.parametrize("kind", ["mean-field", "surrogate", "poe", "moe", "mopoe"])
def test_the_ends_enclose_and_close(kind: str) -> None:
    """Rows miss any of the modalities, some all of them; 100 temperatures leave less than 0.05 nat."""
    ends = ais(LG.model(), guide(kind, LG), TEST, 100, seed=0)
    exact = LG.log_marginal(ends.data)
    assert above(exact - ends.lower, errors=2) and above(ends.upper - exact, errors=2)
    assert abs(ends.gap) < 0.05
    empty = ~ends.data.present()
    assert bool(empty.any()) and ends.lower[empty].abs().max().item() < 1e-6
    assert 0.6 < ends.settings["acceptance"] < 1


def test_it_closes_what_a_poor_proposal_leaves_open() -> None:
    """From the prior, latent of 4: the sandwich of 100 draws leaves 20 nats (reference: 19.7), annealing under 0.6."""
    big = truth((12, 8, 5), 4)
    data = big.sample(60, seed=1)
    wide = sandwich(big.model(), Prior(big), data, 100, defensive=0.0, seed=0)
    few, many = (ais(big.model(), Prior(big), data, t, chains=10, seed=0) for t in (20, 200))
    assert wide.gap > 10 > few.gap > many.gap
    assert many.gap < 0.6
    exact = big.log_marginal(many.data)
    assert (many.lower - exact).mean().item() == pytest.approx(0, abs=0.4)
    assert (many.upper - exact).mean().item() == pytest.approx(0, abs=0.4)


def test_a_narrow_guide_costs_little() -> None:
    """Reference: standard deviations x .7, T = 100: -.085 / +.034 at T = 20, +.002 / +.009 at 100."""
    ends = ais(LG.model(), Stretched(LG, 0.7), LG.sample(200, seed=1), 100, seed=0)
    exact = LG.log_marginal(ends.data)
    assert (ends.lower - exact).mean().item() == pytest.approx(0, abs=0.03)
    assert (ends.upper - exact).mean().item() == pytest.approx(0, abs=0.03)


def test_conditionals_are_enclosed() -> None:
    data = LG.sample(200, seed=1)
    for ends in (
        ais(LG.model(), guide("poe", LG), data, 100, of="a", given=("b", "c"), seed=0),
        sandwich(LG.model(), guide("poe", LG), data, 2000, of="a", given=("b", "c"), seed=0),
    ):
        exact = LG.log_conditional(ends.data, "a", ("b", "c"))
        assert above(exact - ends.lower, errors=2) and above(ends.upper - exact, errors=2)
        assert abs(ends.gap) < 0.06 and ends.quantity == "log p(a | b, c)"


def test_a_missed_mode_stays_visible() -> None:
    """Chains that start in one mode never find the other, 16 standard deviations away: the ends say so."""
    data = Batch({"x": torch.full((60,), 8.0, dtype=torch.float64)})
    ends = ais(Folded(), OneMode(), data, 60, seed=0)
    exact = Folded.exact(ends.data.x["x"])
    assert (ends.lower - exact).mean().item() < -0.2 or ends.gap > 0.2
    assert above(exact - ends.lower) and above(ends.upper - exact)


def test_forward_annealing_of_real_data() -> None:
    """Prior as the guide: annealed over 200 temperatures it is within 0.3 nat, and a lower bound."""
    found = log_marginal_ais(LG.model(), Prior(LG), TEST, 200, seed=0)
    error = found.estimate - LG.log_marginal(TEST)
    assert -0.15 < error.mean().item() < 3 * error.std().item() / len(error) ** 0.5
    good = log_marginal_ais(LG.model(), guide("mean-field", LG), TEST, 100, seed=0)
    assert (good.estimate - LG.log_marginal(TEST)).abs().mean().item() < 0.05
    assert good.proposal == "annealed in 100 steps from guide"


@pytest.mark.parametrize(("model", "q"), [(WithPrivate, GuideOfPrivate), (Nested, GuideOfNested)])
def test_private_nested_and_constrained_latents(model: type, q: type) -> None:
    """The gap closes with the temperatures, which it would not if latents, Jacobians or rows were mixed up."""
    torch.manual_seed(0)
    pair = model().double(), q().double()
    if model is WithPrivate:
        with pytest.raises(ValueError, match=r"latents \['u'\] are not in the guide"):
            ais(*pair, Batch({"a": torch.zeros(4, 3).double(), "b": torch.zeros(4, 2).double()}), 10)
        return
    data = hidden(Batch({"a": torch.zeros(100, 3).double(), "b": torch.zeros(100, 2).double()}))
    few, many = (ais(*pair, data, t, seed=0) for t in (5, 150))
    assert few.gap > 0.3
    assert many.gap < 0.3 * few.gap and many.gap == pytest.approx(0, abs=4 * many.gap_se)


class Layers(nn.Module):
    """u ~ N(0, 1), z ~ N(u, .8^2), x ~ N(1.3 z, .5^2), and w ~ N(0, 1), y ~ N(z + w, .4^2) where y is present."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            u = pyro.sample("u", dist.Normal(torch.zeros(()).double(), 1.0))
            z = pyro.sample("z", dist.Normal(u, 0.8))
            with pyro.poutine.mask(mask=batch.mask["x"]):
                pyro.sample("x", dist.Normal(1.3 * z, 0.5), obs=batch.x["x"])
            with pyro.poutine.mask(mask=batch.mask["y"]):
                w = pyro.sample("w", dist.Normal(torch.zeros(()).double(), 1.0))
                pyro.sample("y", dist.Normal(z + w, 0.4), obs=batch.x["y"])

    @staticmethod
    def exact() -> LinearGaussian:
        """The same law of x and y, its latents in independent coordinates (u, (z - u) / .8, w)."""
        weights = {"x": torch.tensor([[1.3, 1.04, 0.0]]).double(), "y": torch.tensor([[1.0, 0.8, 1.0]]).double()}
        return LinearGaussian(weights, None, {"x": 0.5, "y": 0.4})


class BottomUp(nn.Module):
    """z from what is there, then u given z, and w given y: rough in every step."""

    def forward(self, batch: Batch) -> None:
        x, y, seen = batch.x["x"], batch.x["y"], batch.mask["x"]
        some = seen | batch.mask["y"]
        with pyro.plate("data", len(batch), dim=-1):
            guess = torch.where(seen, 0.7 * x, torch.where(batch.mask["y"], 0.5 * y, 0.0))
            z = pyro.sample("z", dist.Normal(guess, torch.where(some, 0.7, 1.28).double()))
            pyro.sample("u", dist.Normal(0.6 * z, 0.65))
            with pyro.poutine.mask(mask=batch.mask["y"]):
                pyro.sample("w", dist.Normal(torch.where(batch.mask["y"], 0.4 * y, 0.0), 0.9))


@pytest.mark.parametrize("refine", [False, True])
def test_hierarchies_are_enclosed_by_both(refine: bool) -> None:
    """Two layers and a private latent, a bottom-up guide, rows missing either modality or both."""
    noise = torch.Generator().manual_seed(0)
    masks = {m: torch.rand(400, generator=noise) < 0.7 for m in ("x", "y")}
    data = Batch({m: torch.zeros(400, dtype=torch.float64) for m in masks}, masks)
    oracle = Layers.exact()
    for ends in (
        sandwich(Layers(), BottomUp(), data, 1000, refine=refine, seed=0),
        ais(Layers(), BottomUp(), data[:150], 100, refine=refine, seed=0),
    ):
        exact = oracle.log_marginal(Batch({m: v.unsqueeze(-1) for m, v in ends.data.x.items()}, ends.data.mask))
        assert above(exact - ends.lower, errors=2) and above(ends.upper - exact, errors=2)
        assert abs(ends.gap) < 0.05


def test_transitions_leave_the_density_in_place() -> None:
    """Draws of N(m, S) stay draws of N(m, S): means and covariances after 30 transitions of rough steps."""
    root = torch.tensor([[1.0, 0.0], [0.9, 0.3]]).double()
    target = dist.MultivariateNormal(torch.tensor([1.0, -2.0]).double(), scale_tril=root)

    def look(u: torch.Tensor) -> State:
        slope = -torch.einsum("ij,knj->kni", target.precision_matrix, u - target.loc)
        nothing = torch.zeros(u.shape[:2]).double()
        return State(u, target.log_prob(u), slope, nothing, torch.zeros_like(u))

    state = look(target.sample((4000, 2)))
    mass = torch.eye(2).double().expand(2, 2, 2)
    rates = []
    for _ in range(30):
        state, rate = transition(state, look, mass, torch.tensor([0.3, 0.5]).double(), 3)
        rates.append(rate.mean(0))
    low, high = torch.stack(rates).mean(0)
    assert 0.2 < high < low < 0.97, "steps rough enough that rejections matter"
    for n in range(2):
        u = state.u[:, n]
        torch.testing.assert_close(u.mean(0), target.loc, rtol=0, atol=5 / 4000**0.5)
        torch.testing.assert_close(u.T.cov(), target.covariance_matrix, rtol=0, atol=0.1)


def test_steps_are_adapted_to_the_goal_and_no_further_than_a_quarter_of_a_period() -> None:
    step = first_step(16, 3)
    assert torch.allclose(step, torch.full((3,), 0.5).double())
    rate = torch.tensor([[0.1, 0.65, 1.0]]).expand(5, 3)
    moved = adapted(step, rate, 2)
    assert moved[0] < step[0] and moved[1] == pytest.approx(step[1].item()) and moved[2] > step[2]
    for _ in range(100):
        moved = adapted(moved, rate, 2)
    assert moved[2].item() == pytest.approx(torch.pi / 4)


def test_refuses_what_it_cannot_anneal() -> None:
    a, b, _ = LG.modalities
    with pytest.raises(NoLikelihood, match="a model of a given b"):
        ais(Conditional(a, (b,), 2).double(), Prior(LG), TEST, 10)
    with pytest.raises(ValueError, match="temperatures must be at least 1, got 0"):
        ais(LG.model(), Prior(LG), TEST, 0)
    with pytest.raises(ValueError, match="both `of` and `given`"):
        ais(LG.model(), Prior(LG), TEST, 10, of="a")

    class Noisy(Stretched):
        def forward(self, batch: Batch) -> None:
            loc = self.posterior(batch).base_dist.loc + torch.randn(len(batch), 1).double()
            with pyro.plate("data", len(batch), dim=-1):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    with pytest.raises(ValueError, match="randomness that no site shows"):
        ais(LG.model(), Noisy(LG, 1.0), TEST, 10)


def test_a_guide_of_random_views_is_a_mixture() -> None:
    views = random_views(guide("poe", LG), [("a", "b", "c"), ("a",), ("b", "c")], [2.0, 1.0, 1.0])
    ends = ais(LG.model(), views, LG.sample(100, seed=3), 100, seed=0)
    exact = LG.log_marginal(ends.data)
    assert above(exact - ends.lower, errors=2) and above(ends.upper - exact, errors=2) and abs(ends.gap) < 0.08
