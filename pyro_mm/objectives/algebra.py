"""Sums of weighted terms.

A term maps a batch to a bound or a divergence, in nats, as a mean over the rows of the batch.  An `Objective` is a
loss, that is, minus the bound: `sign` says which way a term enters.  `repr` prints the bound.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from functools import reduce
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.handlers import Subsets
from pyro_mm.objectives.schedules import Product, Schedule, symbol_of, times, value_of
from pyro_mm.sharing import shared_networks

__all__ = ["Objective", "Term", "total"]


class Term(nn.Module):
    """One term of an objective.

    `loss(batch)` returns what is minimised and fills `report`: detached means over the rows, as bounds (a
    log-likelihood positive, a KL as itself).  `sign` is -1 for a bound (printed with a plus), +1 for a divergence.
    """

    label = "term"
    sign = -1

    def __init__(self) -> None:
        super().__init__()
        self.report: dict[str, Tensor] = {}

    def forward(self, batch: Batch) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def formula(self) -> str:
        """The term in plain text."""
        return self.label

    def latex(self) -> str:
        """The term in LaTeX."""
        return rf"\mathrm{{{self.label}}}"


class Objective(nn.Module):
    """A weighted sum of terms: `batch -> scalar loss`, closed under `+`, `-` and `*` by a number or Schedule."""

    def __init__(self, terms: list[tuple[float | Schedule, Term]]) -> None:
        super().__init__()
        self.terms = nn.ModuleList([t for _, t in terms])
        self.weights = [w for w, _ in terms]
        self.schedules = nn.ModuleList([w for w in self.weights if isinstance(w, Schedule)])
        # Found once: a walk through all modules at every step costs a small network a tenth of its time.
        self.redrawn = tuple(part for part in self.modules() if isinstance(part, Subsets))

    def pairs(self) -> list[tuple[float | Schedule, Term]]:
        """(weight, term) in order."""
        return list(zip(self.weights, self.terms, strict=True))  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Tensor:
        for subsets in self.redrawn:
            subsets.redraw()
        with shared_networks():
            losses = [value_of(w) * term(batch) for w, term in self.pairs()]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def set_progress(self, epochs: float) -> None:
        """Move every schedule inside to `epochs` since the start."""
        for part in self.modules():
            if isinstance(part, Schedule):
                part.at(epochs)

    def report(self) -> dict[str, float]:
        """The last call's terms, by name, in nats per row: bounds positive, divergences as themselves."""
        return {name: float(v) for name, v in self.parts().items()}

    def parts(self) -> dict[str, Tensor]:
        """The same, as tensors where they lie: nothing waits for a device."""
        out: dict[str, Tensor] = {}
        for (_, term), key in zip(self.pairs(), self.keys(), strict=True):
            out |= {f"{key}/{name}" if name else key: v for name, v in term.report.items()}
        return out

    def keys(self) -> list[str]:
        """A distinct short name for every term: `elbo`, `kl`, `kl_2`, ..."""
        seen: dict[str, int] = {}
        out = []
        for term in self.terms:
            label = str(term.label)
            seen[label] = seen.get(label, 0) + 1
            out.append(label if seen[label] == 1 else f"{label}_{seen[label]}")
        return out

    def __add__(self, other: Any) -> Objective:
        if isinstance(other, int | float) and other == 0:
            return self
        if not isinstance(other, Objective):
            return NotImplemented
        return Objective([*self.pairs(), *other.pairs()])

    __radd__ = __add__

    def __mul__(self, factor: float | Schedule) -> Objective:
        if not isinstance(factor, Real | Schedule):
            return NotImplemented
        return Objective([(_times(factor, w), t) for w, t in self.pairs()])

    __rmul__ = __mul__

    def __truediv__(self, number: float) -> Objective:
        return self * (1.0 / number)

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        return self + (-other)

    def __repr__(self) -> str:
        return "maximise  " + self._join(lambda t: t.formula(), "{w} ", " ")

    def _repr_latex_(self) -> str:
        return "$" + self._join(lambda t: t.latex(), r"{w}\,", " ") + "$"

    def _join(self, show: Any, weight: str, space: str) -> str:
        out = ""
        moving = list({id(w): None for w in self.weights if isinstance(w, Schedule)})
        for i, (w, term) in enumerate(self.pairs()):
            size = w if isinstance(w, Schedule) else abs(w)
            negative = (term.sign > 0) != _negative(w)
            symbol = f"w_{moving.index(id(w)) + 1}" if isinstance(w, Schedule) and len(moving) > 1 else "w"
            factor = "" if size == 1.0 else weight.format(w=symbol_of(size, symbol))
            lead = (" - " if negative else " + ") if i else ("-" if negative else "")
            out += lead + factor + show(term)
        return out

    def __iter__(self) -> Iterator[Term]:
        return iter(self.terms)  # type: ignore[arg-type]


def total(objectives: Iterable[Objective]) -> Objective:
    """Their sum; `sum` itself starts from a 0 that is no objective.

    Raises:
        ValueError: there are none.
    """
    parts = list(objectives)
    if not parts:
        raise ValueError("the sum of no objectives is no objective")
    return reduce(operator.add, parts)


def _negative(w: float | Schedule) -> bool:
    """Does the weight turn the term round?  A schedule by itself counts as positive."""
    if isinstance(w, Product):
        return _negative(w.a) != _negative(w.b)
    return not isinstance(w, Schedule) and w < 0


def _times(a: float | Schedule, b: float | Schedule) -> float | Schedule:
    if isinstance(a, Schedule):
        return times(a, b)
    return times(b, a) if isinstance(b, Schedule) else a * b
