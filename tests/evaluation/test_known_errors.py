"""Mistakes found in published code (docs/traps.md): the wrong way gives a wrong number, ours does not.

Each test computes the number the mistaken way, shows that it is off, and that the library is right on the same pair.
"""

from __future__ import annotations

import copy
from math import log

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.importance import vectorized_importance_weights

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture
from pyro_mm.evaluation import log_conditional, log_conditional_difference, log_marginal, plug_in
from pyro_mm.handlers import given, particles
from pyro_mm.objectives import elbo, looser
from pyro_mm.weights import log_weights, replay, run
from tests.helpers.estimates import Prior, Stretched, guide, hidden, judge, lme, scored_by, truth

LG = truth()
TEST = LG.sample(200, seed=1)
EXACT = LG.log_marginal(TEST)


def right(q: object, data: Batch = TEST, k: int = 2000, **options: object) -> None:
    """log_marginal agrees with the exact value for every datum."""
    ev = log_marginal(LG.model(), q, data, k, independent=True, seed=0, **options)  # type: ignore[arg-type]
    fine = ev.reliable
    judge(ev.estimate[fine], ev.se[fine], LG.log_marginal(data)[fine])


@pytest.mark.parametrize(("kind", "off"), [("moe", 0.2), ("mopoe", 0.05)])
def test_e1_all_particles_from_one_expert(kind: str, off: float) -> None:
    """MultiVae 1.0.3: K draws from one random expert, weighted by the mixture's density (+.742, -.277 nats)."""
    torch.manual_seed(0)
    q = guide(kind, LG)
    mixture = q.posterior(TEST)
    parts, index = mixture.components(), torch.randint(2, ())
    with torch.no_grad():
        draws = parts.sample((500,))[:, :, index]
    wrong = (lme(scored_by(LG, q, draws, TEST)) - EXACT).mean().item()
    assert abs(wrong) > off
    right(q)


def test_e2_component_index_as_a_site() -> None:
    """Its density enters with nothing against it: + log 3 = 1.099 (1.095 measured)."""

    def with_index(batch: Batch) -> None:
        experts = guide("moe", LG).posterior(batch).components()
        with pyro.plate("data", len(batch), dim=-1):
            i = pyro.sample("index", dist.Categorical(logits=torch.zeros(3).double()))
            near = experts.base_dist.loc, experts.base_dist.scale
            pick = i[..., None, None].expand(*i.shape, 1, 2)
            loc, scale = (t[..., :3, :].expand(*i.shape, 3, 2).gather(-2, pick).squeeze(-2) for t in near)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    torch.manual_seed(0)
    with torch.no_grad():
        sites = run(particles(with_index, 2000), TEST)
        model = replay(particles(LG.model(), 2000), TEST, {"z": sites["z"].value})
    log_p = sum(s.log_prob() for s in model.values())
    wrong = lme((log_p - sites["z"].log_prob() - sites["index"].log_prob()).squeeze(1))
    assert (wrong - EXACT).mean().item() == pytest.approx(log(3), abs=0.35)
    with pytest.raises(ValueError, match=r"guide site 'index' is not in the model, whose latents are \['z'\]"):
        log_marginal(LG.model(), with_index, TEST, 10)


def test_e3_particles_and_rows_exchanged() -> None:
    """(K, B) reduced as (B, K): with the exact posterior every weight must be p(x), and a mixed-up mean is not."""
    with torch.no_grad():
        log_w = log_weights(LG.model(), LG.exact_guide(), TEST[:5], 12)
    torch.testing.assert_close(log_w, EXACT[:5].expand(12, 5), rtol=0, atol=1e-12)
    wrong = lme(log_w.reshape(5, 12).T)
    assert (wrong - EXACT[:5]).abs().max().item() > 1
    assert wrong.mean().item() - EXACT[:5].mean().item() > 0.3, "mixing data before the logarithm flatters"
    ev = log_marginal(LG.model(), LG.exact_guide(), TEST[:5], 12, defensive=0.0)
    torch.testing.assert_close(ev.estimate, EXACT[:5], rtol=0, atol=1e-12)


def test_e4_the_batch_is_not_consumed() -> None:
    """MultiVae's MMVAE+ popped a modality per call: the second datum was scored without it."""
    data = hidden(TEST)
    before = copy.deepcopy((data.x, data.mask, data.hidden))
    pair = LG.model(), guide("mopoe", LG)
    for _ in range(2):
        log_marginal(*pair, data, 20)
        log_conditional(*pair, data, "a", "b", 20)
        plug_in(*pair, data, "a", "b", 20)
    assert list(data.x) == list(before[0]) and list(data.mask) == list(before[1]) and data.hidden == before[2]
    assert all(torch.equal(data.x[m], v) for m, v in before[0].items())
    assert all(torch.equal(data.mask[m], v) for m, v in before[1].items())


@pytest.mark.parametrize("rows", [7, 64, 200])
def test_e5_e15_any_batch_size_gives_one_answer(rows: int) -> None:
    """Accumulators that are not reset give 527 nats for 13; a mean of batch means is off when the last is ragged."""
    parts = [
        log_marginal(LG.model(), LG.exact_guide(), TEST[i : i + rows], 10, defensive=0.0) for i in range(0, 200, rows)
    ]
    whole = log_marginal(LG.model(), LG.exact_guide(), TEST, 10, defensive=0.0, chunk=10 * rows)
    torch.testing.assert_close(torch.cat([p.estimate for p in parts]), whole.estimate, rtol=0, atol=1e-10)
    assert whole.mean == pytest.approx(EXACT.mean().item(), abs=1e-10)
    if rows == 64:
        means = sum(p.mean for p in parts) / len(parts)
        assert abs(means - whole.mean) > 0.01


def test_e6_training_weights_stay_out() -> None:
    """iffsid/mmvae kept likelihood scaling in the reported value: weights (1, 1.5, 2.4) gave -39.57 for -29.53."""
    model, q = LG.model(), guide("moe", LG)

    def scaled(batch: Batch) -> None:
        with poutine.scale(scale=torch.tensor(1.9)):
            model(batch)

    with torch.no_grad():
        wrong = lme(log_weights(scaled, q, TEST, 200, scaled=True))
    assert (wrong - EXACT).abs().min().item() > 1
    plain = log_marginal(model, q, TEST, 200, seed=0)
    wrapped = log_marginal(scaled, poutine.scale(q, scale=0.1), TEST, 200, seed=0)
    assert torch.equal(plain.estimate, wrapped.estimate)


def subsampled(program: object, size: int) -> object:
    """The program's plate as one of `size` rows, of which these are a subsample."""

    def wide(batch: Batch) -> None:
        with pyro.plate("data", size, subsample=torch.arange(len(batch)), dim=-1):
            if program == "guide":
                pyro.sample("z", guide("moe", LG).posterior(batch))
            else:
                z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
                for m, w in LG.weights.items():
                    px = dist.Normal(z @ w.T + LG.offsets[m], LG.scales[m]).to_event(1)
                    pyro.sample(m, px, obs=batch.x[m])

    return wide


def test_e7_the_subsampling_factor_stays_out_of_the_exponent() -> None:
    """Pyro keeps N/B inside: -277.4 for -28.96."""
    pair = subsampled("model", 2000), subsampled("guide", 2000)
    with torch.no_grad():
        q = poutine.trace(particles(pair[1], 200)).get_trace(TEST)  # type: ignore[arg-type]
        p = poutine.trace(poutine.replay(particles(pair[0], 200), trace=q)).get_trace(TEST)  # type: ignore[arg-type]
        p.compute_log_prob(), q.compute_log_prob()
        sites = {n: s["log_prob"] for n, s in p.nodes.items() if n in ("z", "a", "b", "c")}
        wrong = lme((sum(sites.values()) - q.nodes["z"]["log_prob"]).squeeze(1))
    assert (wrong / EXACT).mean().item() == pytest.approx(10, rel=0.1)
    ev = log_marginal(*pair, TEST, 2000, independent=True, seed=0)  # type: ignore[arg-type]
    judge(ev.estimate, ev.se, EXACT)


def coin(batch: Batch) -> None:
    """c ~ Bernoulli(.3), z ~ N(0, 1), x ~ N(z + 2 c, 1)."""
    with pyro.plate("data", len(batch), dim=-1):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3).double()))
        z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        pyro.sample("x", dist.Normal(z + 2 * c, 1.0), obs=batch.x["x"])


def masked_by_obs_mask(batch: Batch) -> None:
    """z ~ N(0, 1), x ~ N(z, 1) with Pyro's obs_mask, which makes a latent of what is missing."""
    with pyro.plate("data", len(batch), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=batch.x["x"], obs_mask=batch.mask["x"])


def half(batch: Batch) -> None:
    """z ~ N(x / 2, 1/2) where x is present, else the prior."""
    with pyro.plate("data", len(batch), dim=-1):
        seen = batch.mask["x"]
        pyro.sample(
            "z", dist.Normal(torch.where(seen, batch.x["x"] / 2, 0.0), torch.where(seen, 0.5**0.5, 1.0).double())
        )


@pytest.mark.parametrize("model", [coin, masked_by_obs_mask])
def test_e8_latents_that_no_guide_knows(model: object) -> None:
    """Pyro leaves their prior in the weight: -2.329 for -1.390, and -1.976 for -1.067."""
    x = torch.linspace(-2, 3, 200, dtype=torch.float64)
    data = Batch({"x": x}, {"x": torch.arange(200) % 4 > 0} if model is masked_by_obs_mask else None)
    one = dist.Normal(0.0, 2**0.5)
    exact = torch.logaddexp(log(0.7) + one.log_prob(x), log(0.3) + one.log_prob(x - 2))
    exact = torch.where(data.mask["x"], one.log_prob(x), 0.0) if model is masked_by_obs_mask else exact
    with torch.no_grad():
        sites = run(particles(half, 2000), data)
        replayed = replay(particles(model, 2000), data, {"z": sites["z"].value})  # type: ignore[arg-type]
        wrong = lme((sum(s.log_prob() for s in replayed.values()) - sites["z"].log_prob()).squeeze(1))
    assert (wrong - exact).mean().item() < -0.3
    ev = log_marginal(model, half, data, 4000, independent=True, seed=0)  # type: ignore[arg-type]
    judge(ev.estimate, ev.se, exact)
    assert ev.prior_sites == (("c",) if model is coin else ("x_unobserved",))


def test_e9_denominator_from_the_prior() -> None:
    """Tars 0.0.2: log p(a, b) from the guide minus log p(b) from prior samples, +.5 to +8 nats at K = 100."""
    big = truth((12, 8, 5), 4)
    data = big.sample(200, seed=1)
    pair, exact = (big.model(), guide("mean-field", big)), big.log_conditional(data, "a", ("b", "c"))
    top = log_marginal(*pair, data, 100, seed=0)
    bottom = log_marginal(big.model(), Prior(big), data.only("b", "c"), 100, defensive=0.0, seed=1)
    assert (top.estimate - bottom.estimate - exact).mean().item() > 2
    for estimator in (log_conditional, log_conditional_difference):
        ev = estimator(*pair, data, "a", ("b", "c"), 2000, independent=True, seed=0)
        judge(ev.estimate[ev.reliable], ev.se[ev.reliable], exact[ev.reliable], rms=(0.7, 1.3))


def test_e10_plug_in_is_not_the_conditional() -> None:
    """MultiVae's compute_cond_nll: with a posterior too wide by 2 its limit is another number, whatever K."""
    q = Stretched(LG, 2.0)
    exact, limit = LG.log_conditional(TEST, "a", "b"), LG.plug_in(TEST, "a", q.posterior(TEST.only("b")))
    assert (limit - exact).mean().item() < -0.3
    wrong, good = (
        plug_in(LG.model(), q, TEST, "a", "b", 4000, seed=0),
        log_conditional(LG.model(), q, TEST, "a", "b", 4000, seed=0),
    )
    assert wrong.mean == pytest.approx(limit.mean().item(), abs=0.03)
    assert good.mean == pytest.approx(exact.mean().item(), abs=0.03)
    assert wrong.quantity != good.quantity


def test_e11_cross_proposals_estimate_the_marginal() -> None:
    """mean of p(a, z) / q(z | b) is log p(a), a marginal by another guide, and neither conditional nor plug-in."""
    q, one = given(guide("posteriors", LG), "b"), TEST.only("a", "b")
    with torch.no_grad():
        cross = log_marginal(given(LG.model(), "a"), q, one, 5000, seed=0)
    marginal, conditional = LG.log_marginal(TEST.only("a")), LG.log_conditional(TEST, "a", "b")
    judge(cross.estimate[cross.reliable], cross.se[cross.reliable], marginal[cross.reliable], mean=0.05, rms=(0.7, 1.3))
    plugged = plug_in(LG.model(), Stretched(LG, 2.0), TEST, "a", "b", 1000, seed=0).mean
    three = sorted([marginal.mean().item(), conditional.mean().item(), plugged])
    assert three[1] - three[0] > 0.3 and three[2] - three[1] > 0.3


def test_e14_data_are_never_summed_before_the_logarithm() -> None:
    """Pyro's vectorized_importance_weights sums the plate away: one weight per particle for all data together."""
    model, q = LG.model(), Stretched(LG, 1.5)
    with torch.no_grad():
        joint, _, _ = vectorized_importance_weights(model, q, TEST, num_samples=200, max_plate_nesting=2)
        wrong = lme(joint)
    assert joint.shape == (200,)
    ev = log_marginal(model, q, TEST, 200, defensive=0.0, seed=0)
    assert ev.estimate.shape == (200,)
    assert EXACT.sum().item() - wrong.item() > 5 > abs(ev.estimate.sum().item() - EXACT.sum().item())
    order = torch.randperm(200)
    z = torch.randn(3, 200, 2, dtype=torch.float64)
    assert torch.equal(scored_by(LG, q, z, TEST)[:, order], scored_by(LG, q, z[:, order], TEST[order]))


@pytest.mark.parametrize("kind", ["moe", "mopoe"])
def test_e16_mixture_densities_integrate_to_one(kind: str) -> None:
    """Pixyz: logsumexp(weight x log p) integrates to 4.48."""
    q = guide(kind, LG).posterior(hidden(TEST)[:6])
    assert isinstance(q, Mixture)
    grid = torch.linspace(-6, 6, 241, dtype=torch.float64)
    z = torch.cartesian_prod(grid, grid).unsqueeze(1)
    with torch.no_grad():
        mass = q.log_prob(z).exp().sum(0) * 0.05**2
        torch.testing.assert_close(mass, torch.ones(6).double(), rtol=0, atol=1e-4)
        each = q.components().log_prob(z.unsqueeze(-2))
        wrong = torch.logsumexp(q.log_weights.exp() * each, -1).exp().sum(0) * 0.05**2
    assert (wrong - 1).abs().min().item() > 0.5


def test_e19_mean_of_the_experts_bounds_is_a_looser_bound() -> None:
    """1/M sum_m log-IWAE of expert m under the mixture's density: -.117 nats; `looser`, never `log_marginal`."""
    torch.manual_seed(0)
    model, q = LG.model(), guide("moe", LG)
    with torch.no_grad():
        loose = [-looser(model, q, 300)(TEST).item() for _ in range(3)]
        plain = [-elbo(model, q)(TEST).item() for _ in range(20)]
    assert sum(plain) / 20 < sum(loose) / 3 < EXACT.mean().item() - 0.05
    right(q)


def test_e20_results_carry_no_graph_and_one_value_per_datum() -> None:
    """Joint models in MultiVae summed over the batch and kept the graph of every particle."""
    model, q = LG.model(), guide("mopoe", LG)
    for ev in (
        log_marginal(model, q, TEST, 20),
        log_conditional(model, q, TEST, "a", "b", 20),
        log_conditional_difference(model, q, TEST, "a", "b", 20),
        plug_in(model, q, TEST, "a", "b", 20),
    ):
        for value in (ev.estimate, ev.se, ev.ess, ev.khat, ev.bias):
            assert value.shape == (200,) and not value.requires_grad and value.grad_fn is None
    assert all(p.grad is None and p.requires_grad for p in (*model.parameters(), *q.parameters()))
