"""How many rows and particles go through the programs at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import ACCELERATED, ELEMENTS, LEAST, MOST, Plan


def wide(n: int, width: int = 1) -> Batch:
    return Batch({"x": torch.arange(n * width, dtype=torch.float32).reshape(n, width)})


@given(st.integers(1, 300), st.integers(1, 5000), st.none() | st.integers(1, 10_000))
def test_every_row_and_every_particle_comes_once_and_in_order(n: int, k: int, chunk: int | None) -> None:
    batch, which = wide(n), torch.arange(k).unsqueeze(-1)
    plan = Plan.for_batch(batch, k, chunk)
    assert torch.equal(torch.cat([b.x["x"] for b in plan.blocks(batch)]), batch.x["x"])
    assert torch.equal(torch.cat(list(plan.slices(which))), which)
    assert plan.rows * plan.particles <= max(chunk or MOST, 1)


@pytest.mark.parametrize(("width", "most"), [(1, MOST), (784, ELEMENTS // 784), (3 * 64 * 64, LEAST)])
def test_wide_data_get_small_chunks(width: int, most: int) -> None:
    plan = Plan.for_batch(Batch({"x": torch.zeros(1, width).expand(600, width)}), 1000)
    assert most // 2 < plan.rows * plan.particles <= most
    assert plan.particles >= 256, "rows in small blocks rather than particles: proposals are built once per block"


def test_accelerators_get_larger_passes_within_the_memory() -> None:
    x, mask = torch.zeros(2000, 784, device="meta"), torch.ones(2000, dtype=torch.bool, device="meta")
    there = Batch._view({"x": x}, {"x": mask}, frozenset())  # a Batch itself looks at values, which these have not
    here = Batch({"x": torch.zeros(2000, 784)})
    large, small = (Plan.for_batch(b, 1000).units for b in (there, here))
    assert 0.9 * ACCELERATED < large / small < 1.1 * ACCELERATED
    assert 990 < Plan.for_batch(there, 1000, memory=4_000_000, probe=lambda k: torch.zeros(k, 1000)).units <= 1000


def test_the_width_is_that_of_the_widest_modality() -> None:
    batch = Batch({"label": torch.zeros(100, dtype=torch.long), "image": torch.zeros(100, 1, 28, 28)})
    assert Plan.for_batch(batch, 1000) == Plan.for_batch(Batch({"image": batch.x["image"]}), 1000)


def test_refuses_what_cannot_be_planned() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Plan.for_batch(wide(3), 0)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        Plan.for_batch(wide(3), 10, 0)
    with pytest.raises(ValueError, match="no rows"):
        Plan.for_batch(wide(3)[:0], 10)
