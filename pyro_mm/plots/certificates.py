"""Certificates as intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_mm.evaluation.certificate import Certificate
from pyro_mm.plots.style import GREY, INK, PALETTE, Place, drawing, finish

__all__ = ["certificates"]

Found = Mapping[str, Sequence[Certificate]] | Sequence[Certificate] | Certificate


def certificates(found: Found, *, path: Place = None) -> tuple[Any, dict[str, Any]]:
    """Lower and upper ends of every certificate, in nats around the middle of the narrowest of its quantity.

    A line is the mean interval that encloses the mean of the true values in expectation; the whisker on its upper end
    is the standard error of its width.  Each line is labelled with its gap.

    Args:
        found: certificates by quantity, as `Certification.certificates`, or a list of them, or one.

    Returns:
        The figure, and its axes by quantity.

    Raises:
        ValueError: there is nothing to draw.
    """
    grouped = _grouped(found)
    lines = sum(len(group) for group in grouped.values())
    if not lines:
        raise ValueError("no certificates to draw")
    with drawing() as plt:
        heights = [len(group) + 0.4 for group in grouped.values()]
        size = (6.0, 0.42 * sum(heights) + 0.42 * len(grouped) + 0.4)
        figure, grid = plt.subplots(
            len(grouped), 1, figsize=size, squeeze=False, layout="constrained", height_ratios=heights
        )
        axes = dict(zip(grouped, grid[:, 0], strict=True))
        for place, (name, ax) in enumerate(axes.items()):
            _panel(ax, name, grouped[name], PALETTE[place % len(PALETTE)])
        grid[-1, 0].set_xlabel("nats from the middle of the narrowest interval")
    finish(figure, path)
    return figure, axes


def _panel(ax: Any, name: str, group: Sequence[Certificate], colour: str) -> None:
    best = min(group, key=lambda c: abs(c.gap))
    middle = (best.mean_lower + best.mean_upper) / 2
    for place, c in enumerate(group):
        low, high = c.mean_lower - middle, c.mean_upper - middle
        ax.plot(
            [low, high], [place, place], color=colour, linewidth=3.0, solid_capstyle="butt", marker="|", markersize=11
        )
        ax.errorbar([high], [place], xerr=[c.gap_se], color=INK, linewidth=0.9, capsize=2.5)
        text = f"gap {c.gap:.3g} +- {c.gap_se:.1g}"
        ax.annotate(
            text, (max(low, high) + c.gap_se, place), (5, 0), textcoords="offset points", va="center", fontsize=7.5
        )
    ax.axvline(0, color=GREY, linewidth=0.7, linestyle=":")
    ax.set_yticks(range(len(group)), [_label(c) for c in group])
    ax.set_ylim(len(group) - 0.4, -0.6)
    ax.margins(x=0.45)
    ax.locator_params(axis="x", nbins=5)
    ax.set_title(f"{name}: {middle:.2f} nats", loc="left", color=colour, fontweight="bold")


def _label(c: Certificate) -> str:
    more = c.settings.get("temperatures")
    return f"{c.method}, K={c.k}" if more is None else f"{c.method}, T={more}"


def _grouped(found: Found) -> dict[str, list[Certificate]]:
    if isinstance(found, Certificate):
        found = [found]
    if isinstance(found, Mapping):
        return {name: list(group) for name, group in found.items() if group}
    grouped: dict[str, list[Certificate]] = {}
    for c in found:
        grouped.setdefault(c.quantity, []).append(c)
    return grouped
