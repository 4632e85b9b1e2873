"""Ranks for private latents, hierarchies, nested plates, and programs of one's own."""

from __future__ import annotations

from math import log

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation.calibration import sbc, symmetric_divergence
from tests.helpers.calibration import ALL, ExactPrivate, rows
from tests.helpers.oracle import LG as Plain
from tests.helpers.pairs import GuideOfNested, Nested
from tests.helpers.programs import BottomUp, Chain, Layers, Private, TopOnly


def test_private_latents_rank_where_their_modality_is_present() -> None:
    lg = Plain()
    model, batch = Private(lg), lg.data(800, missing=True)
    c = sbc(model, ExactPrivate(model), batch, 60, seed=0)
    assert c.ok()
    for s, of in c.ranks.items():
        private = {q: len(u) for q, u in of.items() if q.startswith("w_")}
        assert private == {f"w_{m}[{i}]": int(batch.mask[m].sum()) for m in s for i in range(2)}
    wrong = sbc(model, ExactPrivate(model, 0.5), batch, 60, subsets=["a", ("b", "c"), ALL], seed=0)
    for s, bad in wrong.flagged().items():
        assert "log p(a | z)" in bad if "a" in s else not bad
        assert not {q for q in bad if q[:3] in ("z[0", "z[1", "w_b", "w_c")}
    assert "narrow 1" in wrong.flagged()[("a",)]  # a direction over z and w_a, whose own spread is mostly that of z


def test_a_hierarchy_fails_at_the_layer_that_is_wrong() -> None:
    """x, z, u jointly Gaussian: z | x of mean kx, u | z of mean z / 1.64."""
    k = 1.3 * 1.64 / (1.3**2 * 1.64 + 0.25)
    exact, wrong = BottomUp(), BottomUp()
    with torch.no_grad():
        exact.a.copy_(torch.tensor([k, 0.5 * log(1.64 * (1 - 1.3 * k)), 1 / 1.64, 0.5 * log(0.64 / 1.64)]))
        wrong.a.copy_(exact.a - torch.tensor([0.0, 0.0, 0.0, 0.5]))
    assert sbc(Layers(), exact, rows(1500), 60, seed=0).ok()
    p = sbc(Layers(), wrong, rows(1500), 60, seed=0).p[("x",)]
    assert p["u"] < 1e-10 and p["narrow 1"] < 1e-10 and p["z"] > 1e-3


def test_coordinates_of_nested_plates_are_named_one_by_one() -> None:
    """y_1..y_3 are the prior's where a is hidden, and the guide knows: they pass there."""
    model, q = Nested().double(), GuideOfNested().double()
    batch = Batch({"a": torch.zeros(300, 3).double(), "b": torch.zeros(300, 2).double()})
    p = sbc(model, q, batch, 40, seed=0, chunk=1000).p
    names = ["z[0]", "z[1]", "y[0]", "y[1]", "y[2]"]
    assert sorted(names) == sorted(q for q in p[("b",)] if q[:2] in ("z[", "y["))
    assert min(p[("b",)][f"y[{i}]"] for i in range(3)) > 1e-3
    assert min(p[("a",)][f"y[{i}]"] for i in range(3)) < 1e-3


def test_latents_that_the_guide_lacks_keep_the_drawn_value() -> None:
    """z ranks uniformly; u comes from p(u | z), which the likelihood sees, and weights repair."""
    c = sbc(Chain(), TopOnly(), rows(1000), 100, seed=0)
    assert c.prior_sites == ("u",)
    assert c.p[("x",)]["z"] > 1e-3 and c.p[("x",)]["log p(x | z)"] < 1e-50
    assert sbc(Chain(), TopOnly(), rows(1000), 2000, weighted=True, seed=0).ok()


class Given(nn.Module):
    """z ~ N(0, 1), x ~ N(z + y, .5^2), y given."""

    names, conditioned_on = ("x",), ("y",)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z + batch.x["y"], 0.5), obs=batch.x["x"])


def given_both(batch: Batch) -> None:
    """p(z | x, y), where both are shown."""
    shift = torch.where(batch.mask["y"], batch.x["y"], 50.0)
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Normal((batch.x["x"] - shift) / 1.25, 0.2**0.5))


def test_what_a_model_is_given_is_always_shown() -> None:
    batch = Batch({"x": torch.zeros(500).double(), "y": torch.randn(500).double()})
    c = sbc(Given(), given_both, batch, 50, seed=0)
    assert list(c.ranks) == [("x",)] and c.ok()
    ends = symmetric_divergence(Given(), given_both, batch, seed=0)
    assert ends.gap("x")[0] == pytest.approx(0.0, abs=1e-9)
