"""Which rows and how many particles go through the programs at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.footprint import bytes_per_particle

__all__ = ["MEMORY", "Plan"]

ELEMENTS = 1 << 21  # of the widest observation, held at once: 8 MB in float32
LEAST, MOST, PARTICLES = 512, 1 << 14, 256
ACCELERATED = 16  # times as much on an accelerator, which has no cache to keep to and waits for Python between passes
MEMORY = 512 << 20  # bytes in one pass


@dataclass(frozen=True)
class Plan:
    """Blocks of `rows` data, `particles` draws at a time."""

    rows: int
    particles: int

    @property
    def units(self) -> int:
        """Rows x particles in one pass."""
        return self.rows * self.particles

    def regrouped(self, rows: int) -> Plan:
        """As large passes over a group of so many rows."""
        return Plan(rows, max(1, self.units // rows))

    @staticmethod
    def for_batch(
        batch: Batch,
        k: int,
        chunk: int | None = None,
        memory: int = MEMORY,
        probe: Callable[[int], object] | None = None,
    ) -> Plan:
        """How to go through K particles of every row.

        Args:
            chunk: rows x particles per pass; by default from the size of the widest observation (on a CPU larger
                passes are slower) and from the memory budget.
            memory: bytes that a pass may hold.
            probe: runs a pass of so many particles over one row, to see what it holds.

        Raises:
            ValueError: no rows, or a number that is not at least 1.
        """
        for name, number in (("k", k), ("chunk", 1 if chunk is None else chunk), ("memory", memory)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not len(batch):
            raise ValueError("the batch has no rows")
        if chunk is None:
            widest = max((prod(v.shape[1:]) for v in batch.x.values()), default=1)
            times = 1 if batch.device.type == "cpu" else ACCELERATED
            chunk = times * min(max(ELEMENTS // max(widest, 1), LEAST), MOST)
            if probe is not None:
                chunk = max(1, min(chunk, int(memory / bytes_per_particle(probe))))
        rows = max(1, min(len(batch), chunk // min(k, PARTICLES)))
        return Plan(rows, max(1, min(k, chunk // rows)))

    def blocks(self, batch: Batch) -> Iterator[Batch]:
        """The batch in blocks of rows."""
        return batch.blocks(self.rows)

    def slices(self, which: Tensor) -> Iterator[Tensor]:
        """The particles in chunks."""
        yield from which.split(self.particles)
