"""How a step grows with the number of modalities, beside MultiVae where it is installed.

    python benchmarks/modalities.py --out runs/bench       # writes runs/bench/modalities.json, prints the table

Bernoulli modalities of 784 pixels, networks of two hidden layers, 64 latents, the same layers in both; eager and
compiled steps of a variant and its counterpart's take turns in one process.  MVAE is that of many modalities, with the
whole and the single ones (k = 0).  Milliseconds of CPU per step (medians), and MultiVae's over them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import others
import plain
import torch

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.modality import Modality
from pyro_mm.tables import markdown
from pyro_mm.training.leg import Leg
from pyro_mm.training.options import Options, make_fabric
from pyro_mm.training.stages import Stage

Step = Callable[[], object]
OPTIONS: dict[str, dict[str, Any]] = {"mvae_sampled": {"k": 0}}
PAIRS = {"jmvae_kl": "JMVAE", "mvae_sampled": "MVAE", "mmvae": "MMVAE", "mopoe": "MoPoE"}


def main() -> int:
    """Measure, write, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/bench"))
    p.add_argument("--variants", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    p.add_argument("--modalities", type=int, nargs="+", default=[2, 4, 6, 8])
    p.add_argument("--widths", type=int, nargs="+", default=[512, 64])
    p.add_argument("--rows", type=int, default=128)
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--no-compile", action="store_true", help="eager steps only")
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    kinds = [False] if arguments.no_compile else [False, True]
    found = []
    for width in arguments.widths:
        for m in arguments.modalities:
            for variant in arguments.variants:
                found.append(measured(variant, m, width, arguments.rows, arguments.rounds, kinds))
                print(found[-1], file=sys.stderr, flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "modalities.json").write_text(json.dumps(found, indent=1))
    print("\n".join(table(found)))
    return 0


def measured(variant: str, m: int, width: int, rows: int, rounds: int, kinds: list[bool]) -> dict[str, Any]:
    """CPU milliseconds per step of ours, and of MultiVae's."""
    sizes = {f"x{i}": plain.PIXELS for i in range(m)}
    names = {False: "eager", True: "compiled"}
    steps: dict[str, Step | None] = {names[kind]: ours(variant, sizes, width, rows, kind) for kind in kinds}
    steps["MultiVae"] = theirs(variant, sizes, width, rows)
    times: dict[str, list[float]] = {name: [] for name, step in steps.items() if step is not None}
    each = 1 if width > 100 else 3
    for _ in range(rounds + 1):
        for name in times:
            began = time.process_time()
            for _ in range(each):
                steps[name]()  # type: ignore[misc]
            times[name].append((time.process_time() - began) / each)
    found = {name: 1e3 * statistics.median(t[1:]) for name, t in times.items()}
    return {"variant": variant, "modalities": m, "width": width, **found}


def ours(variant: str, sizes: dict[str, int], width: int, rows: int, compiled: bool) -> Step:
    """The step that `fit` makes."""
    net = networks.MLP((width, width))
    modalities = [Modality(m, (size,), likelihoods.Bernoulli(), net) for m, size in sizes.items()]
    more = {"width": width} if variant == "jmvae_kl" else OPTIONS.get(variant, {})
    recipe = getattr(variants, variant)(modalities, plain.LATENT, **more)
    stage, fabric = Stage(recipe.objective, 1, name=variant), make_fabric("cpu", 1, None, None)
    leg = Leg(stage, Options(compile=compiled), fabric, None)
    batch = Batch(plain.pixels(sizes, rows))
    recipe.objective(batch)  # what `fit` does first
    return lambda: leg.step(batch, 1)


def theirs(variant: str, sizes: dict[str, int], width: int, rows: int) -> Step | None:
    """MultiVae's; None where it is not installed, or would take minutes."""
    if variant == "mopoe" and len(sizes) > 6 and width > 100:
        return None
    return others.multivae_step(PAIRS[variant], sizes, width, rows)


def table(found: list[dict[str, Any]]) -> list[str]:
    """One row per width and number of modalities."""
    names = list(dict.fromkeys(f["variant"] for f in found))
    by = {(f["width"], f["modalities"], f["variant"]): f for f in found}
    rows = []
    for width, m in dict.fromkeys((f["width"], f["modalities"]) for f in found):
        rows.append([str(width), str(m), *(cell(by[width, m, v]) for v in names)])
    return markdown([["width", "modalities", *names], *rows])


def cell(f: dict[str, Any]) -> str:
    """`eager / compiled ms; MultiVae's over the faster`."""
    own = [f[kind] for kind in ("eager", "compiled") if kind in f]
    more = f"; {f['MultiVae'] / min(own):.2f}" if "MultiVae" in f else ""
    return " / ".join(f"{t:.0f}" for t in own) + more


if __name__ == "__main__":
    sys.exit(main())
