"""Gaps against closed forms of the linear-Gaussian model, whose best mean-field Gaussian is known."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import NoLikelihood
from pyro_mm.evaluation.gaps import Gaps, Nats, gaps
from pyro_mm.handlers import in_subsets
from tests.helpers.estimates import Folded, OneMode, Stretched, guide, hidden, truth
from tests.helpers.pairs import GuideOfNested, GuideOfPrivate, MoE, Nested, WithPrivate
from tests.helpers.pairs import data as pair_data
from tests.helpers.pairs import pair as pair_of

LG = truth((12, 8, 5), 4)
TEST = hidden(LG.sample(40, seed=1))
SOME = [("c",), ("a", "b", "c")]


def shown(group: tuple[str, ...], batch: Batch = TEST) -> Batch:
    """The rows that have something of the group, all else hidden."""
    return batch[batch.present(group)].only(*group)


def best_kl(batch: Batch, oracle: LinearGaussian = LG) -> Tensor:
    """KL(N(m, diag(1 / P_ii)) || N(m, P^-1)) = 1/2 (sum_i log P_ii - log |P|): no mean-field Gaussian has a smaller."""
    precision = oracle.precision(batch)
    return 0.5 * (precision.diagonal(dim1=-2, dim2=-1).log().sum(-1) - precision.logdet())


def kl_of(q: Stretched, batch: Batch) -> Tensor:
    """KL(q || p(z | x_S))."""
    own, exact = q.posterior(batch).base_dist, LG.posterior(batch)
    return kl_divergence(MultivariateNormal(own.loc, own.scale.square().diag_embed()), MultivariateNormal(*exact))


def agrees(found: Nats, exact: Tensor, slack: float = 0.004) -> None:
    """Per datum and in the mean, but for what optimisation leaves."""
    z = (found.value - exact) / (found.se + slack)
    assert z.abs().max() < 4.5 and z.square().mean().sqrt() < 1 + 4 / (2 * len(z)) ** 0.5
    assert abs(found.mean - exact.mean().item()) < 4 * found.mean_se_mc + slack


@pytest.mark.parametrize(("factor", "shift"), [(0.4, 0.5), (0.1, 3.0)])
def test_both_gaps_are_the_closed_forms(factor: float, shift: float) -> None:
    """Also of a guide so narrow that the best is 10 of its standard deviations wide and 30 away."""
    q = Stretched(LG, factor, shift)
    found = gaps(LG.model(), q, TEST, subsets=SOME, steps=100, seed=0)
    assert list(found.splits) == SOME
    for group, split in found.splits.items():
        rows = shown(group)
        assert len(split) == len(rows) < len(TEST), "some rows have nothing of it"
        agrees(split.family, best_kl(rows))
        agrees(split.amortisation, kl_of(q, rows) - best_kl(rows))
        agrees(split.covariance, best_kl(rows))
        total = split.guide.value + split.amortisation.value + split.family.value
        torch.testing.assert_close(total, split.evidence.estimate)
        assert split.evidence.reached.all() and split.evidence.target_se == 0.05


def test_the_best_mean_field_guide_has_no_amortisation_gap_and_the_default_is_every_subset() -> None:
    found = gaps(LG.model(), guide("mean-field", LG), TEST[:10], steps=30, seed=0)
    assert list(found.splits) == [tuple(s.split()) for s in ("a", "b", "c", "a b", "a c", "b c", "a b c")]
    for split in found.splits.values():
        agrees(split.amortisation, torch.zeros(len(split)), 0.01)
        assert split.family.mean > 0.03


def test_a_guide_outside_the_family_can_be_better_than_the_best_in_it() -> None:
    """The exact posterior: log p(x_S) - ELBO = 0, split into minus and plus the mean-field family's gap."""
    found = gaps(LG.model(), LG.exact_guide(), TEST, subsets=["c", ("a", "c")], steps=100, seed=0)
    for group, split in found.splits.items():
        exact = best_kl(shown(group))
        agrees(split.amortisation, -exact)
        agrees(split.family, exact)
        torch.testing.assert_close(split.guide.value, LG.log_marginal(shown(group)))
        assert split.amortisation.mean < -0.2
    mixed = gaps(LG.model(), guide("moe", LG), TEST, subsets=[("a", "b", "c")], steps=50, seed=0)["a", "b", "c"]
    assert mixed.amortisation.mean > 4 * mixed.amortisation.mean_se, "a mixture of marginal posteriors"


def test_standard_errors_are_paired_and_those_of_monte_carlo_are_right() -> None:
    """Of 150 copies of one row; over different rows a gap varies less than the ELBO."""
    copies = LG.sample(1, seed=3)[torch.zeros(150, dtype=torch.long)]
    pair = LG.model(), Stretched(LG, 0.6)
    split = gaps(*pair, copies, subsets=["b"], k=30, steps=60, seed=0)["b"]
    for gap in (split.amortisation, split.family, split.covariance):
        assert 0.7 < gap.value.std() / gap.se.square().mean().sqrt() < 1.3
        assert gap.mean_se == pytest.approx(gap.mean_se_mc, rel=0.3), "equal rows differ by noise alone"
    split = gaps(*pair, LG.sample(25, seed=3), subsets=["b"], k=30, steps=20, seed=0)["b"]
    gap = split.amortisation
    assert gap.mean_se == pytest.approx(gap.value.std().item() / 5) and gap.mean_se < split.guide.mean_se / 2
    assert gap.se.tolist() == pytest.approx((split.best.se**2 + split.guide.se**2).sqrt().tolist())


def test_real_coordinates_and_private_latents() -> None:
    """Log-normal latents in nested plates, where u is not Gaussian; and a latent masked with its modality."""
    model, q = pair_of(Nested, GuideOfNested)
    found = gaps(model, q, pair_data(8), subsets=["b", ("a", "b")], steps=100, target_se=0.1, seed=0)
    for split in found.splits.values():
        assert split.amortisation.mean > 0.5 and split.family.mean > -2 * split.family.mean_se_mc
        assert (split.family.mean - split.covariance.mean) > -0.05
    model, q = pair_of(Private, GuideOfPrivate)
    data = hidden(pair_data(40))
    split = gaps(model, q, data, subsets=["b"], steps=100, seed=0)["b"]
    assert split.family.mean == pytest.approx(family_of_private(model, data.only("b")).mean().item(), abs=0.02)


class Private(WithPrivate):
    """Without the latent that no guide knows."""

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        return super(WithPrivate, self).observation(m, z, batch) if m == "b" else super().observation(m, z, batch)


def family_of_private(model: nn.Module, batch: Batch) -> Tensor:
    """Given b alone w_a is masked, and z has the posterior of a linear-Gaussian model."""
    net = model.nets["b"]
    lg = LinearGaussian({"b": net.weight.detach()}, {"b": net.bias.detach()}, 0.5)
    rows = batch[batch.mask["b"]]
    return best_kl(Batch({"b": rows.x["b"]}), lg)


def test_a_bimodal_posterior_is_a_family_gap_of_log_2() -> None:
    data = Batch({"x": torch.tensor([5.0, 6.0, 7.0]).double()})
    split = gaps(Folded(), OneMode(), data, k=500, steps=50, seed=0)["x"]
    torch.testing.assert_close(split.family.value, torch.full((3,), log(2)).double(), atol=0.2, rtol=0)
    assert abs(split.covariance.mean) < 0.02, "one latent has no covariance"


def test_a_conditional_model_has_gaps_given_its_conditions() -> None:
    recipe = variants.cvae(LG.modalities, dim=2, width=8)
    found = gaps(recipe.model.double(), recipe.guide.double(), LG.sample(8), k=20, steps=20, seed=0)
    assert list(found.splits) == [("a",)] and found["a"].evidence.quantity == "log p(a)"


def test_rows_and_chunks_and_seeds() -> None:
    data, pair = TEST[:10], (LG.model(), Stretched(LG, 0.5))
    state = torch.get_rng_state()
    runs = [gaps(*pair, data, subsets=["a"], k=50, steps=50, seed=4, chunk=c) for c in (None, None, 500)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, small = (r["a"] for r in runs)
    assert torch.equal(first.best.value, again.best.value) and torch.equal(first.guide.value, again.guide.value)
    for one, other in ((first.best, small.best), (first.guide, small.guide)):
        assert ((one.value - other.value) / (one - other).se).square().mean().sqrt() < 2
        assert not one.value.requires_grad


def test_a_row_without_data_is_left_out_and_one_row_has_no_error_bar() -> None:
    data = Batch(LG.sample(3).x, {m: torch.tensor([True, False, False]) for m in "abc"})
    found = gaps(LG.model(), Stretched(LG, 0.5), data, subsets=["a"], k=20, steps=20, seed=0)
    numbers = json.loads(json.dumps(found.summary()))["subsets"]["a"]
    assert numbers["n"] == 1 and numbers["amortisation"]["se"] is None and numbers["amortisation"]["mc_se"] > 0
    assert len(found["a"]) == 1


def test_prints_a_table_whose_columns_add_up() -> None:
    found = gaps(LG.model(), guide("moe", LG), TEST, subsets=[("b", "a"), "c"], k=20, steps=20, seed=0)
    head, columns, *rows = repr(found).splitlines()
    assert head == "gaps in nats: 20 draws, 20 steps"
    assert columns.split()[:5] == ["given", "rows", "ELBO", "amortisation", "se"]
    for row, split in zip(rows, found.splits.values(), strict=False):
        cells = row.removeprefix("a, b").removeprefix("c").split()
        elbo, amortisation, family, logp = (float(cells[i]) for i in (1, 2, 5, 9))
        assert int(cells[0]) == len(split) and elbo + amortisation + family == pytest.approx(logp, abs=0.002)
    assert found["b", "a"] is found.splits["a", "b"] and found["c"] is found["c",]
    with pytest.raises(KeyError, match=r"no gaps of \['b'\]; there are \[\['a', 'b'\], \['c'\]\]"):
        found["b"]


def test_says_where_the_reference_is_not_to_be_believed() -> None:
    split = gaps(LG.model(), Stretched(LG, 0.5), TEST, subsets=["a"], k=20, steps=20, seed=0)["a"]
    poor = replace(split.evidence, khat=torch.full_like(split.evidence.khat, 5.0))
    last = repr(Gaps({("a",): replace(split, evidence=poor)}, 20, 20)).splitlines()[-1]
    assert last.startswith("given a: in 100.0% of the rows log p did not reach its standard error of 0.05, or k-hat")
    assert "k-hat" not in repr(Gaps({("a",): split}, 20, 20))


class Labelled(nn.Module):
    """z ~ Categorical, and x where it is observed."""

    def __init__(self, observed: bool) -> None:
        super().__init__()
        self.observed = observed

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3).double()))
            if self.observed:
                pyro.sample("x", dist.Normal(z.double(), 1.0), obs=batch.x["x"])


def test_what_has_no_gaps_is_refused() -> None:
    model, q = LG.model(), Stretched(LG, 0.5)
    with pytest.raises(ValueError, match=r"at least 2 draws and 2 steps, got k=1 and steps=200"):
        gaps(model, q, TEST, k=1)
    with pytest.raises(ValueError, match=r"subsets name \['d'\]"):
        gaps(model, q, TEST, subsets=["d"])
    with pytest.raises(ValueError, match="no row of the batch has anything of"):
        gaps(model, q, TEST.without("a"), subsets=["a"])
    with pytest.raises(ValueError, match="target_se must be above 0"):
        gaps(model, q, TEST, target_se=0.0, k=2, steps=2, subsets=["a"])
    with pytest.raises(ValueError, match=r"latent 'z' \(Categorical\) has no density over real numbers"):
        gaps(Labelled(True), Labelled(False), Batch({"x": torch.zeros(4).double()}))
    with pytest.raises(ValueError, match="several values per row"):
        gaps(in_subsets(model, SOME), in_subsets(q, SOME), TEST)
    with pytest.raises(ValueError, match=r"latents \['w_a', 'u'\] are not in the guide"):
        gaps(*pair_of(WithPrivate, MoE), pair_data())
    model.no_likelihood = "it is a stand-in"
    with pytest.raises(NoLikelihood, match="it is a stand-in"):
        gaps(model, q, TEST)
