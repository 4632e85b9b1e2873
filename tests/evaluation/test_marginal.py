"""log p(x_S) against the exact values of the linear-Gaussian model."""

from __future__ import annotations

from math import log

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, log_marginal
from pyro_mm.evaluation.psis import threshold
from pyro_mm.models import Conditional
from tests.helpers.estimates import GUIDES, Folded, OneMode, Prior, Stretched, guide, hidden, judge, truth
from tests.helpers.pairs import GuideOfPrivate, WithPrivate

LG = truth()
TEST = hidden(LG.sample(200, seed=1))


@pytest.mark.parametrize("defensive", [0.0, 0.1])
@pytest.mark.parametrize("kind", GUIDES)
def test_every_guide_gives_the_likelihood(kind: str, defensive: float) -> None:
    """Rows miss 0 to 3 of 3 modalities; components are drawn independently, so that the standard error is exact."""
    ev = log_marginal(LG.model(), guide(kind, LG), TEST, 2000, defensive=defensive, independent=True, seed=0)
    fine = ev.reliable
    if kind == "poe" and not defensive:  # an overconfident product: without prior draws its error bars are too small
        assert (ev.estimate - LG.log_marginal(TEST))[fine].mean().abs().item() < 0.02
    else:
        judge(
            ev.estimate[fine],
            ev.se[fine],
            LG.log_marginal(TEST)[fine],
            rms=(0.8, 1.2 if defensive else 1.25),
            under_4=0.98 if kind == "poe" else 0.99,
        )
    assert ev.unreliable_share < (0.06 if defensive else 0.08)
    empty = ~TEST.present()
    assert empty.sum() >= 3 and torch.equal(ev.estimate[empty], torch.zeros(int(empty.sum())).double())
    assert bool(ev.reliable[empty].all()), "constant weights have no tail, and need none"


@pytest.mark.parametrize("kind", ["moe", "mopoe", "posteriors"])
def test_fixed_shares_are_at_least_as_good_as_their_error_bars(kind: str) -> None:
    errors, data = {}, hidden(LG.sample(2000, seed=3))
    for independent in (False, True):
        ev = log_marginal(LG.model(), guide(kind, LG), data, 100, independent=independent, seed=0)
        errors[independent] = ev.estimate - LG.log_marginal(data)
        judge(ev.estimate, ev.se, LG.log_marginal(data), rms=(0.6, 1.2))
    assert errors[False].square().mean() < 1.05 * errors[True].square().mean()


def test_reference_figures() -> None:
    """Latent of 4 dimensions, complete rows, mean-field, K = 4000: rmse .009, rms of standardised errors .98."""
    big = truth((12, 8, 5), 4)
    data = big.sample(200, seed=1)
    ev = log_marginal(big.model(), guide("mean-field", big), data, 4000, defensive=0.0, seed=0)
    judge(ev.estimate, ev.se, big.log_marginal(data), mean=0.003)
    assert (ev.estimate - big.log_marginal(data)).square().mean().sqrt().item() < 0.015


@pytest.mark.parametrize("chunk", [None, 1, 37, 4096])
def test_the_exact_posterior_gives_the_value_itself(chunk: int | None) -> None:
    """Whatever the blocks of rows and particles are."""
    data = TEST[:17]
    ev = log_marginal(LG.model(), LG.exact_guide(), data, 30, defensive=0.0, chunk=chunk)
    torch.testing.assert_close(ev.estimate, LG.log_marginal(data), rtol=0, atol=1e-11)
    assert ev.se.max().item() < 1e-6


def test_a_guide_that_misses_a_mode_is_loud_only_with_the_defensive_part() -> None:
    data = Batch({"x": torch.full((40,), 8.0, dtype=torch.float64)})
    exact = Folded.exact(data.x["x"])
    silent = log_marginal(Folded(), OneMode(), data, 10_000, defensive=0.0, seed=0)
    torch.testing.assert_close(silent.estimate, exact - log(2), rtol=0, atol=0.01)
    assert silent.se.max() < 0.01 and silent.ess.min() > 9500 and silent.khat.max() < 0.5
    loud = log_marginal(Folded(), OneMode(), data, 10_000, seed=0)
    assert loud.khat.min() > 1 > threshold(10_000) and not loud.reliable.any()
    assert loud.ess.max() < 1000
    judge(loud.estimate, loud.se, exact, mean=0.05, rms=(0.6, 1.4))


def test_the_defensive_part_mends_a_narrow_guide() -> None:
    """Standard deviations halved: a smaller bias, and error bars that cover more often."""
    big = truth((12, 8, 5), 4)
    data = big.sample(600, seed=1)
    bias, covered = {}, {}
    for a in (0.0, 0.1):
        ev = log_marginal(big.model(), Stretched(big, 0.5), data, 1000, defensive=a, seed=0)
        error = ev.estimate - big.log_marginal(data)
        bias[a], covered[a] = error.mean().item(), (error.abs() < 2 * ev.se).double().mean().item()
    assert bias[0.0] < 1.1 * bias[0.1] < 0
    assert covered[0.1] > covered[0.0]


def test_the_estimate_is_a_lower_bound_that_rises_with_k() -> None:
    exact = LG.log_marginal(TEST[TEST.present()]).mean().item()
    means = []
    for k in (1, 10, 100, 1000):
        runs = [log_marginal(LG.model(), Prior(LG), TEST, k, defensive=0.0, seed=s).mean for s in range(5)]
        means.append(sum(runs) / len(runs))
    assert means == sorted(means)
    assert means[-1] < exact < means[-1] + 0.2 and means[0] < exact - 20


def test_the_bias_estimate_corrects() -> None:
    """At K = 20 from a wide proposal, the mean error after correction is less than half of that before."""
    data = LG.sample(4000, seed=4)
    ev = log_marginal(LG.model(), Stretched(LG, 1.7), data, 20, defensive=0.0, seed=0)
    error, corrected = (v - LG.log_marginal(data) for v in (ev.estimate, ev.corrected))
    assert error.mean().item() < -3 * error.std().item() / 4000**0.5
    assert abs(corrected.mean().item()) < abs(error.mean().item()) / 2


def test_latents_that_the_guide_lacks_are_drawn_from_the_model() -> None:
    """z ~ N(0,1), u ~ N(z,1), x ~ N(u,1): the guide knows z only; log p(x) = N(x; 0, 3)."""

    def model(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            u = pyro.sample("u", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(u, 1.0), obs=batch.x["x"])

    def wide(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(batch.x["x"] / 3, 1.0))

    data = Batch({"x": torch.linspace(-3, 3, 100).double()})
    ev = log_marginal(model, wide, data, 5000, seed=0)
    judge(ev.estimate, ev.se, dist.Normal(0.0, 3**0.5).log_prob(data.x["x"]))
    assert ev.prior_sites == ("u",)


def test_private_latents() -> None:
    """x_a gets a private latent: Gaussian with covariance W_a W_a' + 11' + I/4; and u is the guide's unknown."""
    torch.manual_seed(0)
    model, q = WithPrivate().double(), GuideOfPrivate().double()
    a, b = model.nets["a"], model.nets["b"]
    w = torch.cat([torch.cat([a.weight, torch.ones(3, 1)], 1), torch.cat([b.weight, torch.zeros(2, 1)], 1)]).detach()
    w = torch.cat([w, b.weight.new_zeros(5, 1)], 1)
    w[3:, -1] = 0.1 * b.weight.sum(-1).detach()
    cov, mean = w @ w.T + torch.eye(5) / 4, torch.cat([a.bias, b.bias]).detach()
    z = torch.randn(100, 4, dtype=torch.float64)
    x = z @ w.T + mean + 0.5 * torch.randn(100, 5, dtype=torch.float64)
    masks = {"a": torch.arange(100) % 3 > 0, "b": torch.arange(100) % 4 > 0}
    data = Batch({"a": x[:, :3], "b": x[:, 3:]}, masks)
    exact = [
        gaussian(mean, cov, row, torch.tensor([masks["a"][i]] * 3 + [masks["b"][i]] * 2)) for i, row in enumerate(x)
    ]
    ev = log_marginal(model, q, data, 8000, independent=True, seed=0)
    fine = ev.reliable
    judge(ev.estimate[fine], ev.se[fine], torch.stack(exact)[fine], mean=0.05)
    assert fine.double().mean() > 0.6


def gaussian(mean: Tensor, cov: Tensor, x: Tensor, seen: Tensor) -> Tensor:
    """log N over the seen elements."""
    if not bool(seen.any()):
        return torch.zeros((), dtype=x.dtype)
    return dist.MultivariateNormal(mean[seen], cov[seen][:, seen]).log_prob(x[seen])


def test_says_what_was_estimated_and_how() -> None:
    ev = log_marginal(LG.model(), guide("moe", LG), LG.sample(5).only("a", "c"), 50, seed=0)
    assert ev.quantity == "log p(a, c)" and ev.proposal == "0.9 guide + 0.1 prior"
    assert log_marginal(LG.model(), guide("moe", LG), LG.sample(5), 50, defensive=0.0).proposal == "guide"


def test_a_seed_gives_the_same_numbers_and_leaves_the_stream_alone() -> None:
    pair = LG.model(), guide("moe", LG)
    state = torch.get_rng_state()
    first, second = (log_marginal(*pair, TEST, 50, seed=7).estimate for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, log_marginal(*pair, TEST, 50, seed=8).estimate)


def test_single_precision_is_good_to_its_rounding() -> None:
    """Weights are formed in float64, whatever the programs compute in."""
    model, q = LG.model(), guide("posteriors", LG)
    double = log_marginal(model, q, TEST, 500, seed=0)
    single = log_marginal(model.float(), q.float(), TEST.to(torch.float32), 500, seed=0)
    assert single.estimate.dtype == torch.float64
    error = single.estimate - LG.log_marginal(TEST)
    assert (error.abs() < 4 * double.se + 1e-4).double().mean() > 0.98
    assert error[double.se < 1e-5].abs().max() < 1e-4, "rows whose weights are constant"


class NoDensity(nn.Module):
    """A model that has a sampler only."""

    no_likelihood = "its decoder is a GAN"


def test_refuses_models_without_the_density() -> None:
    with pytest.raises(NoLikelihood, match="NoDensity has no likelihood: its decoder is a GAN"):
        log_marginal(NoDensity(), Prior(LG), TEST, 10)
    a, b, _ = LG.modalities
    conditional = Conditional(a, (b,), 2).double()
    with pytest.raises(
        NoLikelihood, match=r"a model of a given b: it has log_conditional\(of=\['a'\], given=\['b'\]\)"
    ):
        log_marginal(conditional, Prior(LG), TEST, 10)


def test_a_handler_round_the_program_keeps_evaluation_mode() -> None:
    """Drop-out inside a wrapped model is off: two seeds that only drop-out could tell apart agree."""

    class Wet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.drop = LG.model(), nn.Dropout(0.9)

        def forward(self, batch: Batch) -> None:
            shifted = {m: self.drop(v) for m, v in batch.x.items()}
            self.inner(Batch._view(shifted, batch.mask, batch.hidden))

    wet = Wet()
    ev = log_marginal(poutine.scale(wet, scale=3.0), LG.exact_guide(), TEST, 20, defensive=0.0)
    torch.testing.assert_close(ev.estimate, LG.log_marginal(TEST))
    assert wet.training
