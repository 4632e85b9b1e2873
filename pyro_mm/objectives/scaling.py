"""Weights of likelihoods in training, by modality."""

from __future__ import annotations

from collections.abc import Mapping

from pyro_mm.handlers import Program, innermost
from pyro_mm.objectives.schedules import Schedule

__all__ = ["Weights", "known_weights"]

Weights = Mapping[str, float | Schedule]


def known_weights(weights: Weights | None, model: Program) -> dict[str, float | Schedule]:
    """The weights, each of a modality that the model generates; programs without `names` are taken at their word.

    Raises:
        ValueError: a name is none of the model's, such as a misspelt one, whose weight nothing would see.
    """
    inner = innermost(model)
    names = tuple(getattr(inner, "names", ()))
    if names and (unknown := sorted(set(weights or {}) - set(names))):
        raise ValueError(f"weights for {unknown}, but {type(inner).__name__} generates {', '.join(names)}")
    return dict(weights or {})
