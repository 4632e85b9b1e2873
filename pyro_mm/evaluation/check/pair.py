"""The pair under test, and how a check runs it: on copies of the batch, at given latents, with a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import DATA_DIM, Program
from pyro_mm.weights import Run, Sites, replay, run, total_log_weight

__all__ = ["Failure", "Pair", "Skip", "Values", "copy_of", "difference", "with_values"]

ROWS = 24


class Failure(Exception):
    """A check found the contract broken: what was measured, and the fix."""

    def __init__(self, measured: str, fix: str = "") -> None:
        super().__init__(measured)
        self.measured, self.fix = measured, fix


class Skip(Exception):
    """A check does not apply; the message says why."""


@dataclass(frozen=True)
class Values:
    """Latent values by site, and how many of the last dimensions belong to the event."""

    tensors: dict[str, Tensor]
    event_dims: dict[str, int]

    def rows(self, index: Tensor) -> Values:
        """Some rows, in the order of `index`."""
        picked = {n: v.index_select(DATA_DIM - self.event_dims[n], index) for n, v in self.tensors.items()}
        return Values(picked, self.event_dims)


@dataclass(frozen=True)
class Pair:
    """Model, guide, and two small batches: the caller's rows, and the same rows with more missing.

    `holed` has a row with nothing present, and every modality is missing somewhere.
    """

    model: Program
    guide: Program
    batch: Batch
    holed: Batch
    k: int
    seed: int

    @staticmethod
    def of(model: Program, guide: Program, batch: Batch, k: int, seed: int) -> Pair:
        """From the rows in which most is present."""
        if any(mask.dim() > 1 for mask in batch.mask.values()):
            raise ValueError("check_pair takes masks (N,), not the stacked (S, N) of batch.subsets(...)")
        if not len(batch):
            raise ValueError("the batch has no rows")
        count = torch.stack([m.int() for m in batch.mask.values()]).sum(0)
        order = count.argsort(descending=True, stable=True)
        few = batch[order[torch.arange(ROWS, device=order.device) % min(len(order), ROWS)]]
        return Pair(model, guide, few, Batch(few.x, holes(few)), k, seed)

    @property
    def width(self) -> int:
        """Numbers per row in the widest modality."""
        return max(prod(v.shape[1:]) for v in self.batch.x.values())

    @property
    def distinct_rows(self) -> bool:
        """Do the rows differ in some modality?"""
        return any(bool((v != v[:1]).any()) for v in self.batch.x.values())

    def views(self) -> Iterator[tuple[str, Batch]]:
        """What the programs may be shown: everything, each modality alone, each hidden, nothing, and missing rows."""
        names = self.batch.names
        shown = [names, *((m,) for m in names)]
        shown += [tuple(m for m in names if m != left) for left in names] if len(names) > 2 else []
        for group in shown:
            yield f"{{{', '.join(group)}}}", self.batch.only(*group)
        yield "nothing present", self.batch.only()
        yield "missing rows", self.holed

    def latents(self, view: Batch, seed: int = 0) -> Values:
        """The guide's draws, and the model's draws of what the guide lacks."""
        with evaluating(self.model, self.guide, seed=self.seed + seed):
            guide = run(self.guide, copy_of(view))
            model = replay(self.model, copy_of(view), {n: s.value for n, s in guide.items()})
        found = {n: s for n, s in model.items() if not s.observed} | guide
        return Values({n: s.value for n, s in found.items()}, {n: s.fn.event_dim for n, s in found.items()})

    def score(self, view: Batch, values: Values, seed: int = 0) -> Tensor:
        """log p(x, z) - log q(z) per row at given latents, `(N,)`; without training weights."""
        with evaluating(self.model, self.guide, seed=self.seed + seed):
            return total_log_weight(self.sites(view, values))[0]

    def sites(self, view: Batch, values: Values) -> Run:
        """Both programs at given latents."""
        model = replay(self.model, copy_of(view), values.tensors)
        return Run(model, replay(self.guide, copy_of(view), values.tensors))

    def tolerance(self, log_w: Tensor) -> float:
        """How much rounding may move these log-weights."""
        size = log_w[torch.isfinite(log_w)].abs()
        unit = 1e-9 if log_w.dtype == torch.float64 else 1e-5
        return unit * max(1.0, size.max().item() if len(size) else 1.0)


def holes(batch: Batch) -> dict[str, Tensor]:
    """The batch's masks with 30 % more missing: row 0 keeps what it has, row 1 loses everything."""
    noise = torch.Generator().manual_seed(0)
    masks = {}
    for m, seen in batch.mask.items():
        keep = torch.rand(len(batch), generator=noise) > 0.3
        keep[0], keep[1:2] = True, False
        masks[m] = seen & keep.to(seen.device)
    return masks


def copy_of(batch: Batch) -> Batch:
    """A batch of its own tensors, so that no program can touch the original."""
    x = {m: v.clone() for m, v in batch.x.items()}
    return Batch._view(x, {m: v.clone() for m, v in batch.mask.items()}, batch.hidden)


def with_values(batch: Batch, x: Mapping[str, Tensor]) -> Batch:
    """The batch with other values, also where they could not come from a constructor."""
    return Batch._view(dict(x), dict(batch.mask), batch.hidden)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite when one is NaN, or infinite where the other is not."""
    if a.shape != b.shape:
        return torch.inf
    gap = torch.where(a == b, 0.0, (a - b).abs())
    return torch.nan_to_num(gap, nan=torch.inf).max().item() if gap.numel() else 0.0


def rows_text(differs: Tensor) -> str:
    """The first few row numbers."""
    rows: list[Any] = differs.nonzero().flatten().tolist()
    return f"rows {rows[:5]}{'...' if len(rows) > 5 else ''}"


def first_line(error: Exception) -> str:
    """`ValueError: what it says`."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def latent_names(sites: Sites, guide: Sequence[str]) -> str:
    """`z, w (from the model)`."""
    return ", ".join(n if n in guide else f"{n} (from the model)" for n, s in sites.items() if not s.observed)
