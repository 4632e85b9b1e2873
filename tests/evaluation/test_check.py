"""`check_pair`: pairs that keep the contract pass, and one mistake gives one failure."""

from __future__ import annotations

import copy
import re

import pyro
import pytest
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation import PairError, check_pair
from pyro_mm.evaluation.check import CHECKS
from tests.helpers import broken_densities as densities
from tests.helpers import broken_pairs as broken
from tests.helpers.pairs import SIZES, Guide, GuideOfNested, GuideOfPrivate, Model, MoE, Nested, WithPrivate, data, pair


@pytest.mark.parametrize(("model", "guide"), [(Model, Guide), (WithPrivate, GuideOfPrivate), (Model, MoE)])
def test_good_pairs_pass_every_check(model: type, guide: type) -> None:
    report = check_pair(*pair(model, guide), data())
    assert [c.name for c in report.checks] == [s.name for s in CHECKS]
    assert {c.status for c in report.checks} == {"pass"}


def test_constrained_and_nested_latents_pass() -> None:
    """The plate of elements stands where `in_subsets` would put its own."""
    report = check_pair(*pair(Nested, GuideOfNested), data())
    assert [c.name for c in report.checks if c.status != "pass"] == ["subset plate"]
    assert (
        "at dimension -2 in plate stack" in report["subset plate"].measured
        or "collide" in report["subset plate"].measured
    )
    assert (
        "over z, y, a, b" in report["model density"].measured or "over y, z, a, b" in report["model density"].measured
    )


def test_a_pair_of_functions_passes_in_evaluation_mode() -> None:
    """Modules that the functions refer to are found: drop-out is switched off and their parameters are checked."""
    model, guide = pair()
    drop = nn.Dropout(0.5)

    def wet_model(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = drop(model.prior(batch))
            for m in SIZES:
                model.observe(m, model.observation(m, z, batch), batch)

    report = check_pair(wet_model, lambda batch: guide(batch), data())
    assert report.ok and drop.training
    assert "all 9 parameters" in report["gradients"].measured


def test_the_report_says_what_was_measured() -> None:
    report = check_pair(*pair(WithPrivate, GuideOfPrivate), data())
    assert report["sites"].measured == "latents z, w_a, u (from the model); observed a, b; all in plate 'data'"
    assert "would silently not train 9 of 9 parameters (model.nets.a.weight" in report["stock SVI"].measured
    assert f"{len(CHECKS)} passed, 0 failed, 0 skipped" in repr(report)
    assert all(len(line) <= 118 for line in repr(report).split("\n"))


def test_a_failure_raises_with_site_shapes_and_fix() -> None:
    with pytest.raises(PairError) as caught:
        check_pair(*pair(Model, broken.ThreeLatents), data())
    text = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert "site 'z' has event shape (3,) in the guide and (2,) in the model" in text
    assert "fix: give both the same size" in text
    assert caught.value.report["bounds"].measured == "because of 'sites'"


@pytest.mark.parametrize("wrong", [broken.Counting, broken.Remembering])
def test_everything_is_left_as_it_was(wrong: type) -> None:
    model, guide = pair(guide=wrong)
    batch, before = data(), copy.deepcopy((model.state_dict(), guide.state_dict()))
    model.train(), guide.eval()
    state, rows = torch.get_rng_state(), copy.deepcopy(batch.x)
    report = check_pair(model, guide, batch, raise_on_failure=False)
    assert not report.ok
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(batch.x[m], v) for m, v in rows.items())
    for program, old in zip((model, guide), before, strict=True):
        assert all(torch.equal(v, old[n]) for n, v in program.state_dict().items())
    assert model.training and not guide.training


def test_refuses_what_it_cannot_check() -> None:
    with pytest.raises(ValueError, match=r"takes masks \(N,\), not the stacked \(S, N\)"):
        check_pair(*pair(), data().subsets([("a",), ("b",)]))
    with pytest.raises(ValueError, match="no rows"):
        check_pair(*pair(), data()[:0])
    with pytest.raises(ValueError, match="at least 50 draws; got k=10"):
        check_pair(*pair(), data(), k=10)
    with pytest.raises(KeyError, match="no check 'site'; there are"):
        check_pair(*pair(), data())["site"]


def test_a_batch_of_one_row_skips_what_needs_two() -> None:
    report = check_pair(*pair(), data(1))
    assert [(c.name, c.measured) for c in report.checks if c.status != "pass"] == [
        ("row independence", "all rows of the batch are equal")
    ]


def test_stock_svi_is_said_to_train_what_it_registers() -> None:
    class Registered(Model):
        def forward(self, batch: Batch) -> None:
            pyro.module("model", self)
            super().forward(batch)

    class GuideToo(Guide):
        def forward(self, batch: Batch) -> None:
            pyro.module("guide", self)
            super().forward(batch)

    report = check_pair(*pair(Registered, GuideToo), data(), raise_on_failure=False)
    assert report["stock SVI"].measured == "stock pyro.infer.SVI finds every parameter"
    assert [c.name for c in report.failures] == ["global parameters"]


# One mistake, one failure: (check, model, guide, what the measured text says).
MISTAKES = [
    ("sites", Model, broken.IndexSite, r"guide site 'index' is not in the model, whose latents are \['z'\]"),
    ("sites", Model, broken.ThreeLatents, r"event shape \(3,\) in the guide and \(2,\) in the model"),
    ("sites", broken.OutsidePlate, Guide, "model site 'shared' is outside plate 'data'"),
    ("sites", Model, broken.OtherPlate, r"guide site 'z' is outside plate 'data' \(its plates: \['rows'\]\)"),
    ("sites", broken.ObsMask, Guide, "site 'a_unobserved' comes from obs_mask="),
    ("sites", broken.NotObserved, Guide, "modality 'a' is sampled, not observed"),
    ("sites", Model, broken.GuideFactor, "guide site 'penalty' is observed"),
    ("sites", broken.WrongEvent, Guide, r"site 'a' has event shape \(1,\) in the model, the data have \(3,\)"),
    ("sites", WithPrivate, broken.UnmaskedPrivate, "site 'w_a' is masked in one program only in 24 of 24 rows"),
    ("global parameters", Model, broken.GlobalParam, "'global_scale'"),
    ("batch unchanged", Model, broken.Popping, r"the guide changes batch.x: its modalities were \['a', 'b'\]"),
    ("batch unchanged", Model, broken.Centring, r"the guide changes batch.x\['a'\] in 24 rows"),
    ("module state", Model, broken.Counting, r"a run in evaluation mode changes 'Counting.calls'$"),
    ("module state", Model, broken.Remembering, r"a run in evaluation mode changes 'Remembering.calls'$"),
    ("repeatable", Model, broken.Drifting, "two runs with one seed differ in z"),
    ("hidden randomness", Model, broken.Dropping, r"log-weights with \{a, b\} differ by .* from seed to seed"),
    ("particle plate", broken.Transposed, Guide, "three particles at once and one by one differ by"),
    ("particle plate", broken.TwoDimensional, Guide, r"RuntimeError: expected 2 dimensions, got \(3, 1, 24, 2\)"),
    ("subset plate", Model, broken.FirstSubset, "subsets in a plate and one by one differ by"),
    ("modality order", Model, broken.FirstModality, "log-weights before and after reordering differ by"),
    ("row independence", Model, broken.BatchNorm, r"other contents of other rows change the log-weights of rows \[0, "),
    ("row independence", Model, broken.HiddenBatchNorm, "other contents of other rows change the log-weights of rows"),
    ("row order", Model, broken.Positional, "permuting the rows changes the log-weights of rows"),
    ("re-batching", Model, broken.Sized, "batches of 13 instead of 24 change the log-weights of rows"),
    ("masked values", Model, broken.Peeking, "other rows' values under the masks change the log-weights"),
    ("masked values", broken.ScoringAll, Guide, "other rows' values under the masks change the log-weights"),
    ("masked values", Model, broken.Multiplying, "NaN under the masks change the log-weights.* to NaN or infinity"),
    ("masked gradients", Model, broken.StraightThrough, "modality 'a' has a gradient of .* under its mask"),
    ("nothing present", Model, broken.LearntEmpty, "with every mask False the log-weights go up to .* instead of 0"),
    ("scales", broken.TracedFactor, Guide, "moves log-weights by"),
    ("gradients", Model, broken.Unused, "no gradient reaches 'guide.spare.weight' for any view"),
    ("gradients", Model, broken.Detached, "no gradient reaches 'guide.nets.a.weight' for any view"),
    ("support", Model, densities.OneSided, "log q of 'z' is not finite at .*% of prior draws"),
    ("guide density", Model, densities.OneExpertForAll, r"is not 1 for \{a, b\}: "),
    ("guide density", Model, densities.GuideVariance, r"is not 1 for \{a, b\}: "),
    ("guide density", Model, densities.GuideWide, r"is not 1 for \{a, b\}: "),
    ("guide density", Model, densities.GuideUnnormalised, r"is not 1 for \{a, b\}: "),
    ("model density", densities.ModelVariance, Guide, "is not 1 for a: .*; b: "),
    ("bounds", densities.WrongSampler, Guide, "the ends of the sandwich cross at K=1, by"),
    ("generation", densities.Leaking, Guide, "generated 'b' changes by up to .* with the hidden values"),
]


IDS = [f"{model.__name__}-{guide.__name__}" for _, model, guide, _ in MISTAKES]


@pytest.mark.parametrize(("name", "model", "guide", "says"), MISTAKES, ids=IDS)
def test_one_mistake_is_one_failure(name: str, model: type, guide: type, says: str) -> None:
    report = check_pair(*pair(model, guide), data(), raise_on_failure=False)
    assert [c.name for c in report.failures] == [name], report
    (failed,) = report.failures
    assert re.search(says, failed.measured), failed.measured
    assert failed.fix
    skipped = {c.measured for c in report.checks if c.status == "skipped"}
    assert all(reason.startswith(("because of", "the programs do not take masks (S, N)")) for reason in skipped)


def test_every_check_has_a_pair_that_fails_it() -> None:
    """`stock SVI` alone is a statement."""
    assert {m[0] for m in MISTAKES} == {s.name for s in CHECKS} - {"stock SVI"}
