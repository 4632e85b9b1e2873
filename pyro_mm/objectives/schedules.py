"""Weights that change while training runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Schedule", "Warmup", "value_of"]


class Schedule(nn.Module):
    """A number that `fit` moves by calling `at(progress)` before every step; a tensor, so that graphs see it change."""

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(float(value)), persistent=False)

    def at(self, epochs: float) -> None:
        """Set the value for `epochs` (a fraction counts) since training began."""


class Warmup(Schedule):
    """Linear from `start` to `end` over `epochs`, which begin `after` others at `start`; `end` whenever no training has
    set it otherwise.
    """

    def __init__(self, epochs: float, start: float = 0.0, end: float = 1.0, after: float = 0.0) -> None:
        super().__init__(end)
        if epochs < 0 or after < 0:
            raise ValueError(f"a warm-up takes 0 or more epochs, after 0 or more; got {epochs} after {after}")
        self.epochs, self.start, self.end, self.after = epochs, start, end, after

    def at(self, epochs: float) -> None:
        past = epochs - self.after
        share = min(max(past / self.epochs, 0.0), 1.0) if self.epochs else float(past >= 0)
        self.value.fill_(self.start + (self.end - self.start) * share)

    def extra_repr(self) -> str:
        late = f" after {self.after:g}" if self.after else ""
        return f"{self.start:g} to {self.end:g} over {self.epochs:g} epochs{late}"


class Product(Schedule):
    """A schedule times a number or another schedule."""

    def __init__(self, a: Schedule, b: float | Schedule) -> None:
        nn.Module.__init__(self)
        self.a, self.b = a, b

    @property
    def value(self) -> Tensor:  # type: ignore[override]
        return self.a.value * value_of(self.b)

    def at(self, epochs: float) -> None:
        self.a.at(epochs)
        if isinstance(self.b, Schedule):
            self.b.at(epochs)


def times(schedule: float | Schedule, factor: float | Schedule) -> float | Schedule:
    """A schedule, or a number, multiplied; by 1 it stays itself."""
    if not isinstance(factor, Schedule) and factor == 1.0:
        return schedule
    if isinstance(schedule, Schedule):
        return Product(schedule, factor)
    return times(factor, schedule) if isinstance(factor, Schedule) else schedule * factor


def value_of(weight: float | Schedule) -> float | Tensor:
    """The number behind a weight."""
    return weight.value if isinstance(weight, Schedule) else weight


def symbol_of(weight: float | Schedule, name: str) -> str:
    """How a weight is printed: its value, or a name and `(t)` when it changes."""
    return f"{name}(t)" if isinstance(weight, Schedule) else f"{weight:g}"
