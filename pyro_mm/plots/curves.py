"""Curves of training and the trustworthiness of likelihood estimates."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.psis import threshold
from pyro_mm.plots.style import GREY, INK, PALETTE, Place, colours, drawing, finish, tint

__all__ = ["khat_histogram", "loss_curves"]

Row = Mapping[str, Any]
NO_TERMS = {"stage", "epoch", "step", "seconds", "lr", "gradient_norm"}
VALIDATION = ("validation/", "val_", "val/")
COLUMNS = 3
FLOOR, CEILING = -1.0, 3.0  # of k-hats that are drawn where they are


def loss_curves(
    rows: Iterable[Row] | str | os.PathLike[str],
    terms: Sequence[str] | None = None,
    *,
    modalities: Sequence[str] = (),
    skip: int = 0,
    path: Place = None,
) -> tuple[Any, dict[str, Any]]:
    """The loss and every term of it by epoch, training solid and validation dashed; one panel per term.

    Args:
        rows: one mapping per epoch (`history.rows`), a `History`, or the path of its `log.csv`.
        terms: columns to draw, e.g. `["loss", "elbo/image"]`; default all that are numbers of the objective.
        modalities: in the order of the model, so that colours agree with other figures; default the order of columns.
        skip: leave out so many epochs at the start, which often dwarf the rest.
        path: save there as well.

    Returns:
        The figure, and its axes by term.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no rows, no such term, or a file that is no such table.
    """
    table = _read(rows)[skip:]
    if not table:
        raise ValueError(f"no epochs to draw{f' after the first {skip}' if skip else ''}")
    columns = list(dict.fromkeys(name for row in table for name in row))
    found = list(dict.fromkeys(_base(c) for c in columns if c not in NO_TERMS and _numeric(table, c)))
    if unknown := set(terms or ()) - set(found):
        raise ValueError(f"no column {sorted(unknown)}; there are {found}")
    terms = list(terms or found)
    if not terms:
        raise ValueError(f"the rows hold no loss and no terms; their columns are {columns}")
    parts = [t.rpartition("/")[2] for t in found if "/" in t and not t.endswith("/kl")]
    colour = colours([*modalities, *parts])
    x = _epochs(table, skip)
    with drawing() as plt:
        across = min(COLUMNS, len(terms))
        down = math.ceil(len(terms) / across)
        figure = plt.figure(figsize=(3.1 * across + 0.2, 2.1 * down + 0.5), layout="constrained")
        axes = {}
        for place, term in enumerate(terms):
            ax = axes[term] = figure.add_subplot(down, across, place + 1)
            _curve(ax, table, x, term, columns, colour.get(term.rpartition("/")[2], INK))
            if place + across >= len(terms):
                ax.set_xlabel("epoch")
        _stages(list(axes.values()), table, x)
        _legend(figure, columns, terms)
    finish(figure, path)
    return figure, axes


def khat_histogram(
    evidences: Evidence | Sequence[Evidence] | Mapping[str, Evidence], *, bins: int = 30, path: Place = None
) -> tuple[Any, dict[str, Any]]:
    """How heavy the tails of the importance weights are: k-hat of every datum, and its threshold.

    Estimates and standard errors of data right of the dashed line are not to be believed (Vehtari et al. 2024).
    Those above 3, and infinite ones (tails that cannot be fitted), are counted in a bar of their own at the right.

    Returns:
        The figure, and its axes by quantity.

    Raises:
        ValueError: there is nothing to draw.
    """
    named = by_quantity(evidences)
    values = {q: np.nan_to_num(e.khat.detach().double().cpu().numpy(), nan=np.inf) for q, e in named.items()}
    limits = [threshold(e.k) for e in named.values()]
    inside = [np.clip(v[v <= CEILING], FLOOR, CEILING) for v in values.values()]
    every = np.concatenate([*inside, limits, [0.0, 0.8]])
    edges = np.linspace(every.min() - 0.05, every.max() + 0.05, bins + 1)
    with drawing() as plt:
        size = (5.6, 1.65 * len(named) + 0.5)
        figure, grid = plt.subplots(len(named), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
        axes = dict(zip(named, grid[:, 0], strict=True))
        for place, (name, ax) in enumerate(axes.items()):
            _histogram(ax, name, values[name], named[name], edges, PALETTE[place % len(PALETTE)])
        grid[-1, 0].set_xlabel("Pareto k-hat")
    finish(figure, path)
    return figure, axes


def _read(rows: Iterable[Row] | str | os.PathLike[str]) -> list[Row]:
    if not isinstance(rows, str | os.PathLike):
        return list(rows)
    with open(Path(rows), encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    if not table:
        raise ValueError(f"{rows} holds no epochs")
    return [{k: _number(v) for k, v in row.items()} for row in table]


def _number(text: Any) -> Any:
    if text == "" or text is None:
        return math.nan
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def _numeric(table: Sequence[Row], column: str) -> bool:
    """Is it a column of numbers, not all missing?"""
    values = [row[column] for row in table if column in row]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return numbers and any(v == v for v in values)


def _base(column: str) -> str:
    """The term that a column is of: `validation/elbo` of `elbo`, `validation` of `loss`."""
    for prefix in VALIDATION:
        if column.startswith(prefix):
            return column.removeprefix(prefix)
    return "loss" if column == "validation" else column


def _epochs(table: Sequence[Row], skip: int) -> list[float]:
    """The rows' epochs; their numbers in order where stages begin at 1 again."""
    epochs = [row.get("epoch") for row in table]
    numbers = [float(e) for e in epochs if isinstance(e, int | float) and e == e]
    if len(numbers) == len(epochs) and all(a < b for a, b in pairwise(numbers)):
        return numbers
    return [skip + 1.0 + i for i in range(len(table))]


def _curve(ax: Any, table: Sequence[Row], x: Sequence[float], term: str, columns: Sequence[str], colour: str) -> None:
    for column in columns:
        if column in NO_TERMS or _base(column) != term:
            continue
        y = [row.get(column, math.nan) for row in table]
        style = {"linewidth": 1.7} if column == term else {"linewidth": 1.3, "linestyle": (0, (4, 2)), "alpha": 0.75}
        ax.plot(x, y, color=colour, marker="o" if len(x) == 1 else "", label=column, **style)
    ax.set_title(term, loc="left", color=colour, fontweight="bold")
    ax.set_ylabel("nats")
    ax.grid(axis="y")
    ax.margins(x=0.02)
    ax.locator_params(axis="x", integer=True, nbins=6)


def _stages(axes: Sequence[Any], table: Sequence[Row], x: Sequence[float]) -> None:
    """Where a stage begins: a line in every panel, its name in the first."""
    stages = [row.get("stage") for row in table]
    begins = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    if len(begins) < 2:
        return
    for ax in axes:
        for i in begins[1:]:
            ax.axvline((x[i] + x[i - 1]) / 2, color=GREY, linewidth=0.8, linestyle=":")
    first = axes[0]
    low, high = first.get_ylim()
    first.set_ylim(low, high + 0.16 * (high - low))  # room above the curves for the names
    for i in begins:
        place = first.get_xaxis_transform()
        first.text(x[i], 0.98, str(stages[i]), transform=place, va="top", fontsize=7, color=GREY)


def _legend(figure: Any, columns: Sequence[str], terms: Sequence[str]) -> None:
    """Solid and dashed, once for all panels, where there is validation."""
    from matplotlib.lines import Line2D

    if not any(_base(c) != c and _base(c) in terms for c in columns):
        return
    solid = Line2D([], [], color=INK, linewidth=1.7, label="training")
    dashed = Line2D([], [], color=INK, linewidth=1.3, linestyle=(0, (4, 2)), alpha=0.75, label="validation")
    figure.legend(handles=[solid, dashed], loc="outside lower center", ncols=2)


def by_quantity(evidences: Evidence | Sequence[Evidence] | Mapping[str, Evidence]) -> dict[str, Evidence]:
    if isinstance(evidences, Evidence):
        evidences = [evidences]
    if isinstance(evidences, Mapping):
        named = dict(evidences)
    else:
        named = {}
        for e in evidences:
            same = sum(name == e.quantity or name.startswith(f"{e.quantity} #") for name in named)
            named[f"{e.quantity} #{same + 1}" if same else e.quantity] = e
    if not named or not all(len(e) for e in named.values()):
        raise ValueError(f"no k-hats to draw: {', '.join(named) or 'no evidence was given'}")
    return named


def _histogram(ax: Any, name: str, khat: np.ndarray, evidence: Evidence, edges: np.ndarray, colour: str) -> None:
    limit, width = threshold(evidence.k), edges[1] - edges[0]
    counts, _ = np.histogram(np.clip(khat[khat <= CEILING], FLOOR, CEILING), edges)
    ax.bar(edges[:-1], counts, width=width, align="edge", color=tint(colour, 0.75), edgecolor="white", linewidth=0.5)
    if count := int((khat > CEILING).sum()):
        place = edges[-1] + 2 * width
        bar = {"width": 1.6 * width, "color": tint(colour, 0.3), "edgecolor": colour, "hatch": "////"}
        ax.bar([place], [count], **bar)
        ax.text(place, count, f"> {CEILING:g}", ha="center", va="bottom", fontsize=8, color=GREY)
    ax.margins(y=0.15)
    ax.axvline(limit, color=INK, linewidth=1.0, linestyle="--")
    share = evidence.unreliable_share
    ax.set_title(name, loc="left", color=colour, fontweight="bold")
    ax.set_title(f"{share:.1%} above {limit:.2f}  (K={evidence.k})", loc="right", fontsize=8.5, color=GREY)
    ax.set_ylabel("data")
    ax.locator_params(axis="y", integer=True, nbins=4)
