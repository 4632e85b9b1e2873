"""What all figures share: colours, type, saving, closing, and sheets of cells at exact places."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_mm.files import write_atomic

__all__ = ["Sheet", "close", "colours", "drawing", "finish", "tint"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7A5195", "#6B6B6B")  # Okabe & Ito
INK, GREY, PALE = "#222222", "#777777", "#C4C4C4"
RC: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # a caption may hold a dollar sign
    "hatch.color": PALE,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
Place = str | os.PathLike[str] | None


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour per modality, by its place: the same in every figure of the same modalities."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}


def tint(colour: str, amount: float) -> tuple[float, float, float]:
    """The colour mixed with white: 0 is white, 1 the colour."""
    from matplotlib.colors import to_rgb

    r, g, b = (1 - amount * (1 - c) for c in to_rgb(colour))
    return r, g, b


@contextmanager
def drawing() -> Iterator[Any]:
    """`matplotlib.pyplot` under this library's style; the user's own settings are put back."""
    import matplotlib.pyplot as plt

    settings: Any = RC  # matplotlib types the keys as literals
    interactive = plt.isinteractive()
    try:
        with plt.rc_context(settings):
            yield plt
            interactive = plt.isinteractive()
    finally:
        # A notebook's backend turns this on with the first figure; the context would turn it off again.
        plt.interactive(interactive)


def finish(figure: Any, path: Place) -> None:
    """Save the figure, complete or not at all, in the format of the path's suffix (PNG without one).

    Raises:
        ValueError: matplotlib has no such format.
        OSError: naming the file.
    """
    if path is None:
        return
    path = Path(path)
    kind = path.suffix.lstrip(".") or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind.lower() not in known:
        raise ValueError(f"{path}: matplotlib writes no '.{kind}'; it writes {', '.join(sorted(known))}")
    with drawing():
        write_atomic(path, lambda file: figure.savefig(file, format=kind.lower(), dpi=160))


def close(*figures: Any) -> None:
    """Free figures; `close()` without any frees all that pyplot holds."""
    import matplotlib.pyplot as plt

    for figure in figures or ("all",):
        plt.close(figure)


class Sheet:
    """A figure of cells in columns and lines, placed to the inch: nothing moves, nothing overlaps.

    Args:
        columns: (gap before it, width) of every column.
        lines: (gap above it, height) of every line, from the top.
        left, top: margins, for the lines' and the columns' names.
    """

    def __init__(
        self,
        plt: Any,
        columns: Sequence[tuple[float, float]],
        lines: Sequence[tuple[float, float]],
        left: float = 1.2,
        top: float = 0.7,
    ) -> None:
        self.x = _edges(columns, left)
        self.y = _edges(lines, top)
        self.width, self.height = self.x[-1][1] + 0.15, self.y[-1][1] + 0.15
        self.figure = plt.figure(figsize=(self.width, self.height))

    def cell(self, line: int, column: int, last: int | None = None, width: float | None = None) -> Any:
        """New axes in this cell, or over the columns from `column` to `last`; of this width, in the cell's middle."""
        x0, x1 = self.x[column][0], self.x[column if last is None else last][1]
        y0, y1 = self.y[line]
        if width is not None:
            x0, x1 = (x0 + x1 - width) / 2, (x0 + x1 + width) / 2
        box = (x0 / self.width, 1 - y1 / self.height, (x1 - x0) / self.width, (y1 - y0) / self.height)
        return self.figure.add_axes(box)

    def write(self, x: float, y: float, text: str, **style: Any) -> Any:
        """Text at inches from the left and from the top."""
        return self.figure.text(x / self.width, 1 - y / self.height, text, **style)

    def rule(self, x0: float, x1: float, y: float, **style: Any) -> Any:
        """A horizontal line, in inches from the left and from the top."""
        from matplotlib.lines import Line2D

        line = Line2D(
            [x0 / self.width, x1 / self.width], [1 - y / self.height] * 2, transform=self.figure.transFigure, **style
        )
        return self.figure.add_artist(line)


def _edges(tracks: Sequence[tuple[float, float]], start: float) -> list[tuple[float, float]]:
    """Where each track begins and ends."""
    edges = []
    for gap, size in tracks:
        edges.append((start + gap, start + gap + size))
        start += gap + size
    return edges
