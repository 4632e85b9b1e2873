"""Groups of modalities: sizes of drawn ones, and complements.  Draws themselves are in test_handlers.py."""

from __future__ import annotations

import pytest
import torch

from pyro_mm.handlers import in_subsets
from pyro_mm.objectives import nll
from pyro_mm.subsets import Complements, RandomSubsets, Subsets
from pyro_mm.weights import replay
from tests.helpers.oracle import LG, ExactGuide


def test_drawn_subsets_have_the_sizes_that_are_asked_for():
    torch.manual_seed(0)
    drawn = RandomSubsets("abc", 1, sizes=(0, 2))
    seen = set()
    for _ in range(200):
        drawn.redraw()
        seen.add(drawn.groups[0])
    assert seen == {(), ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c")}
    with pytest.raises(ValueError, match=r"sizes \(2, 4\) of subsets of 3 modalities"):
        RandomSubsets("abc", 1, sizes=(2, 4))


def test_complements_follow_the_subsets_that_they_complete():
    torch.manual_seed(0)
    drawn = RandomSubsets("abcd", 2, always=["abcd"])
    rest = Complements(drawn, "abcd")
    assert len(rest) == 3
    for _ in range(20):
        drawn.redraw()
        assert rest.groups[0] == ()
        for inside, outside in zip(drawn.groups, rest.groups, strict=True):
            assert set(inside) | set(outside) == set("abcd") and not set(inside) & set(outside)
        for m, kept in drawn.choice("abcd").items():
            assert torch.equal(rest.choice("abcd")[m], ~kept)


def test_the_model_scores_what_the_subsets_leave_out():
    lg = LG()
    batch, groups = lg.data(6, missing=True), Subsets([("a",), ("b", "c")])
    program = in_subsets(lg.model(), Complements(groups, lg.dims))
    z = torch.randn(2, 6, 2, dtype=torch.float64)
    sites = replay(program, batch, {"z": z})
    for i, outside in enumerate([("b", "c"), ("a",)]):
        plain = replay(lg.model(), batch.only(*outside), {"z": z[i]})
        for m in lg.dims:
            torch.testing.assert_close(sites[m].log_prob()[i], plain[m].log_prob())
    # Nothing reads from a plain guide what the pair under the plate would not.
    assert torch.isfinite(nll(program, in_subsets(ExactGuide(lg), groups))(batch))
