"""Both ends of log p(x) on simulated data, against the exact values."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, log_marginal, sandwich
from pyro_mm.models import Conditional
from tests.helpers.estimates import GUIDES, Folded, OneMode, Prior, Stretched, above, guide, hidden, truth
from tests.helpers.pairs import GuideOfNested, GuideOfPrivate, Nested, WithPrivate
from tests.helpers.programs import Chain, TopOnly

LG = truth()
TEST = hidden(LG.sample(400, seed=1))


@pytest.mark.parametrize("defensive", [0.0, 0.1])
@pytest.mark.parametrize("kind", GUIDES)
def test_the_ends_enclose(kind: str, defensive: float) -> None:
    for k in (1, 100):
        ends = sandwich(LG.model(), guide(kind, LG), TEST, k, defensive=defensive, seed=0)
        exact = LG.log_marginal(ends.data)
        assert above(exact - ends.lower) and above(ends.upper - exact)
        assert ends.gap == pytest.approx((ends.upper - ends.lower)[TEST.present()].mean().item())
        assert all(torch.equal(ends.data.mask[m], TEST.mask[m]) for m in TEST.names)


def test_ends_close_as_the_particles_grow() -> None:
    gaps = [sandwich(LG.model(), guide("moe", LG), TEST, k, seed=0).gap for k in (1, 10, 100, 1000)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.5 and gaps[-1] < 0.005


def test_reference_figures() -> None:
    """K = 100, latent of 4: mean-field gap .003; standard deviations x .7, .19; the prior 20 nats, upper 3.5 high."""
    big = truth((12, 8, 5), 4)
    data = big.sample(500, seed=1)
    found = {}
    for name, q in (("mean-field", guide("mean-field", big)), ("narrow", Stretched(big, 0.7)), ("prior", Prior(big))):
        ends = sandwich(big.model(), q, data, 100, defensive=0.0, seed=0)
        exact = big.log_marginal(ends.data)
        found[name] = ends.gap, (ends.upper - exact).mean().item()
    assert found["mean-field"][0] < 0.01
    assert 0.1 < found["narrow"][0] < 0.3
    assert 10 < found["prior"][0] < 30 and 2.5 < found["prior"][1] < 5


def test_one_particle_is_the_symmetric_divergence() -> None:
    """K = 1: E[gap] = KL(p || q) + KL(q || p), here in closed form (the EUBO minus the ELBO)."""
    data = LG.sample(4000, seed=2)
    q = Stretched(LG, 1.4, 0.5)
    ends = sandwich(LG.model(), q, data, 1, defensive=0.0, seed=0)
    mean, cov = LG.posterior(ends.data)
    p, approx = dist.MultivariateNormal(mean, cov), q.posterior(ends.data)
    approx = dist.MultivariateNormal(approx.mean, approx.variance.diag_embed())
    both = dist.kl.kl_divergence(p, approx) + dist.kl.kl_divergence(approx, p)
    assert ends.gap == pytest.approx(both.mean().item(), abs=4 * ends.gap_se)


def test_an_exact_guide_has_no_gap() -> None:
    ends = sandwich(LG.model(), LG.exact_guide(), TEST, 50, defensive=0.0, seed=0)
    exact = LG.log_marginal(ends.data)
    torch.testing.assert_close(ends.lower, exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(ends.upper, exact, rtol=0, atol=1e-10)


def test_a_missed_mode_is_a_gap() -> None:
    """Where k-hat and ESS see nothing (test_marginal), the upper end does."""
    data = Batch({"x": torch.full((400,), 8.0, dtype=torch.float64)})
    missed = sandwich(Folded(), OneMode(), data, 1000, defensive=0.0, seed=0)
    assert missed.gap > 5
    assert (missed.lower - Folded.exact(missed.data.x["x"])).mean().item() < -0.2
    whole = sandwich(Folded(), OneMode(), data, 1000, seed=0)
    assert whole.gap < 0.3
    exact = Folded.exact(whole.data.x["x"])
    assert above(exact - whole.lower) and above(whole.upper - exact)


@pytest.mark.parametrize("defensive", [0.0, 0.1])
def test_latents_that_the_guide_lacks_keep_the_drawn_value(defensive: float) -> None:
    """A fresh u in place of the one that made x would put the upper end below log p(x) (by .6 nats at K = 1)."""
    data = Batch({"x": torch.zeros(2000, dtype=torch.float64)})
    for k in (1, 10):
        ends = sandwich(Chain(), TopOnly(), data, k, defensive=defensive, seed=0)
        exact = dist.Normal(0.0, 2.09**0.5).log_prob(ends.data.x["x"])
        assert above(exact - ends.lower) and above(ends.upper - exact)
        assert (ends.upper - exact).mean().item() > 0.02, "u is missing: the bound is not tight"


@pytest.mark.parametrize(("model", "q"), [(WithPrivate, GuideOfPrivate), (Nested, GuideOfNested)])
def test_private_and_nested_latents_keep_their_rows(model: type, q: type) -> None:
    """The gap closes, which it would not if rows and latents were mixed up; blocks of 7 rows."""
    torch.manual_seed(0)
    pair = model().double(), q().double()
    data = Batch({"a": torch.zeros(150, 3).double(), "b": torch.zeros(150, 2).double()})
    wide = sandwich(*pair, data, 10, seed=0)
    ends = sandwich(*pair, data, 3000, seed=0, chunk=7 * 3000)
    assert wide.gap > 2 * ends.gap and ends.gap < 1.5
    assert above(ends.upper - ends.lower)


def test_it_certifies_the_estimator() -> None:
    """log_marginal on the certificate's data lies between its ends."""
    ends = sandwich(LG.model(), guide("moe", LG), TEST, 1000, seed=0)
    ev = log_marginal(LG.model(), guide("moe", LG), ends.data, 1000, seed=1)
    assert above(ev.estimate - ends.lower) or abs((ev.estimate - ends.lower).mean().item()) < 0.005
    assert above(ends.upper - ev.estimate)
    assert f"{int(TEST.present().sum())} simulated data, K=1000" in repr(ends)


def test_refuses_models_without_a_density_of_their_own() -> None:
    a, b, _ = LG.modalities
    with pytest.raises(NoLikelihood, match="a model of a given b"):
        sandwich(Conditional(a, (b,), 2).double(), Prior(LG), TEST, 10)
