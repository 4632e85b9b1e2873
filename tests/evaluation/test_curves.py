"""K-sample bounds against expectations that can be written out."""

from __future__ import annotations

import json
from math import comb, log

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, log_marginal
from pyro_mm.evaluation.curves import BlockSums, KCurve, k_curve
from tests.helpers.estimates import Prior, Stretched, guide, hidden, judge, truth

LG = truth()
TEST = hidden(LG.sample(150, seed=1))
KS = (1, 3, 10, 40)


# A coin: z ~ Bernoulli(1/2), x ~ N(3z, 1), q(z = 1) = 0.3.  A weight has two values, so that every bound is a sum.


def coin(batch: Batch) -> None:
    with pyro.plate("data", len(batch), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double()))
        pyro.sample("x", dist.Normal(3 * z, 1.0), obs=batch.x["x"])


def guess(batch: Batch) -> None:
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))


def exact_bound(x: float, k: int, defensive: float) -> float:
    """E log mean_k w_k: the number of ones among K draws is binomial."""
    one = (1 - defensive) * 0.3 + defensive * 0.5
    density = [
        dist.Normal(torch.tensor(3.0 * z).double(), 1.0).log_prob(torch.tensor(x).double()).exp() for z in (0, 1)
    ]
    w = [0.5 * density[0] / (1 - one), 0.5 * density[1] / one]
    chance = [comb(k, j) * one**j * (1 - one) ** (k - j) for j in range(k + 1)]
    return sum(c * torch.log(((k - j) * w[0] + j * w[1]) / k).item() for j, c in enumerate(chance))


@pytest.mark.parametrize("defensive", [0.0, 0.1])
def test_every_k_has_its_exact_expectation(defensive: float) -> None:
    x = 2.5
    curve = k_curve(coin, guess, Batch({"x": torch.full((3000,), x).double()}), KS, defensive=defensive, seed=0)
    exact = torch.tensor([exact_bound(x, k, defensive) for k in KS]).double()
    z = (curve.mean - exact) / curve.mean_se_mc
    assert z.abs().max() < 4, f"{curve.mean.tolist()} for {exact.tolist()}"
    assert curve.mean_se_mc.max() < 0.01, "an error bar that could hide a mistake"
    assert exact.diff().min() > 3 * curve.mean_se_mc.max(), "the steps between bounds are visible"


def test_error_bars_are_those_of_repeats() -> None:
    """The spread over equal data is what `se` says: from blocks, and for the last K, of which there is one, too."""
    curve = k_curve(coin, guess, Batch({"x": torch.full((3000,), 2.5).double()}), KS, seed=1)
    ratio = curve.estimate.std(-1) / curve.se.square().mean(-1).sqrt()
    assert (ratio - 1).abs()[:-1].max() < 0.06
    assert 0.8 < ratio[-1] < 1.3
    assert curve.blocks == (40, 13, 4, 1)


def test_at_k_1_it_is_the_elbo() -> None:
    """Of a guide 1.4 times as wide as the mean-field posterior, whose ELBO has a closed form."""
    data = LG.sample(300, seed=2)
    q = Stretched(LG, 1.4, shift=0.3)
    curve = k_curve(LG.model(), q, data, (1, 50), defensive=0.0, seed=0)
    exact = elbo(q.posterior(data), data).detach()
    assert abs((curve.mean[0] - exact.mean()) / curve.mean_se_mc[0]) < 4
    z = (curve.estimate[0] - exact) / curve.se[0]
    assert 0.85 < z.square().mean().sqrt() < 1.15


def elbo(q: dist.TorchDistribution, data: Batch) -> Tensor:
    """E_q log p(x|z) - KL(q || N(0, I)) for q = N(loc, diag scale^2), written out."""
    loc, scale = q.base_dist.loc, q.base_dist.scale
    out = -0.5 * (scale**2 + loc**2 - 1 - 2 * scale.log()).sum(-1)
    for m, w in LG.weights.items():
        s = LG.scales[m]
        away = (data.x[m] - LG.offsets[m] - loc @ w.T).square().sum(-1) + (scale**2 @ w.square().T).sum(-1)
        out = out - 0.5 * away / s**2 - len(w) * log(s * (2 * torch.pi) ** 0.5)
    return out


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [7, 7, 7, 7, 7, 5], [13, 27], [39, 1]])
@pytest.mark.parametrize("k", [1, 3, 10, 40])
def test_blocks_are_disjoint_and_use_every_draw_in_order(cuts: list[int], k: int) -> None:
    """However the draws arrive; those that fill no block are left."""
    log_w = torch.randn(40, 5, dtype=torch.float64)
    sums = BlockSums(k)
    for part in log_w.split(cuts):
        sums.add(part)
    blocks = torch.stack([log_w[i * k : (i + 1) * k].exp().mean(0).log() for i in range(40 // k)])
    assert sums.count == len(blocks)
    torch.testing.assert_close(sums.mean, blocks.mean(0), rtol=0, atol=1e-12)
    if len(blocks) > 1:
        torch.testing.assert_close(sums.se, blocks.std(0) / len(blocks) ** 0.5, rtol=1e-9, atol=0)


def test_weights_of_zero_make_a_bound_of_minus_infinity() -> None:
    log_w = torch.tensor([[-torch.inf, 1.0], [2.0, 1.0], [0.0, -torch.inf], [0.0, 3.0]], dtype=torch.float64)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        one, two = BlockSums(1), BlockSums(2)
        for row in log_w[order]:
            one.add(row.unsqueeze(0))
            two.add(row.unsqueeze(0))
        assert (one.mean == -torch.inf).all() and (one.se == torch.inf).all()
        pairs = torch.stack([log_w[:2].exp().mean(0).log(), log_w[2:].exp().mean(0).log()])
        torch.testing.assert_close(two.mean, pairs.mean(0))


def test_the_last_point_is_a_likelihood_estimate() -> None:
    pair = LG.model(), guide("moe", LG)
    curve = k_curve(*pair, TEST, (1, 7, 1000), seed=5)
    ev = curve.evidence
    torch.testing.assert_close(curve.estimate[-1], ev.estimate, rtol=0, atol=1e-12)
    torch.testing.assert_close(curve.se[-1], ev.se)
    judge(ev.estimate[ev.reliable], ev.se[ev.reliable], LG.log_marginal(TEST)[ev.reliable])
    other = log_marginal(*pair, TEST, 1000, independent=True, seed=6)
    assert (other.khat - ev.khat)[TEST.present()].mean().abs() < 0.05 and len(ev) == len(TEST)


@pytest.mark.parametrize("chunk", [None, 1, 37])
def test_the_exact_posterior_has_a_flat_curve(chunk: int | None) -> None:
    curve = k_curve(LG.model(), LG.exact_guide(), TEST[:20], (1, 4, 15), defensive=0.0, chunk=chunk)
    torch.testing.assert_close(curve.estimate, LG.log_marginal(TEST[:20]).expand(3, -1), rtol=0, atol=1e-11)
    assert curve.se.max() < 1e-6


@pytest.mark.parametrize("chunk", [None, 999])
def test_it_rises_to_the_truth(chunk: int | None) -> None:
    data = TEST[TEST.present()]
    curve = k_curve(LG.model(), Prior(LG), data, (1, 10, 100, 1000), defensive=0.0, chunk=chunk, seed=0)
    exact = LG.log_marginal(data).mean()
    assert curve.mean.diff().min() > 0 and curve.mean[0] < exact - 20
    assert exact - 0.3 < curve.mean[-1] < exact + 3 * curve.mean_se_mc[-1]


def test_numbers_for_a_table() -> None:
    rows = TEST[:30].only("a", "c")
    there = rows.present()
    curve = k_curve(LG.model(), guide("poe", LG), rows, (10, 1, 10), seed=0)
    assert curve.ks == (1, 10)
    made = json.loads(json.dumps(curve.summary(), allow_nan=False))
    assert made["k"] == [1, 10] and made["blocks"] == [10, 1] and made["n"] == int(there.sum()) == 26
    assert made["mean"] == pytest.approx(curve.estimate[:, there].mean(-1).tolist())
    assert made["mc_se"] == pytest.approx([(s[there].square().sum().sqrt() / 26).item() for s in curve.se])
    text = repr(curve)
    assert "log p(a, c)" in text and "0.9 guide + 0.1 prior" in text and f"{made['mean'][1]:.3f}" in text


def test_what_cannot_be_drawn_is_refused() -> None:
    for ks in ((), (0, 10), (2.5,)):
        with pytest.raises(ValueError, match="ks must be whole numbers from 1 up"):
            k_curve(LG.model(), Prior(LG), TEST, ks)

    class NoDensity(torch.nn.Module):
        no_likelihood = "its decoder is a GAN"

    with pytest.raises(NoLikelihood, match="GAN"):
        k_curve(NoDensity(), Prior(LG), TEST)


def test_a_seed_gives_the_same_curve_and_leaves_the_stream_alone() -> None:
    pair, state = (LG.model(), guide("moe", LG)), torch.get_rng_state()
    first, second = (k_curve(*pair, TEST[:9], (1, 5), seed=3) for _ in range(2))
    assert isinstance(first, KCurve) and torch.equal(first.estimate, second.estimate)
    assert torch.equal(state, torch.get_rng_state())
