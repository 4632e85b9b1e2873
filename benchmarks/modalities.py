"""How a step grows with the number of modalities, beside MultiVae where it is installed.

    python benchmarks/modalities.py --out runs/bench       # writes runs/bench/modalities.json, prints the table

Bernoulli modalities of 784 pixels, networks of two hidden layers, 64 latents, the same layers in both.  In a cell of
the table, which is one variant with one number of modalities, eager steps, compiled ones (of 2 and 8 modalities only,
because compiling takes minutes) and MultiVae's take turns in one process; cells are measured one after the other.
MVAE is that of many modalities, with the whole and the single ones (k = 0); MoPoE, sampled, draws one subset for
every row and has no counterpart.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import others
import plain
import torch
from measuring import ABSENT, found_at, in_turn, made, save
from steps import fit_step

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.modality import Modality
from pyro_mm.tables import markdown

Step = Callable[[], object]
Cell = dict[str, Any]
SAMPLED = "mopoe, sampled"
OPTIONS: dict[str, dict[str, Any]] = {"mvae_sampled": {"k": 0}, SAMPLED: {"sampled": True}}
PAIRS = {"jmvae_kl": "JMVAE", "mvae_sampled": "MVAE", "mmvae": "MMVAE", "mopoe": "MoPoE", SAMPLED: None}
COMPILED = (2, 8)
LONG = {("jmvae_kl", 8)}  # to compile
SLOW_PEER, FEW = ("mopoe", 8), 3  # rounds: a step of MultiVae's takes seconds


def main() -> int:
    """Measure, write, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/bench"))
    p.add_argument("--variants", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    p.add_argument("--modalities", type=int, nargs="+", default=[2, 4, 6, 8])
    p.add_argument("--widths", type=int, nargs="+", default=[512, 64])
    p.add_argument("--rows", type=int, default=128)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--no-compile", action="store_true", help="eager steps only")
    p.add_argument("--anew", action="store_true", help="measure again what an interrupted run has left")
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    plan = {"rows": arguments.rows, "rounds": arguments.rounds, "compiled": not arguments.no_compile}
    cells = list(itertools.product(arguments.widths, arguments.modalities, arguments.variants))
    print("\n".join(table(all_of(cells, arguments.out / "modalities.json", plan, arguments.anew))))
    return 0


def all_of(
    cells: Sequence[tuple[int, int, str]], path: Path, plan: Mapping[str, Any], anew: bool = False
) -> list[Cell]:
    """Every cell that the file lacks, each written as soon as it is known; all of them."""
    by = made()
    there: list[Cell] = (None if anew else found_at(path, by, plan)) or []
    found = {(f["width"], f["modalities"], f["variant"]): f for f in there}
    for width, m, variant in cells:
        if (width, m, variant) in found:
            continue
        found[width, m, variant] = measured(variant, m, width, plan["rows"], plan["rounds"], plan["compiled"])
        print(found[width, m, variant], file=sys.stderr, flush=True)
        save(path, by, plan, list(found.values()))
    return list(found.values())


def measured(variant: str, m: int, width: int, rows: int, rounds: int, compiled: bool) -> Cell:
    """Milliseconds per step of ours, and of MultiVae's."""
    sizes = {f"x{i}": plain.PIXELS for i in range(m)}
    makers = {"eager": partial(ours, variant, sizes, width, rows, False)}
    if compiled and m in COMPILED and variant != SAMPLED and (variant, m) not in LONG:
        makers["compiled"] = partial(ours, variant, sizes, width, rows, True)
    if (peer := PAIRS[variant]) is not None:
        makers["MultiVae"] = partial(others.multivae_step, peer, sizes, width, rows)
    slow = (variant, m) == SLOW_PEER
    times = in_turn(makers, min(rounds, FEW) if slow else rounds, each=1 if slow or width > 100 else 3)
    found = {name: 1e3 * t if isinstance(t, float) else t for name, t in times.items()}
    return {"variant": variant, "modalities": m, "width": width, **found}


def ours(variant: str, sizes: dict[str, int], width: int, rows: int, compiled: bool) -> Step:
    """The step that `fit` makes."""
    net = networks.MLP((width, width))
    modalities = [Modality(m, (size,), likelihoods.Bernoulli(), net) for m, size in sizes.items()]
    more = {"width": width} if variant == "jmvae_kl" else OPTIONS.get(variant, {})
    recipe = getattr(variants, variant.partition(",")[0])(modalities, plain.LATENT, **more)
    return fit_step(recipe.objective, Batch(plain.pixels(sizes, rows)), compiled=compiled)


def table(found: Sequence[Cell]) -> list[str]:
    """One row per width and number of modalities."""
    names = list(dict.fromkeys(f["variant"] for f in found))
    by = {(f["width"], f["modalities"], f["variant"]): f for f in found}
    rows = []
    for width, m in dict.fromkeys((f["width"], f["modalities"]) for f in found):
        rows.append([str(width), str(m), *(cell(by.get((width, m, v), {})) for v in names)])
    lines = markdown([["width", "modalities", *names], *rows])
    peer = "" if any(isinstance(f.get("MultiVae"), float) for f in found) else f"  MultiVae: {ABSENT}."
    return [*lines, "", f"`eager / compiled ms; MultiVae's over the faster`.{peer}"]


def cell(f: Mapping[str, Any]) -> str:
    """`eager / compiled ms; MultiVae's over the faster`."""
    own = own_times(f)
    more = f"; {f['MultiVae'] / min(own):.2f}" if own and isinstance(f.get("MultiVae"), float) else ""
    return (" / ".join(f"{t:.0f}" for t in own) + more) or "-"


def own_times(f: Mapping[str, Any]) -> list[float]:
    """Eager, and compiled if it is there."""
    return [f[kind] for kind in ("eager", "compiled") if isinstance(f.get(kind), float)]


if __name__ == "__main__":
    sys.exit(main())
