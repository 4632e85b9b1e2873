"""What the benchmarks share: runs that are trained once, plans that must agree, tables and panels."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["data_set", "of_one_plan", "over_seeds", "panels", "require_same_plan", "trained_run"]

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def data_set(name: str, root: str | None) -> Any:
    """A data set by name, from a folder if one is given."""
    from pyro_mm.data import available

    return available()[name](**({"root": root} if root else {}))


def trained_run(settings: Any, folder: Path, device: str, *, progress: bool = False) -> Any:
    """The run of these settings, trained to its end if it is not, with its model on the device."""
    from pyro_mm.contest import trained

    run = trained(settings, folder, device, progress=progress)
    for module in run.recipe.modules.values():
        module.to(device).eval()
    return run


def require_same_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Stop where a measurement was made by another plan than the one asked for."""
    there = json.loads(path.read_text())["plan"]
    if there != json.loads(json.dumps(plan)):
        raise SystemExit(f"{path} was measured by another plan, {there}: choose another --out")


def of_one_plan(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plan of all these measurements."""
    plans = [e["plan"] for e in found.values()]
    if any(plan != plans[0] for plan in plans):
        different = "; ".join(f"{n}: {e['plan']}" for n, e in found.items())
        raise SystemExit(f"these were measured by different plans, so they cannot share a table: {different}")
    return plans[0]  # type: ignore[no-any-return]


def over_seeds(values: Sequence[float]) -> str:
    """Mean, and standard deviation over seeds if there are several."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def panels(titles: Mapping[str, Curves], xlabel: str, path: Path, *, log: bool = False) -> None:
    """A figure with one panel per title and in each one curve per name, of one colour in all panels."""
    from matplotlib.figure import Figure

    colour = {n: f"C{i}" for i, n in enumerate(dict.fromkeys(n for curves in titles.values() for n in curves))}
    figure = Figure(figsize=(4.5 * len(titles) + 1.5, 3.5), layout="constrained")
    for ax, (title, curves) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        for name, (x, y) in curves.items():
            ax.plot(x, y, "o-", markersize=4, color=colour[name], label=name)
        ax.set(xlabel=xlabel, title=title, xscale="log" if log else "linear")
        ax.grid(alpha=0.3)
    lines = {line.get_label(): line for ax in figure.axes for line in ax.lines}
    figure.legend(lines.values(), lines, fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=150)
