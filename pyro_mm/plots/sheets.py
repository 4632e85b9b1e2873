"""The sheet of cross-modality generation: every modality from each one alone, for one row of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_mm.batch import Batch
from pyro_mm.modality import Modality
from pyro_mm.plots.cells import HEIGHT, frame, width_of
from pyro_mm.plots.contents import Content, of_data
from pyro_mm.plots.grids import at_means, generated, subject
from pyro_mm.plots.sets import Subset
from pyro_mm.plots.show import Hook, Look, draw, looks
from pyro_mm.plots.style import GREY, Place, Sheet, colours, drawing, finish, tint

__all__ = ["cross_generation_sheet", "fits_sheet"]

Axes = dict[tuple[Any, ...], Any]
APART = 0.3  # inches, between what is given and what is made of it
LETTER = 0.1  # inches, of a name
TOGETHER = "all of\nthe above"


def cross_generation_sheet(
    *what: Any,
    together: bool = True,
    k: int = 1,
    means: Sequence[str] | None = None,
    show: Mapping[str, Hook] | None = None,
    seed: int = 0,
    path: Place = None,
) -> tuple[Any, Axes]:
    """A line for each modality that is given alone (framed), a column for each that is generated from it.

    Cells are the decoders' means at a draw of z ~ q(z | given), one z for each line; labels as probabilities.  On the
    diagonal, faintly framed, are reconstructions; the last line is given everything.  A modality that is missing in the
    row, or that the guide cannot see, gives no line.

    Args:
        what: `recipe, row` or `model, guide, modalities, row`; the row a Batch of one.
        together: draw the last line?
        k, means, show, seed, path: as in `cross_generation`.

    Returns:
        The figure, and its axes by `((m,), "given", m)` and `(given, "generated", n)`, `given` being `(m,)` or, in the
        last line, all of them.

    Raises:
        TypeError: `what` is neither form.
        ValueError: fewer than two modalities, more or fewer rows than one, nothing present in the row, or a model that
            generates under conditions; as in `cross_generation`.
    """
    model, guide, modalities, row = subject(what, "cross_generation_sheet", None)
    sources = _sources(model, guide, modalities, row)
    groups: list[Subset] = [(m.name,) for m in sources]
    if together and len(sources) > 1:
        groups.append(tuple(m.name for m in sources))
    means = at_means(what, means)
    cells = _Cells({m.name: of_data(m, row.x[m.name])[0] for m in sources}, {})
    for group in groups:
        made = generated(model, guide, modalities, row.only(*group), k, means, seed)
        cells.made[group] = {m: found[0] for m, found in made.items()}
    shown = {m: [c for c in (cells.given.get(m), *(line.get(m) for line in cells.made.values())) if c] for m in made}
    look = looks(modalities, colours(m.name for m in modalities), shown, show)
    with drawing() as plt:
        sheet, axes = _sheet(plt, cells, look)
    finish(sheet.figure, path)
    return sheet.figure, axes


def fits_sheet(model: Any, guide: Any, names: Sequence[str]) -> bool:
    """Is the pair about two of these modalities or more, each of which can be given alone?"""
    own = {n for program in (model, guide) for n in (getattr(program, "names", ()) or names)}
    return len(own & set(names)) > 1 and not getattr(model, "conditioned_on", ())


@dataclass
class _Cells:
    """What is given, and what is made of every group of it."""

    given: dict[str, Content]
    made: dict[Subset, dict[str, Content]]


def _sources(model: Any, guide: Any, modalities: Sequence[Modality], row: Batch) -> list[Modality]:
    """The modalities that can be given."""
    if len(row) != 1:
        raise ValueError(f"a sheet is of one row of data, got {len(row)}: pass one of them, such as batch[0]")
    if conditions := getattr(model, "conditioned_on", ()):
        raise ValueError(
            f"the model is conditioned on {list(conditions)}: no other modality can be given alone; cross_generation "
            "draws it"
        )
    names = [m.name for m in modalities]
    if not fits_sheet(model, guide, names):
        raise ValueError(f"a sheet needs a pair about two modalities or more, of {names}")
    seen = getattr(guide, "names", ()) or names
    found = [m for m in modalities if m.name in seen and bool(row.mask[m.name].any())]
    if not found:
        raise ValueError(f"nothing is present in the row of {list(seen)}")
    return found


def _sheet(plt: Any, cells: _Cells, look: Mapping[str, Look]) -> tuple[Sheet, Axes]:
    """Names, rules and cells."""
    columns = list(next(iter(cells.made.values())))
    widths = {m: width_of(look[m]) for m in look}
    tracks = [(0.06, max(HEIGHT, *(widths[m] for m in cells.given)))]
    tracks += [(0.08 if n else APART, max(widths[m], LETTER * len(m))) for n, m in enumerate(columns)]
    lines = [(0.0 if not n else 0.2 if len(group) > 1 else 0.08, HEIGHT) for n, group in enumerate(cells.made)]
    sheet = Sheet(plt, tracks, lines, left=0.3 + LETTER * max(map(len, (*cells.given, "all"))), top=0.72)
    _write_names(sheet, cells, look, columns)
    axes: Axes = {}
    for line, (group, made) in enumerate(cells.made.items()):
        if len(group) == 1:
            (m,) = group
            ax = axes[group, "given", m] = sheet.cell(line, 0, width=widths[m])
            _fill(ax, cells.given[m], look[m], "given")
            frame(ax, look[m].colour)
        for column, m in enumerate(columns, 1):
            ax = axes[group, "generated", m] = sheet.cell(line, column, width=widths[m])
            _fill(ax, made[m], look[m], "generated")
            frame(ax, *((tint(look[m].colour, 0.5), 1.4) if group == (m,) else ()))
    return sheet, axes


def _fill(ax: Any, content: Content, look: Look, mark: str) -> None:
    draw(ax, content, look)
    ax.set_gid(mark)


def _write_names(sheet: Sheet, cells: _Cells, look: Mapping[str, Look], columns: Sequence[str]) -> None:
    """Over the columns, and beside the lines."""
    (g0, g1), x0, x1 = sheet.x[0], sheet.x[1][0], sheet.x[-1][1]
    style: dict[str, Any] = {"fontsize": 10, "fontweight": "bold"}
    for (left, right), text in (((g0, g1), "given"), ((x0, x1), "generated")):
        sheet.write((left + right) / 2, 0.26, text, ha="center", va="bottom", fontsize=9.5, color=GREY)
        sheet.rule(left, right, 0.32, color=GREY, linewidth=0.8)
    for (left, right), m in zip(sheet.x[1:], columns, strict=True):
        sheet.write((left + right) / 2, 0.64, m, ha="center", va="bottom", color=look[m].colour, **style)
    for (top, bottom), group in zip(sheet.y, cells.made, strict=True):
        name, colour = (group[0], look[group[0]].colour) if len(group) == 1 else ("all", GREY)
        sheet.write(g0 - 0.12, (top + bottom) / 2, name, ha="right", va="center", color=colour, **style)
        if len(group) > 1:
            small: dict[str, Any] = {"color": GREY, "fontsize": 8.5, "style": "italic"}
            sheet.write((g0 + g1) / 2, (top + bottom) / 2, TOGETHER, ha="center", va="center", **small)
