"""MVAE's sums of bounds: which subsets are in them."""

from __future__ import annotations

from functools import partial

import torch

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.subsets import Subsets
from tests.helpers.hierarchies import modalities


def test_mvae_without_random_subsets_is_mvae_of_two_modalities() -> None:
    """{a, b}, {a}, {b} are all subsets of two; of three, only the pairs are left out."""
    losses = []
    for build in (variants.mvae, partial(variants.mvae_sampled, k=0)):
        torch.manual_seed(1)
        recipe = build(modalities({"a": 4, "b": 3}), 2)
        batch = Batch(
            {m: torch.randn(20, d, generator=torch.Generator().manual_seed(d)) for m, d in (("a", 4), ("b", 3))}
        )
        torch.manual_seed(2)
        losses.append(recipe.objective(batch))
    torch.testing.assert_close(*losses)
    three = variants.mvae_sampled(modalities({"a": 4, "b": 3, "c": 3}), 2, k=0).objective
    (subsets,) = {tuple(sorted(map(tuple, m.groups))) for m in three.modules() if isinstance(m, Subsets)}
    assert subsets == (("a",), ("a", "b", "c"), ("b",), ("c",))
