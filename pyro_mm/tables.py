"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "markdown"]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of equal columns, two spaces apart: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))]).rstrip()
        for r in rows
    ]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first row its head; a bar within a cell, as in p(x | y), is escaped."""
    head, *rest = ["| " + " | ".join(cell.replace("|", "\\|") for cell in r) + " |" for r in rows]
    return [head, "|" + " --- |" * len(rows[0]), *rest]
