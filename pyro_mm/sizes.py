"""Settings that differ between modalities: what a person asked for, what a paper says, what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from pyro_mm.modality import Modality, names_of

__all__ = ["by_modality"]

T = TypeVar("T")


def by_modality(
    modalities: Sequence[Modality], asked: Mapping[str, T] | T | None, published: Mapping[str, T], otherwise: T
) -> dict[str, T]:
    """One value for every modality: as asked for (one for all, or by name), else the paper's, else `otherwise`.

    Raises:
        ValueError: `asked` names a modality that is not there.
    """
    names = names_of(modalities)
    if asked is not None and not isinstance(asked, Mapping):
        return dict.fromkeys(names, asked)
    if unknown := set(asked or {}) - set(names):
        raise ValueError(f"{sorted(unknown)} named, but the modalities are {list(names)}")
    return {m: (asked or {}).get(m, published.get(m, otherwise)) for m in names}
