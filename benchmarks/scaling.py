"""How steps and likelihoods grow with rows, particles, draws and data, beside the same by hand.

    python benchmarks/scaling.py --out runs/bench          # writes runs/bench/scaling.json, prints the table

The pair of `benchmarks/plain.py` at width 512, eager.  At every point ours and PyTorch by hand take turns in one
process; points are measured one after the other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import plain
import steps
import torch
from measuring import in_turn, made, save

from pyro_mm import log_marginal
from pyro_mm.tables import markdown

WIDTH = 512
OURS, HAND = "ours", "by hand"
Makers = dict[str, Callable[[], Any]]
Panel = dict[str, Any]


def main() -> int:
    """Measure, write, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/bench"))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=1)
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    by = made()
    found = {what: measured(*panel, arguments.rounds) for what, panel in PANELS.items()}
    save(arguments.out / "scaling.json", by, {"rounds": arguments.rounds, "width": WIDTH}, found)
    print("\n".join(table(found)))
    return 0


def measured(make: Callable[[int, int], Makers], points: Sequence[int], rounds: int, width: int = WIDTH) -> Panel:
    """Milliseconds at every point."""
    times = [in_turn(make(width, n), rounds) for n in points]
    own = {name: [1e3 * t[name] for t in times] for name in (OURS, HAND)}  # type: ignore[operator]
    return {"points": list(points), **own}


def rows_of_a_step(width: int, n: int) -> Makers:
    return {OURS: partial(steps.ours, width, n, "cpu"), HAND: partial(steps.by_hand, width, n, "cpu", fused=True)}


def particles_of_a_step(width: int, k: int) -> Makers:
    hand = partial(steps.by_hand, width, 32, "cpu", fused=True, k=k)
    return {OURS: partial(steps.ours, width, 32, "cpu", k=k), HAND: hand}


def log_p(width: int, rows: int, k: int) -> Makers:
    """Of our programs, and by hand, a datum at a time."""
    encoder, image, label = plain.networks(width)
    model, guide, hand = plain.Model(image, label), plain.Guide(encoder), plain.Plain(encoder, image, label)
    batch = plain.data(rows)
    ours = partial(log_marginal, model, guide, batch, k, refine=False, seed=0)
    return {OURS: lambda: ours, HAND: lambda: partial(hand.log_marginal, batch.x["x"], batch.x["label"], k)}


PANELS: dict[str, tuple[Callable[[int, int], Makers], Sequence[int]]] = {
    "rows of a step": (rows_of_a_step, (16, 64, 256, 1024)),
    "particles of a step, 32 rows": (particles_of_a_step, (1, 4, 16, 64)),
    "draws of log p, 4 rows": (lambda width, k: log_p(width, 4, k), (100, 300, 1000, 3000)),
    "rows of log p, 100 draws": (lambda width, n: log_p(width, n, 100), (4, 16, 64, 128)),
}


def table(found: Mapping[str, Panel]) -> list[str]:
    """Ours over by hand at every point."""
    rows = []
    for what, panel in found.items():
        ratios = [f"{n:,}: {a / b:.2f}" for n, a, b in zip(panel["points"], panel[OURS], panel[HAND], strict=True)]
        growth = panel[OURS][-1] / panel[OURS][0]
        rows.append([what, "; ".join(ratios), f"{growth:.1f} for {panel['points'][-1] / panel['points'][0]:g}"])
    return markdown([["", "ours / by hand", "ours, last over first"], *rows])


if __name__ == "__main__":
    sys.exit(main())
