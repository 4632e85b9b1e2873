"""Where minibatches come from: rows in an order of ours, or a DataLoader of the user's.

Both can be opened in the middle of an epoch, which is what makes a run resumable at any step.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from math import ceil
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyro_mm.batch import Batch
from pyro_mm.ranks import Ranks

__all__ = ["Data", "Loader", "Part", "Rows", "Source", "fingerprint", "shared", "source"]

Data = Batch | Dataset[Any] | DataLoader[Any]


class Rows:
    """A `Batch`, or a map-style data set that gives them, in minibatches of `size`.

    With a generator the order is drawn anew for every pass; a data set with `permutation(generator)` draws it itself.
    `share = (rank, world)`: all ranks draw the same order and take every world-th row: minibatch i of all ranks
    together is minibatch i of one process with `size * world` rows.  A rank that has none of the last one repeats
    rows, which `counts` does not count, so that all make the same number of steps.
    """

    def __init__(
        self, data: Any, size: int, generator: torch.Generator | None = None, share: tuple[int, int] = (0, 1)
    ) -> None:
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}")
        self.data, self.size, self.share = data, size, share
        self.generators = [generator] if generator is not None else []

    @property
    def rows(self) -> int | None:
        """Rows in one pass, over all ranks."""
        return len(self.data)

    @property
    def length(self) -> int | None:
        """Minibatches in one pass."""
        return ceil(ceil(len(self.data) / self.share[1]) / self.size)

    def open(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """One pass without its first `skip` minibatches, which are not even read."""
        order, (rank, world), size = self._order(), self.share, self.size
        own = order[rank::world]

        def minibatch(i: int) -> Batch:
            rows = own[i * size : (i + 1) * size]
            return self.take(rows if len(rows) else order[:size])

        return map(minibatch, range(skip, ceil(ceil(len(order) / world) / size)))

    def counts(self, number: int) -> tuple[int, int]:
        """Rows of minibatch `number` of a pass: this rank's, and those of all ranks together."""
        n, (rank, world) = len(self.data), self.share
        done = number * self.size
        own = min(max(len(range(rank, n, world)) - done, 0), self.size)
        return own, min(max(n - done * world, 0), self.size * world)

    def _order(self) -> Tensor:
        n = len(self.data)
        if not self.generators:
            return torch.arange(n)
        if hasattr(self.data, "permutation"):
            drawn: Tensor = self.data.permutation(self.generators[0])
            return drawn
        return torch.randperm(n, generator=self.generators[0])

    def take(self, rows: Tensor) -> Batch:
        """These rows of the data."""
        if isinstance(self.data, Batch):
            return self.data[rows]
        if hasattr(self.data, "__getitems__"):
            return as_batch(self.data.__getitems__(rows.tolist()))
        return as_batch([self.data[i] for i in rows.tolist()])


class Loader:
    """A DataLoader of the user's, whose own batch size, order and workers are kept."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.size = loader, loader.batch_size
        sampler = getattr(loader, "batch_sampler", None)
        owners = (loader, getattr(loader, "sampler", None), sampler, getattr(sampler, "sampler", None))
        found = [getattr(o, "generator", None) for o in owners]
        self.generators = list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    @property
    def rows(self) -> int | None:
        """Rows in one pass, if the data set knows."""
        data = self.loader.dataset
        return len(cast(Sized, data)) if hasattr(data, "__len__") else None

    def counts(self, number: int) -> None:
        """Not known before they are read."""

    @property
    def length(self) -> int | None:
        """Minibatches in one pass, if the loader knows."""
        try:
            return len(self.loader)
        except TypeError:
            return None

    def open(self, epoch: int = 0, skip: int = 0) -> Iterator[Batch]:
        """One pass without its first `skip` minibatches, which are read and dropped."""
        if hasattr(self.loader, "_num_iter_calls"):  # Fabric's, which tells a distributed sampler this number
            self.loader._num_iter_calls = epoch
        elif hasattr(self.loader.sampler, "set_epoch"):
            self.loader.sampler.set_epoch(epoch)
        batches = iter(self.loader)
        for _ in range(skip):
            next(batches, None)
        return map(as_batch, batches)


Source = Rows | Loader


def source(data: Data, size: int, generator: torch.Generator | None = None, share: tuple[int, int] = (0, 1)) -> Source:
    """The source for whatever `fit` was given.

    Raises:
        TypeError: data that are neither a Batch, nor a map-style data set, nor a DataLoader.
        ValueError: data without rows.
    """
    if isinstance(data, DataLoader):
        found: Source = Loader(data)
    elif isinstance(data, Mapping):
        raise TypeError("data is a dict: make a Batch of it, `Batch.of(data)`")
    elif isinstance(data, IterableDataset) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(
            f"data must be a Batch, a map-style Dataset or a DataLoader, got {type(data).__name__}"
            + ("; put an iterable data set in a DataLoader" if isinstance(data, IterableDataset) else "")
        )
    else:
        found = Rows(data, size, generator, share)
    if found.rows == 0 or found.length == 0:
        raise ValueError(f"the data are empty: {found.rows} rows make {found.length} minibatches")
    return found


class Part(NamedTuple):
    """What one rank has of minibatch `number` of a pass: with `share = (rank, world)` every world-th row from the
    rank-th on, with `(0, 1)`, whichever rank it is, all of them.
    """

    batch: Batch
    rows: int
    """Of `batch` that count."""
    total: int
    """Rows of the whole minibatch."""
    number: int
    share: tuple[int, int]


def shared(data: Source, ranks: Ranks) -> Iterator[Part]:
    """One rank's part of a pass in which no rank waits for another."""
    if isinstance(data, Rows):
        for i, batch in enumerate(data.open()):
            own, total = data.counts(i)
            if own:
                yield Part(batch, own, total, i, (ranks.rank, ranks.world))
    else:  # all ranks read everything
        for i, batch in islice(enumerate(data.open()), ranks.rank, None, ranks.world):
            yield Part(batch, len(batch), len(batch), i, (0, 1))


def as_batch(items: Any) -> Batch:
    """A Batch from what a data set or loader gave."""
    if isinstance(items, list | tuple) and items and all(isinstance(i, Batch) for i in items):
        return Batch.collate(items)
    if not isinstance(items, Batch):
        raise TypeError(
            f"the data gave {type(items).__name__} where a Batch is needed: let the data set's `__getitems__` return a "
            "Batch, or give the DataLoader `collate_fn=Batch.collate`"
        )
    return items


def fingerprint(data: Data) -> dict[str, Any]:
    """What tells these data from others: rows; of a Batch, or a data set that says it is `fixed`, also event shapes and
    a checksum of 32 rows.
    """
    inner: Any = data.dataset if isinstance(data, DataLoader) else data
    n = len(inner) if hasattr(inner, "__len__") else None
    if not n or not (isinstance(inner, Batch) or getattr(inner, "fixed", False)):
        return {"rows": n}
    some = inner.__getitems__(torch.linspace(0, n - 1, min(32, n), dtype=torch.float64).long().tolist()).to("cpu")
    parts = [t.contiguous().view(torch.uint8) for v in (some.x, some.mask) for t in v.values() if t.numel()]
    check = 0
    for part in parts:
        check = zlib.crc32(part.numpy().tobytes(), check)
    return {"rows": n, "shapes": {m: list(v.shape[1:]) for m, v in some.x.items()}, "checksum": check}
