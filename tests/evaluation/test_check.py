"""`check_pair`: pairs that keep the contract pass, and one mistake gives one failure."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation import PairError, check_pair
from pyro_mm.evaluation.check import CHECKS
from tests.helpers import broken_pairs as broken
from tests.helpers.pairs import SIZES, Guide, GuideOfPrivate, Model, MoE, WithPrivate, data, pair

@pytest.mark.parametrize(("model", "guide"), [(Model, Guide), (WithPrivate, GuideOfPrivate), (Model, MoE)])
def test_good_pairs_pass_every_check(model: type, guide: type) -> None:
    report = check_pair(*pair(model, guide), data())
    assert [c.name for c in report.checks] == [s.name for s in CHECKS]
    assert {c.status for c in report.checks} == {"pass"}


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
        check_pair(*pair(Model, ThreeLatents), data())
    text = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert "site 'z' has event shape (3,) in the guide and (2,) in the model" in text
    assert "fix: give both the same size" in text
    assert caught.value.report["bounds"].measured == "because of 'sites'"


def test_everything_is_left_as_it_was() -> None:
    model, guide = pair(guide=Counting)
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
