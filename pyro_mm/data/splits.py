"""A data set as the library wants it: modalities, and rows for training, validation and testing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_mm.batch import Batch
from pyro_mm.data.binarise import Binarised
from pyro_mm.data.seeds import drawn_by
from pyro_mm.modality import Modality, names_of

__all__ = ["Data", "Splits", "stratified"]

Data: TypeAlias = Batch | Dataset[Batch]
BLOCK = 8192  # rows


@dataclass(frozen=True, eq=False)
class Splits:
    """Three disjoint sets of rows of the same modalities.

    Attributes:
        name: what run records call it.
        modalities: shapes, likelihoods and default networks.
        train: a Batch, or a map-style Dataset of Batches whose `__getitems__` gives a Batch (one that re-draws its
            pixels, for example); `fit` takes either.
        validation, test: fixed rows.
        label: the modality that holds class labels, or None.
        note: where the data come from and what was done to them.

    Raises:
        ValueError: naming split and modality, when one is empty, lacks a modality, has another shape, or holds a
            present value outside its likelihood's support.
    """

    name: str
    modalities: tuple[Modality, ...]
    train: Data
    validation: Batch
    test: Batch
    label: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        names = names_of(self.modalities)
        if self.label is not None and self.label not in names:
            raise ValueError(f"data set '{self.name}': label '{self.label}' is none of its modalities {list(names)}")
        train = self.train if isinstance(self.train, Batch) else _fetched(self.train, range(min(2, _size(self.train))))
        for split, batch in (("train", train), ("validation", self.validation), ("test", self.test)):
            _check(f"{self.name}/{split}", batch, self.modalities)
        if isinstance(self.train, Binarised):  # of which only two rows were fetched; the rest holds still
            still = [m for m in self.modalities if m.name not in self.train.pixels]
            _check_values(f"{self.name}/train", self.train.batch, still)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities' names, in order."""
        return names_of(self.modalities)

    def some(self, count: int, seed: int = 0) -> Batch:
        """So many training rows at random, or all of them where there are fewer."""
        chosen = torch.randperm(_size(self.train), generator=torch.Generator().manual_seed(seed))[:count]
        return self.train[chosen] if isinstance(self.train, Batch) else _fetched(self.train, chosen.tolist(), seed)

    def train_batch(self, seed: int = 0) -> Batch:
        """The training rows as one fixed Batch; a Dataset that draws at random is fetched once, by `seed`.

        The global generator is left as it was.
        """
        if isinstance(self.train, Batch):
            return self.train
        return _fetched(self.train, range(_size(self.train)), seed)

    def only(self, *names: str) -> Splits:
        """The same rows with these modalities alone; the others are gone, not hidden.

        Raises:
            ValueError: a name is unknown.
            TypeError: `train` is a Dataset without a method `only`.
        """
        if unknown := set(names) - set(self.names):
            raise ValueError(f"data set '{self.name}' has no {sorted(unknown)}; it has {list(self.names)}")
        return replace(
            self,
            modalities=tuple(m for m in self.modalities if m.name in names),
            train=_kept(self.train, names),
            validation=_kept_batch(self.validation, names),
            test=_kept_batch(self.test, names),
            label=self.label if self.label in names else None,
        )

    def fingerprint(self) -> str:
        """12 hexadecimal digits of shapes, types, masks and present values: equal exactly when the data are."""
        digest = hashlib.sha256()
        for split, data in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            for number, batch in enumerate(_blocks(data)):
                for m in self.names:
                    mask = batch.mask[m]
                    x = batch.x[m][mask]  # what is stored where data are missing is no data
                    where = f"{split} {m}" if not number else f"{split} {m} from row {number * BLOCK}"
                    digest.update(f"{where} {tuple(x.shape)} {x.dtype}".encode())
                    digest.update(_bytes(mask))
                    digest.update(_bytes(x))
        return digest.hexdigest()[:12]

    def describe(self) -> str:
        """A table: rows per split, and per modality its shape, likelihood and share of rows present."""
        parts: dict[str, Data] = {"train": self.train, "validation": self.validation, "test": self.test}
        rows = [["modality", "shape", "likelihood", *(f"{s} ({_size(b)})" for s, b in parts.items())]]
        present = {s: _present(b, self.names) for s, b in parts.items()}
        for m in self.modalities:
            shares = [f"{share[m.name]:.1%}" for share in present.values()]
            rows.append([m.name, str(m.shape), repr(m.likelihood), *shares])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        head = f"{self.name}: {self.note}" if self.note else self.name
        return "\n".join([head, *table, f"label: {self.label or 'none'}; fingerprint {self.fingerprint()}"])


def stratified(labels: Tensor, shares: Sequence[float], seed: int = 0) -> list[Tensor]:
    """Rows `0..N-1` divided into disjoint parts of these shares within every class, each part in row order.

    Rows are ordered within a class by a hash of seed and row number, so that the same seed gives the same parts with
    every version of every library.

    Args:
        labels: `(N,)` integers.
        shares: positive, summing to 1.

    Raises:
        ValueError: the shares do not sum to 1, or one is not positive.
    """
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"shares must be positive and sum to 1, got {list(shares)}")
    parts: list[list[int]] = [[] for _ in shares]
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    for c in labels.unique().tolist():
        rows = (labels == c).nonzero().flatten().tolist()
        rows.sort(key=lambda row: hashlib.sha256(f"{seed}/{row}".encode()).digest())
        cuts = [0, *(ends * len(rows)).round().long().tolist()]
        for part, start, end in zip(parts, cuts, cuts[1:], strict=False):
            part.extend(rows[start:end])
    return [torch.tensor(sorted(part), dtype=torch.long) for part in parts]


def _check(where: str, batch: Batch, modalities: Sequence[Modality]) -> None:
    if not len(batch):
        raise ValueError(f"{where} has no rows")
    if set(batch.names) != set(names_of(modalities)):
        raise ValueError(f"{where} holds {list(batch.names)}, the modalities are {list(names_of(modalities))}")
    _check_values(where, batch, modalities)


def _check_values(where: str, batch: Batch, modalities: Sequence[Modality]) -> None:
    for m in modalities:
        x, mask = batch.x[m.name], batch.mask[m.name]
        if mask.dim() != 1:
            raise ValueError(f"{where}: the mask of '{m.name}' has shape {tuple(mask.shape)}, expected ({len(batch)},)")
        if tuple(x.shape[1:]) != m.shape:
            raise ValueError(f"{where}: '{m.name}' has event shape {tuple(x.shape[1:])}, expected {m.shape}")
        try:
            m.likelihood.check(x[mask], m.name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _size(data: Data) -> int:
    return len(data)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ to its children


def _blocks(data: Data) -> Iterator[Batch]:
    """A Batch whole; a Dataset, which may be larger than memory, in blocks of rows, each drawn by its number."""
    if isinstance(data, Batch):
        yield data
        return
    for number, start in enumerate(range(0, _size(data), BLOCK)):
        yield _fetched(data, range(start, min(start + BLOCK, _size(data))), number)


def _present(data: Data, names: Sequence[str]) -> dict[str, float]:
    """In what share of the rows every modality is there."""
    counts = dict.fromkeys(names, 0)
    for batch in _blocks(data):
        for m in names:
            counts[m] += int(batch.mask[m].sum())
    return {m: count / _size(data) for m, count in counts.items()}


def _fetched(data: Dataset[Batch], rows: Sequence[int], seed: int = 0) -> Batch:
    """Rows of a Dataset, drawn by `seed` and without moving the global generator."""
    with drawn_by(seed):
        fetch = getattr(data, "__getitems__", None)
        return Batch.collate(fetch(list(rows)) if fetch is not None else [data[i] for i in rows])


def _kept_batch(batch: Batch, names: Sequence[str]) -> Batch:
    return Batch({m: v for m, v in batch.x.items() if m in names}, {m: v for m, v in batch.mask.items() if m in names})


def _kept(data: Data, names: Sequence[str]) -> Data:
    if isinstance(data, Batch):
        return _kept_batch(data, names)
    if isinstance(data, Binarised):
        pixels = [m for m in data.pixels if m in names]
        return Binarised(_kept_batch(data.batch, names), pixels, data.levels)
    if hasattr(data, "only"):
        kept: Data = data.only(*names)
        return kept
    raise TypeError(f"only(...) cannot drop modalities of a {type(data).__name__}; build it without them")


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().numpy().tobytes()
