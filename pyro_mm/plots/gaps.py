"""Where bounds lose their nats, for every subset of modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_mm.evaluation.collapse import finite
from pyro_mm.evaluation.gaps import Gaps, Nats, Split
from pyro_mm.plots.sets import Subset
from pyro_mm.plots.style import GREY, INK, PALETTE, Place, drawing, finish, tint

__all__ = ["gaps_by_subset"]

PARTS = {"amortisation": PALETTE[0], "family": PALETTE[1]}
HEIGHT, APART = 0.56, 0.13  # of a bar; of its two error bars from its middle
HATCHED: dict[str, Any] = {"hatch": "/////", "edgecolor": "white", "linewidth": 0.0}


def gaps_by_subset(found: Gaps | Mapping[str, Gaps], *, path: Place = None) -> tuple[Any, dict[str, Any]]:
    """Amortisation and family gap of every subset as stacked bars, a panel per guide: together log p(x_S) - ELBO(q).

    The sum stands beside the bar, the ELBO at the right.  The hatched part of the family gap is what a Gaussian with
    full covariance would close.  A negative gap goes to the left of 0, and a tick marks the sum.  Error bars are
    standard errors over data.

    Args:
        found: one result, or several by guide, of the same subsets.
        path: save there as well.

    Returns:
        The figure, and its axes by guide, or as "gaps".

    Raises:
        ValueError: there is nothing to draw, or guides have different subsets.
    """
    guides = {"": found} if isinstance(found, Gaps) else dict(found)
    groups = _shared(guides)
    with drawing() as plt:
        size = (1.6 + 3.9 * len(guides), 0.42 * len(groups) + 1.25)
        figure, grid = plt.subplots(1, len(guides), figsize=size, sharex=True, squeeze=False, layout="constrained")
        axes = {name or "gaps": ax for name, ax in zip(guides, grid[0], strict=True)}
        for place, (name, ax) in enumerate(zip(guides, axes.values(), strict=True)):
            for row, group in enumerate(groups):
                _stack(ax, row, guides[name].splits[group])
            _frame(ax, groups if place == 0 else [], len(groups))
            ax.set_title(name, loc="left", fontweight="bold")
        _legend(figure)
    finish(figure, path)
    return figure, axes


def _shared(guides: Mapping[str, Gaps]) -> list[Subset]:
    """The subsets that all guides have."""
    if not guides:
        raise ValueError("there are no gaps to draw")
    first = next(iter(guides))
    groups = list(guides[first].splits)
    for name, other in guides.items():
        if set(other.splits) != set(groups):
            raise ValueError(f"'{name}' has subsets {list(other.splits)}, '{first}' {groups}: use the same")
    return groups


def _stack(ax: Any, row: int, split: Split) -> None:
    """Positive gaps to the right of 0, negative ones to the left, and their sum."""
    ends, reach, sign = {True: 0.0, False: 0.0}, 0.0, False
    for (name, colour), shift in zip(PARTS.items(), (-APART, APART), strict=True):
        gap: Nats = getattr(split, name)
        side, error = gap.mean >= 0, finite(gap.mean_se) or 0.0
        start = ends[side]
        ends[side] = start + gap.mean
        ax.barh(row, gap.mean, HEIGHT, left=start, color=tint(colour, 0.75))
        if name == "family" and (part := min(split.covariance.mean, gap.mean)) > 0:
            ax.barh(row, part, HEIGHT, left=start, color="none", **HATCHED)
        ax.errorbar(ends[side], row + shift, xerr=error, color=INK, linewidth=0.8, capsize=2)
        reach, sign = max(reach, ends[side] + error), sign or gap.mean < -2 * error
    total = split.amortisation.mean + split.family.mean
    if sign:
        ax.plot([total] * 2, [row - HEIGHT / 2, row + HEIGHT / 2], color=INK, linewidth=1.6, label="_total")
    style = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    ax.annotate(_short(total), (reach, row), (5, 0), color=INK, **style)
    at = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8, "color": GREY}
    ax.text(1.02, row, _short(split.guide.mean), **at)


def _short(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def _frame(ax: Any, names: list[Subset], rows: int) -> None:
    ax.set_yticks(range(rows), [", ".join(group) for group in names] or [""] * rows, fontsize=9, color=INK)
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(rows - 0.5, -0.5), xlabel="nats a row")
    ax.text(1.02, 1.0, "ELBO", transform=ax.transAxes, fontsize=8, color=GREY)
    ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    ax.margins(x=0.16)
    ax.locator_params(axis="x", nbins=6)


def _legend(figure: Any) -> None:
    from matplotlib.patches import Patch

    words = {"amortisation": "amortisation gap", "family": "family gap"}
    handles = [Patch(facecolor=tint(colour, 0.75), label=words[name]) for name, colour in PARTS.items()]
    handles.append(Patch(facecolor=tint(PARTS["family"], 0.75), label="closed by a full covariance", **HATCHED))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8.5)
