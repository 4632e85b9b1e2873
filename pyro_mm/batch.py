"""What a minibatch is: one tensor and one presence mask per modality.

`x[m]` has shape `(N, *event)`; `mask[m]` is bool with shape `(N,)`, or `(S, N)` once `subsets` has stacked
several views of the same rows.  Values under a False mask are never looked at: constructors overwrite them with a
value that is present elsewhere, so that neither NaN nor a number outside a likelihood's support can poison a
gradient from under a mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_mm.tracing import is_traced

if TYPE_CHECKING:
    from pyro_mm.modality import Modality

__all__ = ["Batch", "as_names"]

Rows = int | slice | Sequence[int] | Tensor


def as_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """One name or several, each once, in their order."""
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))


class Batch:
    """Rows of several modalities, any of which may be missing in any row.

    Args:
        x: one tensor `(N, *event)` per modality.
        mask: one bool tensor `(N,)` (or `(S, N)`) per modality, False where it is missing; default: all present.

    Raises:
        ValueError: modalities disagree on the number of rows, a mask has another shape than its rows, or a present
            value is NaN.  The message names the modality.

    A `Batch` is also a map-style data set: `batch[3:7]`, `len(batch)`, `DataLoader(batch, collate_fn=Batch.collate)`.
    """

    __slots__ = ("hidden", "mask", "views", "x")

    x: dict[str, Tensor]
    mask: dict[str, Tensor]
    hidden: frozenset[str]
    """Modalities hidden in every row by `only`: a guide need not run their encoders."""
    views: dict[str, tuple[bool, ...]]
    """In which stacked views (`subsets`, `visible`) a modality can be seen at all: a model need not decode the others.
    Without an entry it may be seen in any."""

    def __init__(self, x: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None = None) -> None:
        if not x:
            raise ValueError("a Batch needs at least one modality")
        masks = dict(mask) if mask is not None else {}
        if unknown := set(masks) - set(x):
            raise ValueError(f"mask given for {sorted(unknown)}, but the modalities are {list(x)}")
        n = {m: len(v) for m, v in x.items()}
        if len(set(n.values())) > 1:
            raise ValueError(f"modalities have different numbers of rows: {n}")
        self.x, self.mask, self.hidden, self.views = {}, {}, frozenset(), {}
        for m, value in x.items():
            seen = masks.get(m)
            if seen is None:
                seen = torch.ones(len(value), dtype=torch.bool, device=value.device)
            if seen.dtype is not torch.bool or seen.dim() not in (1, 2) or seen.shape[-1] != len(value):
                raise ValueError(
                    f"mask of '{m}' must be bool with shape ({len(value)},) or (S, {len(value)}); "
                    f"got {seen.dtype} with shape {tuple(seen.shape)}"
                )
            self.x[m], self.mask[m] = _filled(value, seen, m), seen

    @classmethod
    def _view(cls, x: dict[str, Tensor], mask: dict[str, Tensor], hidden: frozenset[str] = frozenset()) -> Batch:
        """A batch over tensors that were checked before."""
        self = object.__new__(cls)
        self.x, self.mask, self.hidden, self.views = x, mask, hidden, {}
        return self

    @classmethod
    def of(
        cls,
        data: Mapping[str, Any],
        modalities: Sequence[Modality] | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Batch:
        """A batch from arrays, tensors, lists, data frames or None.

        A row that is entirely NaN (or None) in a modality is missing there.  With `modalities`, shapes, ranges and
        label values are checked, modalities that `data` lacks are added as missing, and floats become `dtype`
        (default: torch's).

        Raises:
            ValueError: naming the modality, for a wrong shape, a value outside the support, a partly-NaN row, or a
                modality given as None when no `modalities` say what its shape is.
        """
        from pyro_mm.ingest import ingest

        return ingest(data, modalities, dtype or torch.get_default_dtype())

    @classmethod
    def missing(cls, modalities: Sequence[Modality], n: int) -> Batch:
        """`n` rows with nothing present: `generate` then gives samples of the prior."""
        fills = {m.name: m.likelihood.fill(m.shape).expand(n, *m.shape).clone() for m in modalities}
        return cls._view(fills, {m: torch.zeros(n, dtype=torch.bool) for m in fills})

    @staticmethod
    def collate(items: Batch | Sequence[Batch]) -> Batch:
        """`collate_fn` for a DataLoader over a Batch: concatenates rows (a Batch passes through)."""
        if isinstance(items, Batch):
            return items
        first = items[0]
        return Batch._view(
            {m: torch.cat([b.x[m] for b in items]) for m in first.x},
            {m: torch.cat([b.mask[m] for b in items], -1) for m in first.mask},
            frozenset.intersection(*(b.hidden for b in items)),
        )

    def __len__(self) -> int:
        return next(iter(self.mask.values())).shape[-1]

    def __getitem__(self, rows: Rows) -> Batch:
        """The chosen rows; an int gives a batch of one row."""
        if not isinstance(rows, slice):
            rows = torch.as_tensor(rows, device=self.device)
            rows = rows.long() if rows.numel() == 0 and rows.dtype is not torch.bool else rows
            if rows.dim() == 0:
                row = int(rows)
                if not -len(self) <= row < len(self):
                    raise IndexError(f"row {row} of a batch of {len(self)}")
                rows = slice(row % len(self), row % len(self) + 1)
        return Batch._view(
            {m: v[rows] for m, v in self.x.items()},
            {m: v[..., rows] for m, v in self.mask.items()},
            self.hidden,
        )

    def __getitems__(self, rows: list[int]) -> Batch:
        """A whole minibatch in one indexing call (DataLoader looks for this name)."""
        return self[rows]

    def __iter__(self) -> Iterable[Batch]:  # type: ignore[misc]
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        parts = []
        for m, v in self.x.items():
            share = self.mask[m].float().mean().item()
            parts.append(f"{m}: {tuple(v.shape[1:])}" + ("" if share == 1 else f", {share:.0%} present"))
        return f"Batch({len(self)} rows; " + "; ".join(parts) + ")"

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in order."""
        return tuple(self.mask)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return next(iter(self.mask.values())).device

    def only(self, *names: str) -> Batch:
        """The same rows with every other modality hidden."""
        self._known(names)
        masks = {m: v if m in names else torch.zeros_like(v) for m, v in self.mask.items()}
        return Batch._view(self.x, masks, self.hidden | {m for m in self.mask if m not in names})

    def without(self, *names: str) -> Batch:
        """The same rows with these modalities hidden."""
        self._known(names)
        return self.only(*(m for m in self.mask if m not in names))

    def subsets(self, groups: Sequence[Sequence[str]]) -> Batch:
        """One hidden view per group of names, stacked: every mask becomes `(S, N)`."""
        for group in groups:
            self._known(group)
        return self.visible({m: torch.tensor([m in g for g in groups]) for m in self.mask}, groups)

    def visible(self, choice: Mapping[str, Tensor], known: Sequence[Sequence[str] | None] | None = None) -> Batch:
        """Stacked views from a bool tensor per modality, `(S,)` or `(S, N)`: True where the view keeps it.

        Args:
            known: for every view the modalities that it keeps, or None where Python may not look (it may keep any);
                a model need not decode the others.  Default: as the tensors say.
        """
        masks = {}
        for m, v in self.mask.items():
            keep = choice[m].to(v.device)
            masks[m] = v & (keep.unsqueeze(-1) if keep.dim() == 1 else keep)
        out = Batch._view(self.x, masks, self.hidden)
        if known is not None:
            out.views = {m: tuple(group is None or m in group for group in known) for m in choice}
        elif not is_traced():
            out.views = {
                m: tuple(keep.tolist()) for m, keep in choice.items() if keep.dim() == 1 and keep.device.type == "cpu"
            }
        return out

    def blocks(self, rows: int) -> Iterator[Batch]:
        """The batch in pieces of so many rows, the last one shorter."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def masked(self, keep: Mapping[str, Tensor]) -> Batch:
        """The same rows with every modality hidden in the rows where its `keep`, bool `(N,)`, is False."""
        masks = {m: v & keep[m].to(v.device) for m, v in self.mask.items()}
        return Batch._view(self.x, masks, self.hidden)

    def present(self, names: Iterable[str] | None = None) -> Tensor:
        """Bool `(N,)` or `(S, N)`: rows in which at least one of `names` (default: any modality) is present."""
        chosen = [self.mask[m] for m in (self.mask if names is None else names) if m in self.mask]
        if not chosen:
            return torch.zeros(len(self), dtype=torch.bool, device=self.device)
        return torch.stack(torch.broadcast_tensors(*chosen)).any(0)

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """The batch on another device; a dtype applies to floating-point modalities only."""
        x = {}
        for m, v in self.x.items():
            moved = v.to(*args, **kwargs)
            x[m] = moved if v.is_floating_point() == moved.is_floating_point() else v.to(moved.device)
        return Batch._view(x, {m: v.to(x[m].device) for m, v in self.mask.items()}, self.hidden)

    def _known(self, names: Iterable[str]) -> None:
        if unknown := [m for m in names if m not in self.mask]:
            raise ValueError(f"unknown modality {unknown}; this batch has {list(self.mask)}")


def _filled(value: Tensor, seen: Tensor, name: str) -> Tensor:
    """`value` with its masked rows replaced by the first present row (zeros when there is none)."""
    seen = seen.any(0) if seen.dim() == 2 else seen
    if bool(seen.all()):
        filled = value
    else:
        first = value[int(seen.int().argmax())] if bool(seen.any()) else torch.zeros_like(value[0])
        filled = torch.where(seen.view(-1, *[1] * (value.dim() - 1)), value, first)
    if filled.is_floating_point() and not bool(torch.isfinite(filled).all()):
        bad = (~torch.isfinite(filled)).reshape(len(filled), -1).any(-1).nonzero().flatten()
        raise ValueError(
            f"modality '{name}' holds NaN or infinite values in rows that its mask calls present: "
            f"rows {bad[:5].tolist()}{'...' if len(bad) > 5 else ''}; hide those rows or use Batch.of"
        )
    return filled


def as_tensor(value: Any) -> Tensor:
    """A tensor from a tensor, array, sequence, pandas Series or DataFrame (None inside becomes NaN)."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind == "O"):
        value = _nan_for_none(list(value))
    array = np.asarray(value, order="C")
    if array.dtype == object:
        array = array.astype(np.float64)
    return torch.as_tensor(array if array.flags.writeable else array.copy())


def _nan_for_none(rows: list[Any]) -> list[Any]:
    """Rows that are None (or a lone NaN) as NaN of the other rows' shape."""
    absent = [row is None or (isinstance(row, float) and row != row) for row in rows]
    if not any(absent) or all(absent):
        return rows
    shape = np.shape(rows[absent.index(False)])
    return [np.full(shape, np.nan) if gone else row for row, gone in zip(rows, absent, strict=True)]
