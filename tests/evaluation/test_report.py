"""A report on any pair and any rows, and what it refuses."""

from __future__ import annotations

import json
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture
from pyro_mm.evaluation import NoLikelihood
from pyro_mm.evaluation.report import report
from pyro_mm.handlers import in_subsets
from tests.helpers.estimates import guide
from tests.helpers.pairs import GuideOfNested, GuideOfPrivate, Nested, WithPrivate
from tests.helpers.pairs import data as pair_data
from tests.helpers.pairs import pair as pair_of
from tests.helpers.reports import LG, TEST, kl_to_standard


def test_private_latents_count_in_the_rows_that_have_them() -> None:
    model, q = pair_of(WithPrivate, GuideOfPrivate)
    full = pair_data(60)
    data = Batch(full.x, {"a": torch.arange(60) % 3 > 0, "b": torch.arange(60) % 4 > 0})
    found = report(model, q, data, 10, seed=0)
    w = found.everything.latents["w_a"]
    loc = data.x["a"][data.mask["a"]].mean(-1)
    assert w.rows == 40 and found.everything.rows == int(data.present().sum())
    assert w.total == pytest.approx((loc.square() / 2).mean().item())
    torch.testing.assert_close(w.activity, loc.var().reshape(1))
    total = found.everything.latents["z"].total + w.total * 40 / found.everything.rows
    assert found.everything.kl == pytest.approx(total)
    assert list(found.views["b",].latents) == ["z"], "given b alone there is no w_a"
    assert found.gradients is not None and found.gradients.over == ("z",)


def test_latents_in_a_plate_of_their_own_are_dimensions() -> None:
    model, q = pair_of(Nested, GuideOfNested)
    data = pair_data(40)
    y = report(model, q, data, 10, seed=0).everything.latents["y"]
    assert y.kl is not None
    torch.testing.assert_close(y.kl, kl_to_standard(0.2 * data.x["a"], torch.tensor(0.8).double()).mean(0))
    torch.testing.assert_close(y.activity, (0.2 * data.x["a"]).var(0))


def test_labels_and_plain_functions() -> None:
    logits = torch.tensor([0.3, -0.5, 1.0]).double()

    def model(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(3).double()))
            pyro.sample("x", dist.Normal(c.double(), 1.0), obs=batch.x["x"])

    def q(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("c", dist.Categorical(logits=logits))

    found = report(model, q, Batch({"x": torch.randn(30).double()}), 5, seed=0)
    c, p = found.everything.latents["c"], logits.softmax(-1)
    assert c.total == pytest.approx((p * (3 * p).log()).sum().item())
    assert not c.active.any() and c.activity.isnan().all() and found.gradients is None
    assert "no latent has a gradient" in repr(found) and "-/1" in repr(found)
    assert json.loads(json.dumps(found.summary(), allow_nan=False))["given"]["x"]["latents"]["c"]["activity"] == [None]


@pytest.mark.parametrize("kind", ["poe", "moe"])
def test_rows_and_values_that_are_missing_count_for_nothing(kind: str) -> None:
    pair = LG.model(), guide(kind, LG)
    some = TEST[TEST.present()]
    found = report(*pair, some, 20, seed=0).summary()
    empty = Batch({m: torch.cat([v, v[:9]]) for m, v in some.x.items()}, padded(some.mask))
    changed = Batch._view({m: torch.where(some.mask[m].unsqueeze(-1), v, 1e6) for m, v in some.x.items()}, some.mask)
    for other in (empty, changed):
        again = report(*pair, other, 20, seed=0).summary()
        assert again | {"n": 0} == found | {"n": 0}
    assert report(*pair, empty, 2, seed=0).n == len(some) + 9


def padded(mask: dict[str, Tensor]) -> dict[str, Tensor]:
    return {m: torch.cat([v, torch.zeros(9, dtype=torch.bool)]) for m, v in mask.items()}


@pytest.mark.parametrize("chunk", [6, 50, 1000])
def test_chunks_change_the_draws_only(chunk: int) -> None:
    pair, data = (LG.model(), guide("poe", LG)), TEST[:12]
    whole, cut = (report(*pair, data, 40, chunk=c, seed=0) for c in (None, chunk))
    for group, view in whole.views.items():
        other = cut.views[group]
        torch.testing.assert_close(view.latents["z"].kl, other.latents["z"].kl)
        torch.testing.assert_close(view.latents["z"].activity, other.latents["z"].activity)
        assert view.elbo == pytest.approx(other.elbo, abs=0.5)
    assert whole.experts["z"].mean() == pytest.approx(cut.experts["z"].mean())
    assert whole.gradients.norm == pytest.approx(cut.gradients.norm, rel=0.15)


def test_the_table_and_the_json_hold_the_same_numbers() -> None:
    found = report(LG.model(), guide("poe", LG), TEST, 10, subsets=[("a", "b"), "c"], seed=0)
    assert list(found.views) == [("a", "b", "c"), ("a", "b"), ("c",)]
    made, text = json.loads(json.dumps(found.summary(), allow_nan=False)), repr(found)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    for m, t in made["given"]["a, b, c"]["terms"].items():
        for number in (f"{t['nats']:.3f}", f"{t['share']:.1%}", f"{t['per_element']:.4f}", f"{t['rows']}"):
            assert number in lines[m]
        assert f"{made['gradients']['norm'][m]:.3f}" in lines[m]
        assert f"{m} {made['experts']['z']['mean'][m]:.1%}" in text
    for group, v in made["given"].items():
        (line,) = (x for x in text.splitlines() if re.split("  +", x)[:2] == ["z", group])
        assert f"{v['latents']['z']['kl']:.3f}" in line and "2/2" in line
    assert f"{made['gradients']['cosine']['a, b']:+.2f}" in text
    assert f"N={int(TEST.present().sum())} of {len(TEST)}, K=10" in text


def test_a_seed_gives_the_same_report_and_leaves_everything_alone() -> None:
    model, q = LG.model().train(), guide("moe", LG).train()
    state = torch.get_rng_state()
    first, second = (report(model, q, TEST[:9], 4, seed=3).summary() for _ in range(2))
    assert first == second and torch.equal(state, torch.get_rng_state())
    assert model.training and q.training and all(p.grad is None for p in [*model.parameters(), *q.parameters()])


def outside(batch: Batch) -> None:
    """A latent that all rows share."""
    z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("x", dist.Normal(z, 1.0), obs=batch.x["x"])


def outside_guide(batch: Batch) -> None:
    pyro.sample("z", dist.Normal(torch.zeros(()).double(), 2.0))


class Extra(nn.Module):
    """A site that the model lacks."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", Mixture(torch.zeros(2, 2).double(), torch.ones(2, 2).double(), torch.ones(2).bool()))
            pyro.sample("index", dist.Categorical(logits=torch.zeros(2)))


def test_what_cannot_be_reported_is_refused() -> None:
    model, q = LG.model(), guide("poe", LG)
    with pytest.raises(ValueError, match="at least 2 draws"):
        report(model, q, TEST, 1)
    with pytest.raises(ValueError, match=r"subsets= names \['d'\], but the modalities are \['a', 'b', 'c'\]"):
        report(model, q, TEST, subsets=[("a", "d")])
    with pytest.raises(ValueError, match=r"levels= names \['d'\]"):
        report(model, q, TEST, levels={"d": 2})
    with pytest.raises(ValueError, match=r"no row has any of \['b', 'c'\]"):
        report(model, q, TEST.only("a"), subsets=[("b", "c")])
    with pytest.raises(ValueError, match="no row of the batch has any modality"):
        report(model, q, TEST[~TEST.present()])
    with pytest.raises(ValueError, match="one view of the data"):
        report(model, q, TEST.subsets([("a",), ("b",)]))
    with pytest.raises(ValueError, match="guide site 'index' is not in the model"):
        report(model, Extra(), TEST)
    with pytest.raises(ValueError, match=r"site 'z' stands in the plate 'subset'.*instead of in_subsets"):
        report(in_subsets(model, [("a",), ("b",)]), in_subsets(q, [("a",), ("b",)]), TEST)
    with pytest.raises(ValueError, match="site 'z' is outside the plate 'data'"):
        report(outside, outside_guide, Batch({"x": torch.zeros(3).double()}))

    class NoDensity(nn.Module):
        no_likelihood = "its decoder is a GAN"

    with pytest.raises(NoLikelihood, match="GAN"):
        report(NoDensity(), q, TEST)
