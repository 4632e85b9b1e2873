"""Estimates in blocks of rows, and estimates from several seeds as one; over processes: tests/test_ranks.py."""

import functools
from dataclasses import replace

import pytest
import torch

from pyro_mm.evaluation import Evidence, log_conditional, log_marginal, sharded
from pyro_mm.evaluation.marginal import evidence_of
from pyro_mm.evaluation.streaming import WeightSums
from tests.helpers.oracle import LG, ExactGuide, MeanField


def estimator(k=200, **options):
    lg = LG()
    return functools.partial(log_marginal, lg.model(), MeanField(lg), k=k, **options), lg


def same(one, other):
    for name in ("estimate", "se", "ess", "khat", "bias"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert (one.quantity, one.k, one.proposal) == (other.quantity, other.k, other.proposal)


def test_one_block_is_the_estimator_itself():
    estimate, lg = estimator()
    same(sharded(estimate, lg.data(9), seed=4), estimate(lg.data(9), seed=4))


def test_blocks_draw_for_themselves_and_are_right():
    """A block's numbers depend on the seed and its place alone; all are within their error bars of the truth."""
    estimate, lg = estimator()
    batch = lg.data(60)
    whole, part = sharded(estimate, batch, seed=4, rows=20), sharded(estimate, batch[:40], seed=4, rows=20)
    assert torch.equal(whole.estimate[:40], part.estimate)
    assert not torch.equal(sharded(estimate, batch[20:40], seed=4).estimate, whole.estimate[20:40])
    z = (whole.estimate - whole.bias - lg.log_marginal(batch)) / whole.se
    assert z.abs().max() < 5 and abs(z.mean()) < 4 / 60**0.5


def test_missing_modalities_and_conditionals():
    lg = LG()
    batch = lg.data(11, missing=True)
    exact = functools.partial(log_marginal, lg.model(), ExactGuide(lg), k=8, defensive=0.0)
    found = sharded(exact, batch, rows=1)
    torch.testing.assert_close(found.estimate, lg.log_marginal(batch), rtol=1e-9, atol=1e-9)
    assert found.quantity == "log p(a, b, c)"  # though some rows have fewer, and one has none
    asked = functools.partial(log_conditional, lg.model(), ExactGuide(lg), of="a", given="b", k=400)
    full = lg.data(11)
    conditional = sharded(asked, full, rows=4)
    truth = lg.log_marginal(full.only("a", "b")) - lg.log_marginal(full.only("b"))
    assert ((conditional.estimate - truth).abs() < 5 * conditional.se + 1e-9).all()


def test_what_cannot_be_sharded_is_refused():
    estimate, lg = estimator()
    with pytest.raises(ValueError, match="sharded needs rows: 0 rows in blocks of 1024"):
        sharded(estimate, lg.data(5)[:0])
    with pytest.raises(TypeError, match="one value per datum; got a float for 5 rows"):
        sharded(lambda block, seed: 1.0, lg.data(5))
    with pytest.raises(TypeError, match="got 3 values for 5 rows"):
        sharded(lambda block, seed: torch.zeros(3), lg.data(5))


def weights(k, seed):
    return 2 * torch.randn(k, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def from_weights(log_w):
    sums = WeightSums(len(log_w))
    sums.add(log_w)
    return evidence_of(sums, "log p(a)", "guide")


def test_pooled_draws_are_as_if_drawn_together():
    """The estimate, its error and ESS from parts of 50, 200 and 30 draws are those of all 280 weights."""
    parts = [weights(k, seed) for seed, k in enumerate((50, 200, 30))]
    pooled, together = Evidence.pool([from_weights(w) for w in parts]), from_weights(torch.cat(parts))
    for name in ("estimate", "se", "ess", "bias"):
        torch.testing.assert_close(getattr(pooled, name), getattr(together, name), rtol=1e-12, atol=1e-12)
    assert pooled.k == 280 and pooled.draws is None
    assert torch.equal(pooled.khat, torch.stack([from_weights(w).khat for w in parts]).amax(0))


def test_pooled_draws_may_differ_by_datum():
    one, other = from_weights(weights(50, 1)), from_weights(weights(20, 2))
    mixed = Evidence.join([one.rows(torch.arange(3)), other.rows(torch.arange(3, 6))])
    pooled = Evidence.pool([mixed, other])
    assert pooled.draws.tolist() == [70] * 3 + [40] * 3 and pooled.k == 70


def test_pool_refuses_what_is_no_average_of_weights():
    one = from_weights(weights(9, 1))
    with pytest.raises(ValueError, match=r"log p\(a \| b\) cannot be pooled"):
        Evidence.pool([replace(one, quantity="log p(a | b)")])
    with pytest.raises(ValueError, match="pool needs one quantity of the same rows"):
        Evidence.pool([one, one.rows(torch.arange(2))])
