"""Lines of cells, grouped in columns by modality: the common body of the grid figures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyro_mm.modality import Modality
from pyro_mm.plots.contents import Content
from pyro_mm.plots.show import WIDTH, Hook, Look, draw, looks
from pyro_mm.plots.style import GREY, INK, PALE, Place, Sheet, colours, drawing, finish

__all__ = ["HEIGHT", "Cells", "Line", "frame", "hatch", "width_of"]

Axes = dict[tuple[Any, ...], Any]
HEIGHT, BETWEEN = 0.9, 0.3  # inches: of a cell, and between modalities
FRAME = 2.4  # points, round what is given


@dataclass
class Line:
    """What is drawn in one line of every modality's block.

    Attributes:
        key: of its axes, before modality and row.
        title: in small type at the left.
        contents: by modality one cell per row; None is an empty cell.  A modality that is absent has no cells.
        marks: by modality one word per row: `given` is framed, `hidden` and `missing` are hatched and say so.
        gap: inches above the line.
        name: in large type above the title, for a block that begins here.
    """

    key: tuple[Any, ...]
    title: str
    contents: Mapping[str, Sequence[Content | None]]
    marks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    gap: float = 0.0
    name: str = ""


class Cells:
    """Collects lines, then draws them: only then is it known which ranges of values all cells share.

    Args:
        modalities: of which some may have no cells.
        rows: data, or draws, per modality.
        side_by_side: modalities are groups of columns; else they are blocks of lines, and a column is one datum.
        corner: what the names at the left are, or what `heads` are, over them.
        heads: over the columns, for blocks of lines.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        rows: int,
        side_by_side: bool,
        corner: str = "",
        heads: Sequence[str] = (),
    ) -> None:
        self.modalities, self.rows, self.side_by_side = list(modalities), rows, side_by_side
        self.corner, self.heads = corner, heads
        self.lines: list[Line] = []

    def add(self, line: Line) -> None:
        """One more line, below."""
        self.lines.append(line)

    def drawn(self, show: Mapping[str, Hook] | None, path: Place) -> tuple[Any, Axes]:
        """The figure and its axes by `(*line's key, modality, row)`; hidden cells of a modality share one axes."""
        used = [m for m in self.modalities if any(m.name in line.contents for line in self.lines)]
        found = {m.name: [c for line in self.lines for c in line.contents.get(m.name, ()) if c] for m in used}
        look = looks(self.modalities, colours(m.name for m in self.modalities), found, show)
        blocks = [look[m.name] for m in used]
        axes: Axes = {}
        with drawing() as plt:
            sheet = self._beside(plt, blocks, axes) if self.side_by_side else self._below(plt, blocks, axes)
        finish(sheet.figure, path)
        return sheet.figure, axes

    def _beside(self, plt: Any, blocks: Sequence[Look], axes: Axes) -> Sheet:
        """Modalities side by side, named at the top."""
        columns = []
        for n, block in enumerate(blocks):
            columns += [(BETWEEN if n and not row else 0.06, width_of(block)) for row in range(self.rows)]
        lines = [(line.gap if number else 0.0, HEIGHT) for number, line in enumerate(self.lines)]
        names = [name for line in self.lines for name in _wrapped(line.name)]
        sheet = Sheet(plt, columns, lines, self._margin(names), top=0.5)
        sheet.write(sheet.x[0][0] - 0.14, 0.36, self.corner, ha="right", va="bottom", fontsize=9.5, color=GREY)
        for place, block in enumerate(blocks):
            first = place * self.rows
            x0, x1 = sheet.x[first][0], sheet.x[first + self.rows - 1][1]
            style = {"ha": "center", "va": "bottom", "fontsize": 11, "fontweight": "bold"}
            sheet.write((x0 + x1) / 2, 0.36, block.modality.name, color=block.colour, **style)
            sheet.rule(x0, x1, 0.42, color=block.colour, linewidth=1.4)
            for number, line in enumerate(self.lines):
                self._strip(sheet, line, block, number, first, axes)
        for number, line in enumerate(self.lines):
            _entitle(sheet, number, line.title, line.name)
        return sheet

    def _below(self, plt: Any, blocks: Sequence[Look], axes: Axes) -> Sheet:
        """Modalities one below the other, named at the left."""
        width = max(map(width_of, blocks))
        strips = [(b, line) for b in blocks for line in self.lines if b.modality.name in line.contents]
        starts = [n == 0 or strips[n - 1][0] is not block for n, (block, _) in enumerate(strips)]
        lines = [(0.2 if start and n else 0.05, HEIGHT) for n, start in enumerate(starts)]
        top = 0.34 if self.heads else 0.12
        margin = self._margin([self.corner, *(b.modality.name for b in blocks)])
        sheet = Sheet(plt, [(0.06, width)] * self.rows, lines, margin, top)
        style: dict[str, Any] = {"va": "bottom", "fontsize": 9, "color": GREY}
        for (x0, x1), head in zip(sheet.x, self.heads, strict=False):
            sheet.write((x0 + x1) / 2, top - 0.06, head, ha="center", **style)
        sheet.write(sheet.x[0][0] - 0.14, top - 0.06, self.corner, ha="right", **style)
        for number, ((block, line), start) in enumerate(zip(strips, starts, strict=True)):
            _entitle(sheet, number, line.title, block.modality.name if start else "", block.colour)
            self._strip(sheet, line, block, number, 0, axes)
        return sheet

    def _margin(self, names: Sequence[str]) -> float:
        """Wide enough for the longest word at the left."""
        small = max((len(line.title) for line in self.lines), default=0)
        return 0.3 + max(0.068 * small, 0.095 * max(map(len, names), default=0))

    def _strip(self, sheet: Sheet, line: Line, look: Look, number: int, first: int, axes: Axes) -> None:
        """The cells of one modality in one line."""
        name = look.modality.name
        if name not in line.contents:
            return
        marks = line.marks.get(name, [""] * self.rows)
        if all(mark == "hidden" for mark in marks):
            ax = sheet.cell(number, first, first + self.rows - 1)
            hatch(ax, "hidden")
            axes.update({(*line.key, name, row): ax for row in range(self.rows)})
            return
        for row, (content, mark) in enumerate(zip(line.contents[name], marks, strict=True)):
            ax = axes[(*line.key, name, row)] = sheet.cell(number, first + row, width=width_of(look))
            if content is None:
                hatch(ax, mark)
                continue
            draw(ax, content, look)
            frame(ax, look.colour if mark == "given" else None)
            ax.set_gid(mark or "generated")


def width_of(look: Look) -> float:
    """Of a cell, in inches; an image keeps its proportions within reason."""
    shape = look.modality.shape
    if look.kind == "image" and look.hook is None:
        height, width = shape[-2:] if len(shape) == 2 or shape[0] in (1, 3) else shape[:2]
        return HEIGHT * min(max(width / height, 0.5), 2.0)
    return WIDTH.get(look.kind, HEIGHT)


def _entitle(sheet: Sheet, number: int, title: str, name: str, colour: str = INK) -> None:
    """A line's title beside it; the name of a block that begins here at the line's upper edge."""
    y0, y1 = sheet.y[number]
    x = sheet.x[0][0] - 0.14
    small: dict[str, Any] = {"ha": "right", "color": GREY, "fontsize": 8}
    if lines := _wrapped(name):
        style = {"ha": "right", "color": colour, "fontweight": "bold", "fontsize": 9.5}
        sheet.write(x, y0, "\n".join(lines), va="top", **style)
    if len(lines) > 1:
        sheet.write(x, y1 - 0.03, title, va="bottom", **small)
    else:
        sheet.write(x, (y0 + y1) / 2, title, va="center", **small)


def frame(ax: Any, colour: Any = None, width: float = FRAME) -> None:
    """A frame in this colour, or the hairline that any cell has."""
    ax.set_box_aspect(ax.bbox.height / ax.bbox.width)  # an image is centred in its cell instead of shrinking the frame
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(PALE if colour is None else colour)
        spine.set_linewidth(0.7 if colour is None else width)


def hatch(ax: Any, mark: str) -> None:
    """An empty cell that says why."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_facecolor("#FAFAFA")
    ax.patch.set_hatch("////")
    ax.patch.set_edgecolor("#D8D8D8")
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color("#D8D8D8")
    box = {"facecolor": "#FAFAFA", "edgecolor": "none", "pad": 2.0}
    ax.text(0.5, 0.5, mark, transform=ax.transAxes, ha="center", va="center", fontsize=8, color=GREY, bbox=box)
    ax.set_gid(mark)


def _wrapped(name: str) -> list[str]:
    """A block's name: up to four modalities one per line, more of them together in lines."""
    parts = name.split(", ")
    if len(parts) <= 4:
        return [line for part in parts for line in textwrap.wrap(part, 18)]
    return textwrap.wrap(name, 18, max_lines=4, placeholder=" …")
