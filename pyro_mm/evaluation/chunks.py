"""Which rows and how many particles go through the programs at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

from pyro_mm.batch import Batch

__all__ = ["Plan"]

ELEMENTS = 1 << 22  # of the widest observation, held at once: 16 MB in float32
LEAST, MOST, PARTICLES = 512, 1 << 14, 256


@dataclass(frozen=True)
class Plan:
    """Blocks of `rows` data, `particles` draws at a time."""

    rows: int
    particles: int

    @staticmethod
    def for_batch(batch: Batch, k: int, chunk: int | None = None) -> Plan:
        """`chunk` = (rows x particles) per pass; by default from the size of the widest observation."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not len(batch):
            raise ValueError("the batch has no rows")
        if chunk is None:
            widest = max((prod(v.shape[1:]) for v in batch.x.values()), default=1)
            chunk = min(max(ELEMENTS // max(widest, 1), LEAST), MOST)
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        rows = max(1, min(len(batch), chunk // min(k, PARTICLES)))
        return Plan(rows, max(1, min(k, chunk // rows)))

    def blocks(self, batch: Batch) -> Iterator[Batch]:
        """The batch in blocks of rows."""
        for start in range(0, len(batch), self.rows):
            yield batch[start : start + self.rows]

    def slices(self, which: Tensor) -> Iterator[Tensor]:
        """The particles in chunks."""
        yield from which.split(self.particles)
