"""Groups of modalities: the sizes of drawn ones.  Their law is in test_handlers.py."""

from __future__ import annotations

import pytest
import torch

from pyro_mm.subsets import RandomSubsets


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
