"""What a system is good for: its label under spoilt inputs, and what it finds in a gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_mm.plots.style import GREY, PALETTE, Place, drawing, finish, tint

__all__ = ["accuracy_curves", "retrieval_chart"]

Entry = Mapping[str, Any]
MARKS = "os^Dv<>P*X"


def accuracy_curves(
    found: Sequence[Entry], *, kind: str = "noise", chance: float | None = None, path: Place = None
) -> tuple[Any, dict[str, Any]]:
    """Accuracy of the label against how far inputs are spoilt, a curve for every set of them, with 95 % intervals.

    Args:
        found: what `tasks.classification` returns, or "classification" of a run's tasks.json.
        kind: of corruption, for the axis.
        chance: the accuracy of a guess, drawn as a line.
        path: save there as well.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not found:
        raise ValueError("there are no accuracies to draw")
    sets = list(dict.fromkeys(tuple(e["given"]) for e in found))
    with drawing() as plt:
        figure, ax = plt.subplots(figsize=(6.4, 0.6 + max(2.8, 0.24 * len(sets))), layout="constrained")
        for i, given in enumerate(sets):
            entries = sorted((e for e in found if tuple(e["given"]) == given), key=lambda e: e["noise"])
            x, y = [e["noise"] for e in entries], [100 * e["accuracy"] for e in entries]
            colour = PALETTE[i % len(PALETTE)]
            ends = [[100 * e[k] for e in entries] for k in ("low", "high")]
            ax.fill_between(x, *ends, color=tint(colour, 0.18), linewidth=0)
            ax.plot(x, y, marker=MARKS[i % len(MARKS)], markersize=4, color=colour, label=", ".join(given))
        if chance is not None:
            ax.axhline(100 * chance, color=GREY, linewidth=0.9, linestyle=":")
        unit = "noise, root mean square in standard deviations" if kind == "noise" else f"share of {_spaced(kind)}"
        ax.set(xlabel=unit, ylabel="accuracy of the label, %", ylim=(0, 101))
        ax.grid(axis="y")
        figure.legend(title="given", loc="outside right center", fontsize=8, title_fontsize=8)
        finish(figure, path)
    return figure, {"accuracy": ax}


def retrieval_chart(
    found: Sequence[Entry], *, score: str | None = None, path: Place = None
) -> tuple[Any, dict[str, Any]]:
    """Recall among the first 1, 5 and 10, and mean average precision, by direction, with intervals and chance.

    Args:
        found: what `tasks.retrieval` returns, or "retrieval" of a run's tasks.json.
        score: one of several that were measured; default the first.
        path: save there as well.

    Raises:
        ValueError: there is nothing to draw.
    """
    wanted = score or (found[0]["score"] if found else "")
    entries = [e for e in found if e["score"] == wanted]
    if not entries:
        raise ValueError(f"there is no retrieval by '{wanted}' to draw")
    panels = {
        "own row: R@1, R@5, R@10": [e for e in entries if e["recall"]],
        "own class: mean average precision": [e for e in entries if e["mean_precision"]],
    }
    panels = {title: shown for title, shown in panels.items() if shown}
    axes: dict[str, Any] = {}
    with drawing() as plt:
        size = (1.4 + 3.9 * len(panels), 0.28 * max(map(len, panels.values())) + 1.1)
        figure, grid = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
        for ax, (title, shown) in zip(grid[0], panels.items(), strict=True):
            for line, e in enumerate(shown):
                measures = list(e["recall"].values()) if title.startswith("own row") else [e["mean_precision"]]
                for m, colour in zip(measures, PALETTE, strict=False):
                    _measure(ax, line, m, colour)
            ax.set_yticks(range(len(shown)), [f"{', '.join(e['given'])} → {', '.join(e['of'])}" for e in shown])
            ax.set(xlim=(0, 101), xlabel="%", ylim=(len(shown) - 0.4, -0.6))
            ax.set_title(title, loc="left", fontsize=9, fontweight="bold")
            ax.grid(axis="x")
            axes["recall" if title.startswith("own row") else "precision"] = ax
        figure.suptitle(f"{_spaced(wanted)}; grey ticks: a random order", fontsize=8, color=GREY, x=0.01, ha="left")
        finish(figure, path)
    return figure, axes


def _measure(ax: Any, line: int, m: Mapping[str, float], colour: str) -> None:
    ax.plot([100 * m["low"], 100 * m["high"]], [line, line], color=colour, linewidth=1.6, alpha=0.7)
    ax.plot(100 * m["value"], line, "o", markersize=4, color=colour)
    ax.plot(100 * m["chance"], line, "|", markersize=8, color=GREY)


def _spaced(name: str) -> str:
    return name.replace("_", " ")
