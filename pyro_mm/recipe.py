"""A published system put together: model, guide, objective, and how to rebuild them from a description."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pyro_mm.handlers import Program
from pyro_mm.modality import Modality
from pyro_mm.objectives.algebra import Objective

__all__ = ["Paper", "Recipe", "page"]


@dataclass(frozen=True)
class Paper:
    """Where a system was published, and where the survey of Suzuki & Matsuo (2022) puts it."""

    authors: str
    title: str
    year: int
    link: str = ""
    family: str = ""

    def __str__(self) -> str:
        return f"{self.authors} ({self.year}). {self.title}." + (f" {self.link}" if self.link else "")


@dataclass
class Recipe:
    """One system, ready for `fit`.

    Attributes:
        name: the variant's name, e.g. `mvae`.
        model, guide: the pair that likelihoods use, and generation unless there is a `sampler`.
        objective: the loss; where `stages` say how training runs the sum of all their parts, or None.
        stages: a sequence for `fit`, for systems trained in parts.
        modules: named modules, each once: what a saved file holds.
        modalities: what the pair is about.
        config: the arguments it was made from.
        paper: the source, or None.
        means: latents below the top one at whose conditional mean the paper generates: `generate(..., means=means)`.
        sampler: a guide that draws where `guide` has something simpler whose density is known (JNF's product of flows),
            or None; see `drawing`.
    """

    name: str
    model: Program
    guide: Program
    objective: Objective | None = None
    stages: Sequence[Any] | None = None
    modules: dict[str, nn.Module] = field(default_factory=dict)
    modalities: tuple[Modality, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    paper: Paper | None = None
    means: tuple[str, ...] = ()
    sampler: Program | None = None

    def __post_init__(self) -> None:
        if not self.modules:
            pair = {"model": self.model, "guide": self.guide}
            self.modules = {k: v for k, v in pair.items() if isinstance(v, nn.Module)}

    @property
    def drawing(self) -> Program:
        """The guide to generate with, `generate(recipe.model, recipe.drawing, batch)`: `sampler`, else `guide`."""
        return self.guide if self.sampler is None else self.sampler

    @property
    def target(self) -> Objective | Sequence[Any]:
        """What `fit` takes: the stages if there are any, else the objective."""
        chosen = self.stages if self.stages is not None else self.objective
        if chosen is None:
            raise ValueError(f"recipe '{self.name}' has neither an objective nor stages")
        return chosen

    def __repr__(self) -> str:
        lines = [f"{self.name}: {', '.join(m.name for m in self.modalities)}"]
        lines += [f"  {part!r}" for part in self.stages or [o for o in (self.objective,) if o is not None]]
        if self.paper is not None:
            lines.append(f"  {self.paper}")
        return "\n".join(lines)


def page(paper: Paper | None = None) -> Callable[[Callable[..., Recipe]], Callable[..., Recipe]]:
    """Mark a function `f(modalities, dim, ...) -> Recipe` as a variant: name, paper and arguments are filled in."""

    def mark(build: Callable[..., Recipe]) -> Callable[..., Recipe]:
        @functools.wraps(build)
        def variant(modalities: Sequence[Modality], *args: Any, **kwargs: Any) -> Recipe:
            bound = inspect.signature(build).bind(modalities, *args, **kwargs)
            bound.apply_defaults()
            recipe = build(*bound.args, **bound.kwargs)
            recipe.name, recipe.paper = build.__name__, paper
            recipe.modalities = tuple(modalities)
            recipe.config = {k: v for k, v in bound.arguments.items() if k != "modalities"}
            return recipe

        variant.paper = paper  # type: ignore[attr-defined]
        return variant

    return mark
