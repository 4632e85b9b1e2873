"""The figures of docs/performance.md: growth with modalities and with everything else, and time against accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import scaling
from matplotlib.figure import Figure

__all__ = ["draw"]


def draw(found: Mapping[str, Any], folder: Path) -> dict[str, tuple[str, Path]]:
    """A PNG for everything that can be drawn: what it shows, and where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    out = {name: (title, folder / f"{name}.png") for name, (title, _) in FIGURES.items() if name in found}
    for name, (_, path) in out.items():
        FIGURES[name][1](found[name]).savefig(path, dpi=120)
    return out


def of_modalities(cells: list[dict[str, Any]]) -> Figure:
    """Milliseconds against the number of modalities, one panel per width."""
    widths = list(dict.fromkeys(f["width"] for f in cells))
    figure, axes = panels(len(widths))
    names = list(dict.fromkeys(f["variant"] for f in cells))
    for ax, width in zip(axes, widths, strict=True):
        for i, name in enumerate(names):
            own = [f for f in cells if (f["width"], f["variant"]) == (width, name)]
            for kind, line in (("eager", "o-"), ("compiled", "s:"), ("MultiVae", "x--")):
                points = [(f["modalities"], f[kind]) for f in own if isinstance(f.get(kind), float)]
                if points:
                    label = name if kind == "eager" and ax is axes[0] else None
                    ax.plot(*zip(*points, strict=True), line, color=f"C{i}", markersize=4, label=label)
        ax.set(title=f"width {width}", xlabel="modalities", ylabel="ms per step", yscale="log")
        ax.set_xticks(sorted({f["modalities"] for f in cells}))
    for line, kind in (("o-", "eager"), ("s:", "compiled"), ("x--", "MultiVae")):
        axes[0].plot([], [], line, color="grey", markersize=4, label=kind)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def of_scaling(found: Mapping[str, Any]) -> Figure:
    """Milliseconds against what grows, ours and by hand."""
    figure, axes = panels(len(found))
    for ax, (what, panel) in zip(axes, found.items(), strict=True):
        for name, line in ((scaling.OURS, "o-"), (scaling.HAND, "x--")):
            ax.plot(panel["points"], panel[name], line, markersize=4, label=name)
        ax.set(xlabel=what, ylabel="ms", xscale="log", yscale="log")
    axes[0].legend(fontsize=8)
    return figure


def of_accuracy(found: Mapping[str, Any]) -> Figure:
    """Root mean square error against seconds; memory against draws."""
    figure, (left, right) = panels(2)
    for name, row in found["time"].items():
        left.plot(row["seconds"], row["rms"], "o", label=name)
    left.set(xlabel="CPU s", ylabel="rms error, nats", xscale="log", yscale="log")
    left.legend(fontsize=8)
    for name, row in found["memory"].items():
        right.plot([int(k) for k in row], list(row.values()), "o-", markersize=4, label=name)
    right.axhline(64, color="grey", linestyle=":", label="aim")
    right.set(xlabel="draws", ylabel="extra memory, MB", xscale="log")
    right.legend(fontsize=8)
    return figure


def panels(count: int) -> tuple[Figure, Any]:
    """A row of axes."""
    figure = Figure(figsize=(3.6 * count + 1, 3.2), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


FIGURES: dict[str, tuple[str, Any]] = {
    "modalities": ("a step against the number of modalities", of_modalities),
    "scaling": ("steps and likelihoods against rows, particles and draws", of_scaling),
    "accuracy": ("error against time, memory against draws", of_accuracy),
}
