"""Data sets of one modality each, brought together by class: a row of each, drawn anew at every fetch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_mm.batch import Batch, Rows
from pyro_mm.data.binarise import Binarised
from pyro_mm.data.seeds import drawn_by

__all__ = ["Paired"]

Part = Batch | Binarised
Uniform = Callable[[int], Tensor]


class Paired(Dataset[Batch]):
    """Rows made of one row of every part, all of one class.

    Of every class the largest part leads: each of its rows makes one row, so that an epoch sees it once.  The other
    parts' rows are drawn with replacement from the same class, anew at every fetch, from torch's global generator.
    `fixed(seed)` pairs once and for all, and uses every row of a smaller part about equally often.  Parts that draw
    their own pixels (`Binarised`) draw them at every fetch.  Use it as a `train` of `Splits`, or as
    `DataLoader(dataset, collate_fn=Batch.collate)`; pair splits apart from one another, never before dividing them.

    Args:
        parts: data sets by any names, each with its own modalities and with the class labels.
        label: the modality with the class labels, in every part; one of the paired rows.

    Raises:
        ValueError: naming the part, when it lacks labels or has unlabelled rows, shares a modality with another, or
            lacks rows of a class that others have.
    """

    def __init__(self, parts: Mapping[str, Part], label: str = "label") -> None:
        self.parts, self.label = dict(parts), label
        batches = {name: _batch(part) for name, part in self.parts.items()}
        _check(batches, label)
        rows = {name: _by_class(b.x[label]) for name, b in batches.items()}
        _check_classes(rows)
        leads = {c: max(rows, key=lambda name, c=c: len(rows[name][c])) for c in next(iter(rows.values()))}  # type: ignore[misc]
        self._pools = rows
        self._classes = torch.cat([torch.full((len(rows[lead][c]),), c) for c, lead in leads.items()])
        # Of every row its leader's row; -1 where another part leads.
        self._led = {
            name: torch.cat([r[c] if leads[c] == name else torch.full((len(rows[leads[c]][c]),), -1) for c in leads])
            for name, r in rows.items()
        }
        self.names = tuple(dict.fromkeys([m for b in batches.values() for m in b.names if m != label] + [label]))

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, rows: Rows) -> Batch:
        """Fresh pairs of these rows; an int gives a batch of one row."""
        place = torch.arange(len(self))[rows].reshape(-1)
        return self._made({name: self._drawn(name, place) for name in self.parts})

    def __getitems__(self, rows: list[int]) -> Batch:
        """A whole minibatch at once (DataLoader looks for this name)."""
        return self[rows]

    def __repr__(self) -> str:
        return f"Paired({', '.join(f'{n}: {len(p)}' for n, p in self.parts.items())} -> {len(self)} rows)"

    def only(self, *names: str) -> Paired:
        """The same rows with these modalities alone; the pairing needs the labels of all parts, and keeps them."""
        kept = {}
        for name, part in self.parts.items():
            mine = [m for m in _batch(part).names if m in names and m != self.label]
            if mine or name == next(iter(self.parts)):
                kept[name] = _of_part(part, [*mine, self.label])
        out = Paired(kept, self.label)
        out._pools = {name: self._pools[name] for name in kept}
        out._classes, out._led = self._classes, {name: self._led[name] for name in kept}
        out.names = tuple(m for m in self.names if m in names)
        return out

    def fixed(self, seed: int) -> Batch:
        """All rows as one Batch, paired and put in order by `seed` alone; torch's global generators are not moved."""
        source = torch.Generator().manual_seed(seed)
        chosen = {}
        for name, led in self._led.items():
            chosen[name] = led.clone()
            for c, pool in self._pools[name].items():
                rows = ((self._classes == c) & (led < 0)).nonzero().flatten()
                chosen[name][rows] = pool[_spread(len(rows), len(pool), source)]
        order = torch.randperm(len(self), generator=source)  # so that the first rows are not all of one class
        with drawn_by(seed):  # pixels that a part draws itself
            return self._made({name: rows[order] for name, rows in chosen.items()})

    def _drawn(self, name: str, place: Tensor) -> Tensor:
        rows, classes = self._led[name][place], self._classes[place]
        for c, pool in self._pools[name].items():
            mine = ((classes == c) & (rows < 0)).nonzero().flatten()
            if len(mine):
                rows[mine] = pool[torch.randint(len(pool), (len(mine),))]
        return rows

    def _made(self, rows: Mapping[str, Tensor]) -> Batch:
        x: dict[str, Tensor] = {}
        mask: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            found = part[rows[name]]
            x |= found.x
            mask |= found.mask
        return Batch({m: x[m] for m in self.names}, {m: mask[m] for m in self.names})


def _batch(part: Part) -> Batch:
    return part.batch if isinstance(part, Binarised) else part


def _of_part(part: Part, names: Sequence[str]) -> Part:
    batch = _batch(part)
    kept = Batch({m: batch.x[m] for m in names}, {m: batch.mask[m] for m in names})
    if isinstance(part, Binarised) and (pixels := [m for m in part.pixels if m in names]):
        return Binarised(kept, pixels, part.levels)
    return kept


def _by_class(labels: Tensor) -> dict[int, Tensor]:
    return {c: (labels == c).nonzero().flatten() for c in labels.unique().tolist()}


def _spread(count: int, size: int, source: torch.Generator) -> Tensor:
    """`count` draws out of `size`, each taken equally often but for one, in random order."""
    whole = [torch.randperm(size, generator=source) for _ in range(-(-count // size))]
    return torch.cat(whole)[:count] if whole else torch.empty(0, dtype=torch.long)


def _check(batches: Mapping[str, Batch], label: str) -> None:
    if not batches:
        raise ValueError("Paired: there is nothing to pair")
    seen: dict[str, str] = {}
    for name, batch in batches.items():
        if label not in batch.x:
            raise ValueError(f"Paired: '{name}' lacks the class labels '{label}'; it has {list(batch.names)}")
        values = batch.x[label]
        if values.dim() != 1 or values.is_floating_point():
            raise ValueError(
                f"Paired: '{label}' of '{name}' holds no classes (N,): {tuple(values.shape)}, {values.dtype}"
            )
        if values.device.type != "cpu":
            raise ValueError(f"Paired: '{name}' is on {values.device}; pair on the CPU, minibatches can be moved")
        if not bool(batch.mask[label].all()):
            raise ValueError(f"Paired: '{name}' has rows without a class label '{label}'")
        for m in batch.names:
            if m != label and m in seen:
                raise ValueError(f"Paired: modality '{m}' is in '{seen[m]}' and in '{name}'")
            seen[m] = name


def _check_classes(rows: Mapping[str, Mapping[int, Tensor]]) -> None:
    every = set().union(*rows.values())
    for name, mine in rows.items():
        if lacking := sorted(every - set(mine)):
            raise ValueError(f"Paired: '{name}' has no rows of class {', '.join(map(str, lacking))}")
