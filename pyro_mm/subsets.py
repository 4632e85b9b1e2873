"""Groups of modalities that an objective looks at: fixed, or drawn anew for every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_mm.tracing import is_traced

__all__ = ["RandomSubsets", "Subsets"]


class Subsets(nn.Module):
    """A fixed list of groups of modalities."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        super().__init__()
        if not groups:
            raise ValueError("at least one subset is needed")
        self.groups = tuple(tuple(g) for g in groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def known(self) -> tuple[tuple[str, ...] | None, ...]:
        """The groups; None for one that Python may not look at."""
        return self.groups

    def redraw(self) -> None:
        """Called once before every evaluation of an objective."""

    def choice(self, names: Sequence[str]) -> dict[str, Tensor]:
        """For every modality, bool `(S,)`: is it in the group?"""
        if unknown := {m for g in self.groups for m in g} - set(names):
            raise ValueError(f"subsets name {sorted(unknown)}, which the batch lacks; it has {list(names)}")
        return {m: torch.tensor([m in g for g in self.groups]) for m in names}

    def extra_repr(self) -> str:
        return ", ".join("{" + ", ".join(g) + "}" for g in self.groups)


class RandomSubsets(Subsets):
    """`always` plus k random subsets, drawn once per call of the objective and shared by model and guide.

    The size is uniform between 2 and M-1 (1 and M when M < 3), then a subset of that size uniformly: MVAE's
    approximation for many modalities (Wu & Goodman 2018, section 3.2).

    Args:
        sizes: the smallest and the largest size, when others are wanted; 0 is nothing.
    """

    def __init__(
        self,
        names: Sequence[str],
        k: int,
        always: Sequence[Sequence[str]] = (),
        sizes: tuple[int, int] | None = None,
    ) -> None:
        super().__init__([tuple(names)])
        self.membership: Tensor
        self.pool, self.k, self.always = tuple(names), k, tuple(tuple(g) for g in always)
        if k < 1:
            raise ValueError(f"k random subsets: k must be at least 1, got {k}")
        m = len(self.pool)
        self.sizes = sizes or ((2, m - 1) if m >= 3 else (1, m))
        if not 0 <= self.sizes[0] <= self.sizes[1] <= m:
            raise ValueError(f"sizes {self.sizes} of subsets of {m} modalities")
        self.redraw()

    def redraw(self) -> None:
        m, (low, high) = len(self.pool), self.sizes
        size = torch.randint(low, high + 1, (self.k, 1))
        self.membership = torch.rand(self.k, m).argsort(-1).argsort(-1) < size
        if not is_traced():  # a graph draws as well, but nobody can look at what
            drawn = [tuple(m for m, chosen in zip(self.pool, row, strict=True) if chosen) for row in self._rows()]
            self.groups = (*self.always, *drawn)

    def _rows(self) -> list[list[bool]]:
        rows: list[list[bool]] = self.membership.tolist()
        return rows

    @property
    def known(self) -> tuple[tuple[str, ...] | None, ...]:
        """The groups; in a graph None for those that are drawn."""
        return (*self.always, *[None] * self.k) if is_traced() else self.groups

    def choice(self, names: Sequence[str]) -> dict[str, Tensor]:
        """For every modality, bool `(S,)`: is it in the group?"""
        if not is_traced():
            return super().choice(names)
        fixed = {m: torch.tensor([m in g for g in self.always], dtype=torch.bool) for m in names}
        drawn = {m: self.membership[:, i] for i, m in enumerate(self.pool)}
        none = self.membership.new_zeros(self.k)
        return {m: torch.cat([fixed[m], drawn.get(m, none)]) for m in names}

    def __len__(self) -> int:
        return len(self.always) + self.k

    def extra_repr(self) -> str:
        """The law, not the draw: what a formula shows, and what tells one run from another."""
        fixed = "".join("{" + ", ".join(g) + "}, " for g in self.always)
        return f"{fixed}{self.k} drawn from {{{', '.join(self.pool)}}}"
