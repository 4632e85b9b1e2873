"""Subsets of modalities: which are drawn by default, and what a person may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from pyro_mm.batch import as_names

__all__ = ["Sets", "Subset", "chosen", "subsets_of"]

Subset = tuple[str, ...]
Sets = Sequence[str | Sequence[str]]


def subsets_of(names: Sequence[str]) -> list[Subset]:
    """Every non-empty subset of up to 3 names, by size; of more, each alone and all together."""
    sizes = range(1, len(names) + 1) if len(names) <= 3 else (1, len(names))
    return [s for size in sizes for s in combinations(names, size)]


def chosen(sets: Sets, names: Sequence[str]) -> list[Subset]:
    """The subsets a person asked for, each a name or names.

    Raises:
        ValueError: there is none, one is empty, or one names an unknown modality.
    """
    groups = [as_names(s) for s in sets]
    if not groups or not all(groups):
        raise ValueError(f"sets= needs at least one subset, none of them empty; got {list(sets)}")
    if unknown := {m for group in groups for m in group} - set(names):
        raise ValueError(f"sets= names {sorted(unknown)}, but the modalities are {list(names)}")
    return groups
