"""Is a guide calibrated, and how far apart are its bounds, for every subset of modalities."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pyro_mm.evaluation.calibration import Calibration, Divergence, mean_and_error
from pyro_mm.evaluation.ranks import POINTS, band
from pyro_mm.plots.sets import Subset
from pyro_mm.plots.style import GREY, INK, PALE, PALETTE, Place, drawing, finish

__all__ = ["bounds_by_subset", "calibration_ecdf"]

COLUMNS = 3
LABELLED = 4  # most curves of a panel that have a name
X = np.concatenate([[0.0], POINTS, [1.0]])
BANDS = ("#E9E9E9", "#D3D3D3")


def calibration_ecdf(
    calibration: Calibration,
    subset: str | Sequence[str] | None = None,
    quantities: Sequence[str] | None = None,
    *,
    level: float = 0.01,
    path: Place = None,
) -> tuple[Any, dict[Subset, Any]]:
    """How the ranks' distribution differs from the uniform one, a curve per quantity and a panel per subset.

    The dark band holds 95 % of the curves of an exact guide; the light one all of them together, over all subsets, with
    probability 1 - `level` (simultaneous bands of Säilynoja, Bürkner & Vehtari 2022).  A curve that leaves the light
    one is coloured: high and then low from too narrow a guide, the other way round from too wide a one, on one side
    from a shifted one.  Bands are those of the panel's most frequent quantities: ones with fewer rows have wider bands.

    Args:
        subset: one of the calibration's, a name or names; default all.
        quantities: those to draw; default all.
        level: of the light band.
        path: save there as well.

    Returns:
        The figure, and its axes by subset.

    Raises:
        ValueError: the calibration has no such subset or quantity.
    """
    panels = _panels(calibration, subset, quantities)
    flagged = {
        s: [q for q in names if q in panels[s]] for s, names in calibration.flagged(level).items() if s in panels
    }
    colour = _colours([names[:LABELLED] for names in flagged.values()])
    with drawing() as plt:
        across = min(COLUMNS, len(panels))
        down = math.ceil(len(panels) / across)
        figure = plt.figure(figsize=(3.3 * across + 0.3, 2.35 * down + 0.6), layout="constrained")
        axes = {}
        for place, (group, curves) in enumerate(panels.items()):
            ax = axes[group] = figure.add_subplot(down, across, place + 1)
            _bands(ax, max(map(len, curves.values())), level / calibration.tests)
            _curves(ax, curves, flagged[group], colour)
            _title(ax, group, flagged[group], len(curves), calibration.smallest[group])
            if place % across == 0:
                ax.set_ylabel("ECDF - uniform")
            if place + across >= len(panels):
                ax.set_xlabel("rank of the truth")
        others = any(len(names) > LABELLED for names in flagged.values())
        _legend(figure, level, calibration.tests, others, across)
    finish(figure, path)
    return figure, axes


def bounds_by_subset(
    divergences: Divergence | Mapping[str, Divergence], *, path: Place = None
) -> tuple[Any, dict[str, Any]]:
    """ELBO (filled) and EUBO (open) of the mean of log p(x_S) for every subset, one line per guide.

    The truth is between the two.  Nats are counted from the highest ELBO of a subset, which stands at its right; beside
    every line is EUBO - ELBO = E[KL(p || q) + KL(q || p)].  Bars are standard errors over simulated data.

    Args:
        divergences: one, or several by guide, on the same data (made with the same seed).
        path: save there as well.

    Returns:
        The figure, and its axes under "bounds".

    Raises:
        ValueError: guides have different subsets or numbers of data.
    """
    guides = {"": divergences} if isinstance(divergences, Divergence) else dict(divergences)
    groups = _shared(guides)
    step = 1.0 / (len(guides) + 0.6)
    with drawing() as plt:
        size = (6.4, (0.2 + 0.22 * len(guides)) * len(groups) + 1.0)
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        for row, group in enumerate(groups):
            best = max((d.elbo[group] for d in guides.values()), key=lambda v: v.mean().item())
            for place, (name, d) in enumerate(guides.items()):
                y = row + step * (place - (len(guides) - 1) / 2)
                _interval(ax, y, d, group, best, PALETTE[place % len(PALETTE)], name if row == 0 else "")
            inside = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8, "color": GREY}
            ax.text(1.02, row, f"{best.mean().item():.2f}", **inside)
        for row in range(1, len(groups)):
            ax.axhline(row - 0.5, color="#EEEEEE", linewidth=0.7)
        title = "best ELBO" if len(guides) > 1 else "ELBO"
        ax.text(1.02, 1.0, title, transform=ax.transAxes, fontsize=8, color=GREY)
        ax.set_yticks(range(len(groups)), [", ".join(g) for g in groups], fontsize=9, color=INK)
        ax.set(ylim=(len(groups) - 0.5, -0.5), xlabel=f"nats above the {title}")
        ax.tick_params(axis="y", length=0)
        ax.axvline(0, color=PALE, linewidth=0.8, zorder=0)
        ax.margins(x=0.12)
        for name, fill in (("ELBO", GREY), ("EUBO", "white")):
            ax.plot([], [], marker="o", color=GREY, markersize=5, markerfacecolor=fill, linestyle="", label=name)
        figure.legend(loc="outside upper center", ncols=min(6, len(guides) + 2), fontsize=8.5)
    finish(figure, path)
    return figure, {"bounds": ax}


def _panels(
    calibration: Calibration, subset: str | Sequence[str] | None, quantities: Sequence[str] | None
) -> dict[Subset, dict[str, Tensor]]:
    """The ranks to draw, by subset and quantity."""
    panels = calibration.ranks
    if subset is not None:
        asked = {subset} if isinstance(subset, str) else set(subset)
        panels = {s: of for s, of in panels.items() if set(s) == asked}
        if not panels:
            raise ValueError(f"no subset {sorted(asked)}; there are {[list(s) for s in calibration.ranks]}")
    if quantities is None:
        return panels
    known = dict.fromkeys(q for of in panels.values() for q in of)
    if unknown := [q for q in quantities if q not in known]:
        raise ValueError(f"no quantity {unknown}; there are {list(known)}")
    chosen = {s: {q: of[q] for q in quantities if q in of} for s, of in panels.items()}
    return {s: of for s, of in chosen.items() if of}


def _bands(ax: Any, n: int, level: float) -> None:
    """The band of all curves together, and that of one alone."""
    for shade, p in zip(BANDS, (level, 0.05), strict=True):
        low, high = band(n, p)
        edges = [np.concatenate([[0.0], edge - POINTS, [0.0]]) for edge in (low, high)]
        ax.fill_between(X, *edges, color=shade, linewidth=0)


def _curves(ax: Any, curves: Mapping[str, Tensor], flagged: Sequence[str], colour: Mapping[str, str]) -> None:
    named = flagged[:LABELLED]
    for name in sorted(curves, key=lambda q: -flagged.index(q) if q in flagged else -len(curves)):  # the worst on top
        u = np.sort(curves[name].cpu().numpy())
        y = np.searchsorted(u, POINTS, side="right") / len(u) - POINTS
        style: dict[str, Any] = {"color": GREY, "linewidth": 0.6, "alpha": 0.8, "label": f"_{name}"}
        if name in flagged:
            style |= {"color": INK, "linewidth": 0.9}
        if name in named:
            style |= {"color": colour[name], "linewidth": 1.5, "alpha": 1.0, "label": name}
        ax.plot(X, np.concatenate([[0.0], y, [0.0]]), **style)
    low, high = ax.dataLim.intervaly
    room = 0.32 if named else 0.06  # above the curves, for their names
    ax.set(xlim=(0, 1), ylim=(low - 0.06 * (high - low), high + room * (high - low)))
    ax.locator_params(axis="y", nbins=5)
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    if named:
        handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        style = {"fontsize": 7.5, "handlelength": 1.2, "labelspacing": 0.25, "columnspacing": 1.2, "borderaxespad": 0.1}
        ax.legend([handles[q] for q in named], named, loc="upper left", ncols=2, **style)


def _colours(panels: Sequence[Sequence[str]]) -> dict[str, str]:
    """A colour per quantity, the same in every panel, and another than its neighbours' while there are enough."""
    colour: dict[str, str] = {}
    for q in dict.fromkeys(q for names in panels for q in names):
        beside = {colour.get(other) for names in panels if q in names for other in names}
        used = list(colour.values())
        colour[q] = min(PALETTE[:-1], key=lambda c: (c in beside, used.count(c)))  # the last is a grey
    return colour


def _title(ax: Any, group: Subset, flagged: Sequence[str], count: int, p: float) -> None:
    ax.set_title("\n".join(textwrap.wrap(f"given {', '.join(group)}", 26)), loc="left", fontweight="bold")
    verdict = f"{len(flagged)} of {count} fail" if flagged else f"adjusted p {p:.2g}"
    ax.set_title(verdict, loc="right", fontsize=8.5, color=PALETTE[1] if flagged else GREY)


def _legend(figure: Any, level: float, tests: int, others: bool, columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(color=BANDS[1], label="exact guide: 95% of single curves"),
        Patch(color=BANDS[0], label=f"all {tests} curves, with probability {1 - level:g}"),
        Line2D([], [], color=GREY, linewidth=0.6, label="passes"),
    ]
    handles += [Line2D([], [], color=INK, linewidth=0.9, label="fails, too")] if others else []
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) if columns > 1 else 1, fontsize=8)


def _shared(guides: Mapping[str, Divergence]) -> list[Subset]:
    """The subsets that all guides have."""
    if not guides:
        raise ValueError("no divergences to draw")
    shapes = {name: {s: len(v) for s, v in d.elbo.items()} for name, d in guides.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise ValueError(f"'{name}' has data {shape}, '{first}' {shapes[first]}: use the same batch and subsets")
    return list(shapes[first])


def _interval(ax: Any, y: float, d: Divergence, group: Subset, best: Tensor, colour: str, name: str) -> None:
    """One line: both ends above the best ELBO, paired over data."""
    ends = [mean_and_error((of[group] - best).double()) for of in (d.elbo, d.eubo)]
    (low, _), (high, error) = ends
    ax.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt", zorder=2)
    dot = {"marker": "o", "markersize": 5, "markeredgecolor": colour, "linestyle": "", "zorder": 3}
    for (x, bar), fill in zip(ends, (colour, "white"), strict=True):
        ax.errorbar(x, y, xerr=bar, color=colour, linewidth=0.8, capsize=2, zorder=2.5)
        ax.plot([x], [y], markerfacecolor=fill, **dot)
    style = {"textcoords": "offset points", "va": "center", "fontsize": 7.5, "color": colour}
    ax.annotate(f"{d.gap(*group)[0]:.2g}", (high + max(0.0, error), y), (6, 0), **style)
    if name:
        ax.plot([], [], color=colour, marker="o", markersize=5, label=name)
