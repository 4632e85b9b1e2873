"""Rows larger than memory: arrays on disk as a data set of Batches, and the writer of such folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pyro_mm.batch import Batch
from pyro_mm.data.array_files import Column, columns
from pyro_mm.ingest import ingest
from pyro_mm.modality import Modality, names_of
from pyro_mm.ranks import Ranks

__all__ = ["MASK", "BlockSampler", "OnDisk"]

MASK = ".mask"
WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}  # which torch lacks, or computes little with


class OnDisk(Dataset[Batch]):
    """Rows of arrays that stay on disk: for `fit`, for DataLoaders with workers, and for `evaluation.sharded`.

    At `path` lies one array `(N, *event)` per modality, `<modality>.npy`, and where some rows lack it also
    `<modality>.mask.npy`, bool `(N,)`; a row that is all NaN lacks it too.  A folder of such files (`write_rows`), an
    `.npz` file written by `numpy.savez`, or a Zarr group (extra `zarr`).

    Args:
        modalities: what to check against: shapes at once, values of the rows that are read; modalities that the files
            lack are missing in every row.  Without them every array is a modality.
        block: shuffle blocks of so many neighbouring rows, and rows within `buffer` blocks at a time, instead of single
            rows: what spinning discs, networks and Zarr chunks (of that many rows) want.
        dtype: of floating-point modalities; torch's default.

    Raises:
        FileNotFoundError, BadFile, ModuleNotFoundError: as `array_files.columns`.
        ValueError: naming the modality, for another number of rows, another shape, or a mask that is none; and when
            rows are read, for values outside a likelihood's support or rows that are NaN in part.
    """

    fixed = True
    """A row is the same whenever it is read: runs that are resumed are checked against some."""

    def __init__(
        self,
        path: str | Path,
        modalities: Sequence[Modality] | None = None,
        *,
        block: int | None = None,
        buffer: int = 16,
        dtype: torch.dtype | None = None,
    ) -> None:
        if (block is not None and block < 1) or buffer < 1:
            raise ValueError(f"block and buffer must be at least 1, got {block} and {buffer}")
        self.path, self.modalities, self.dtype = Path(path), modalities, dtype
        self.block, self.buffer = block, buffer
        found = columns(self.path)
        names = [n for n in found if not n.endswith(MASK)]
        self.names = names if modalities is None else list(names_of(modalities))
        self.columns = {m: found[m] for m in self.names if m in found}
        self.masks = {m: found[m + MASK] for m in self.columns if m + MASK in found}
        self.n = _rows_of(self.path, self.columns, self.masks)
        if self.n:
            self.__getitems__([0])  # shapes and types

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> Batch:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """A minibatch; every array is read in the order of the file."""
        which, back = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if len(which) and not (which[0] >= 0 and which[-1] < self.n):
            raise IndexError(f"rows {which[0]} to {which[-1]} of a data set of {self.n}")
        x = {m: _tensor(c.rows(which)) for m, c in self.columns.items()}
        masks = {m: torch.from_numpy(c.rows(which)) for m, c in self.masks.items()}
        try:
            batch = ingest(x, self.modalities, self.dtype or torch.get_default_dtype(), masks)
        except ValueError as error:
            raise ValueError(f"{self.path}, rows {which[:3].tolist()}... : {error}") from error
        in_order = len(back) == len(which) and bool((back == np.arange(len(which))).all())
        return batch if in_order else batch[torch.from_numpy(back)]

    def permutation(self, generator: torch.Generator | None = None) -> Tensor:
        """All rows in random order, `(N,)`: 8 bytes a row; by blocks if asked for."""
        if self.block is None:
            return torch.randperm(self.n, generator=generator)
        return by_blocks(self.n, self.block, self.buffer, generator)

    def only(self, *names: str) -> OnDisk:
        """The same rows with these modalities alone."""
        if unknown := set(names) - set(self.names):
            raise ValueError(f"{self.path} has no {sorted(unknown)}; it has {self.names}")
        kept = OnDisk.__new__(OnDisk)
        vars(kept).update(vars(self))
        kept.names = [m for m in self.names if m in names]
        kept.columns = {m: c for m, c in self.columns.items() if m in names}
        kept.masks = {m: c for m, c in self.masks.items() if m in names}
        if self.modalities is not None:
            kept.modalities = [m for m in self.modalities if m.name in names]
        return kept

    def __repr__(self) -> str:
        parts = [f"{m}: {c.shape[1:]} {c.dtype}{', some missing' * (m in self.masks)}" for m, c in self.columns.items()]
        return f"OnDisk({self.n} rows at {self.path}; {'; '.join(parts)})"


class BlockSampler(Sampler[int]):
    """The rows of a data set by its own `permutation`, for `DataLoader(data, sampler=BlockSampler(data), ...)`.

    `fit` keeps the place of `generator` in its checkpoints.  Of several processes each has every n-th row of the order.
    """

    shares_rows = True
    """Nobody else need share them out."""

    def __init__(self, data: OnDisk, seed: int = 0) -> None:
        self.data, self.generator = data, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        ranks = Ranks.now()
        return len(range(ranks.rank, len(self.data), ranks.world))

    def __iter__(self) -> Iterator[int]:
        ranks = Ranks.now()
        for part in self.data.permutation(self.generator)[ranks.rank :: ranks.world].split(1 << 16):
            yield from part.tolist()


def by_blocks(n: int, block: int, buffer: int, generator: torch.Generator | None = None) -> Tensor:
    """0..n-1, each once: blocks in random order, rows shuffled within every `buffer` of them, `(n,)`."""
    order = torch.randperm(-(-n // block), generator=generator)
    parts = []
    for group in order.split(buffer):
        rows = (group.unsqueeze(-1) * block + torch.arange(block)).flatten()
        rows = rows[rows < n]
        parts.append(rows[torch.randperm(len(rows), generator=generator)])
    return torch.cat(parts)


def _rows_of(path: Path, values: dict[str, Column], masks: dict[str, Column]) -> int:
    if not values:
        raise ValueError(f"{path} holds none of the modalities")
    n = {m: c.shape[0] for m, c in values.items()}
    if len(set(n.values())) > 1:
        raise ValueError(f"{path}: modalities have different numbers of rows: {n}")
    rows = next(iter(n.values()))
    for m, c in masks.items():
        if c.dtype != np.bool_ or c.shape != (rows,):
            raise ValueError(f"{path}: the mask of '{m}' must be bool with shape ({rows},); it is {c.dtype} {c.shape}")
    return rows


def _tensor(array: np.ndarray) -> Tensor:
    wanted: Any = WIDER.get(array.dtype.name, array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(array, dtype=wanted))
