"""From one datum to another through the latent space."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.modality import Modality
from pyro_mm.plots.cells import Cells, Line
from pyro_mm.plots.grids import MOST, generated, subject
from pyro_mm.plots.show import Hook
from pyro_mm.plots.style import Place
from pyro_mm.plots.traversals import Start, placing, single, start_at

__all__ = ["interpolation"]


def interpolation(
    *what: Any,
    between: Sequence[tuple[int, int]] = ((0, 1),),
    given: Sequence[str] | None = None,
    steps: int = 9,
    site: str = "z",
    k: int = 100,
    show: Mapping[str, Hook] | None = None,
    seed: int = 0,
    path: Place = None,
) -> tuple[Any, dict[tuple[Any, ...], Any]]:
    """The decoders' means along the straight line between the posterior means of two rows.

    One block per modality, in it one line per pair of rows; columns go from the first row to the second in equal steps.
    Latents that do not depend on the site move along with it, those below it are at their conditional means given it.

    Args:
        what: `recipe, rows` or `model, guide, modalities, rows`.
        between: pairs of rows.
        given: the modalities that the posterior is given (default: whatever the rows have).
        steps: columns, 2 to 12.
        site, k, show, seed, path: as in `traversal`.

    Returns:
        The figure, and its axes by `((row, row), modality, step)`.

    Raises:
        TypeError: `what` is neither form.
        ValueError: no such site, row or modality, no pairs, a wrong number of steps, or a pair that differs in what the
            model is conditioned on.
    """
    model, guide, modalities, rows = subject(what, "interpolation", None)
    if not 2 <= steps <= MOST or not between:
        raise ValueError(f"an interpolation has 2 to {MOST} steps and one pair or more; got {steps} and {len(between)}")
    seen = rows if given is None else rows.only(*given)
    lines = [tuple(start_at(model, guide, single(model, seen, row), site, k, seed) for row in pair) for pair in between]
    # A latent that some row does not have is the model's own in all of them.
    held = set.intersection(*(set(start.held) for line in lines for start in line))
    free = {name for line in lines for start in line for name in (*start.free, *start.held)} - held
    share = torch.linspace(0, 1, steps, dtype=lines[0][0].centre.dtype, device=lines[0][0].centre.device)
    values = [_line(a, b, held, share) for a, b in lines]
    fixed = placing({name: torch.cat([v[name] for v in values]) for name in values[0]})
    grid = seen[[first for first, _ in between for _ in range(steps)]]
    _require_same_conditions(model, seen, between)
    made = generated(model, fixed, modalities, grid, means=tuple(free), seed=seed)
    return _drawn(between, [m for m in modalities if m.name in made], made, steps, show, path)


def _require_same_conditions(model: Any, rows: Batch, between: Sequence[tuple[int, int]]) -> None:
    """What a model is conditioned on cannot go half way."""
    for m in getattr(model, "conditioned_on", ()):
        for first, second in between:
            if not torch.equal(rows.x[m][first], rows.x[m][second]):
                raise ValueError(f"rows {first} and {second} differ in '{m}', which the model is conditioned on")


def _line(a: Start, b: Start, held: Collection[str], share: Tensor) -> dict[str, Tensor]:
    """Values `(steps, *event)` of the site and of what moves with it."""
    ends = {name: (a.held[name], b.held[name]) for name in held} | {a.site: (a.centre, b.centre)}
    return {name: torch.lerp(x, y, share.to(x.dtype).reshape(-1, *[1] * x.dim())) for name, (x, y) in ends.items()}


def _drawn(
    between: Sequence[tuple[int, int]],
    modalities: Sequence[Modality],
    made: Mapping[str, Any],
    steps: int,
    show: Mapping[str, Hook] | None,
    path: Place,
) -> tuple[Any, dict[tuple[Any, ...], Any]]:
    heads = ["first", *[f"{n / (steps - 1):.2g}" for n in range(1, steps - 1)], "second"]
    cells = Cells(modalities, steps, side_by_side=False, corner="rows", heads=heads)
    for n, (first, second) in enumerate(between):
        here = slice(n * steps, (n + 1) * steps)
        title = f"{first} to {second}"
        cells.add(Line(((first, second),), title, {m.name: made[m.name][here] for m in modalities}))
    return cells.drawn(show, path)
