"""What an accuracy of log p costs in time, and what its draws cost in memory.

    python benchmarks/accuracy.py --out runs/bench         # writes runs/bench/accuracy.json, prints both tables

Time: the pair of `benchmarks/plain.py` at width 512, trained for 60 epochs on scikit-learn's digits, enlarged to 28 x
28 pixels and binarised; 16 test rows.  Draws from the guide, from refined proposals, and as many as a standard error
asks for take turns in one process.  Errors are against refined proposals with 20,000 draws.  `make bench-accuracy`
does the like on the demo's run.

Memory: the same pair, 4 rows; what a process of its own holds at most beyond what it held before, with more and more
draws.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import plain
import torch
from measuring import in_turn, made, save
from torch.nn.functional import interpolate

import pyro_mm as mm
from pyro_mm import data
from pyro_mm.batch import Batch
from pyro_mm.evaluation import Evidence, Laplace, log_marginal
from pyro_mm.objectives import elbo
from pyro_mm.tables import markdown

BASE = "guide, K = 20,000"
DRAWS = (1000, 5000, 20_000)
SIDES = ("log_marginal", "PyTorch by hand, a datum at a time")
Row = dict[str, float]


def main() -> int:
    """Measure, write, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/bench"))
    p.add_argument("--rows", type=int, default=16)
    p.add_argument("--epochs", type=int, default=60)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)  # what `in_a_process` calls it with
    p.add_argument("--draws", type=int, nargs="+", default=DRAWS, help=argparse.SUPPRESS)
    p.add_argument("--width", type=int, default=512, help=argparse.SUPPRESS)
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(memory_of(arguments.memory_of, arguments.draws, arguments.width)))
        return 0
    by, plan = made(), {n: getattr(arguments, n) for n in ("rows", "epochs", "rounds")}
    found = {"time": accuracies(**plan), "memory": {side: in_a_process(side) for side in SIDES}}
    save(arguments.out / "accuracy.json", by, plan | {"draws": DRAWS}, found)
    print("\n".join([*table(found["time"]), "", *memory_table(found["memory"])]))
    return 0


def accuracies(rows: int, epochs: int, rounds: int, k: int = 20_000, width: int = 512) -> dict[str, Row]:
    """Seconds, root mean square error and median standard error, by candidate."""
    encoder, image, label = plain.networks(width)
    pair, splits = (plain.Model(image, label), plain.Guide(encoder)), data.digits()
    mm.fit(elbo(*pair, analytic_kl=True), enlarged(splits.train), epochs, progress=False, accelerator="cpu")
    estimate = partial(log_marginal, *pair, enlarged(splits.test[:rows]))
    candidates: dict[str, Callable[..., Evidence]] = {
        BASE: partial(estimate, k, refine=False),
        "guide, K = 1,000": partial(estimate, 1000, refine=False),
        "Laplace, K = 100": partial(estimate, 100, refine=Laplace()),
        "refined, K = 100": partial(estimate, 100, refine=True),
        "refined, K = 1,000": partial(estimate, 1000, refine=True),
        **{f"target_se = {t:g}": partial(estimate, target_se=t) for t in (0.5, 0.3)},
    }
    estimate(10, refine=True)  # imports
    found: dict[str, list[Evidence]] = {name: [] for name in candidates}

    def kept(name: str) -> None:
        found[name].append(candidates[name](seed=len(found[name])))

    seconds = in_turn({name: lambda name=name: partial(kept, name) for name in candidates}, rounds, warm=0)
    truth = estimate(k, refine=True, seed=1000).estimate
    return {name: {"seconds": float(seconds[name]), **errors(found[name], truth)} for name in candidates}


def enlarged(batch: Batch) -> Batch:
    """Digits of 8 x 8 counts as 784 zeros and ones, with their labels."""
    grey = interpolate(batch.x["image"].unsqueeze(1) / 16, (28, 28), mode="bilinear").flatten(1)
    return Batch({"x": (grey > 0.5).float(), "label": batch.x["label"]})


def errors(runs: Sequence[Evidence], truth: torch.Tensor) -> Row:
    """Of all rows in all rounds."""
    off = torch.stack([e.estimate - truth for e in runs])
    se = torch.stack([e.se for e in runs])
    return {"bias": off.mean().item(), "rms": off.square().mean().sqrt().item(), "se": se.median().item()}


def in_a_process(side: str, draws: Sequence[int] = DRAWS, width: int = 512) -> dict[str, float]:
    """`memory_of` where nothing else has been, nor held more."""
    command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", side]
    command += ["--draws", *map(str, draws), "--width", str(width), "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def memory_of(side: str, draws: Sequence[int], width: int = 512) -> dict[str, float]:
    """Megabytes by number of draws, which grows: the most that was ever held cannot fall."""
    encoder, image, label = plain.networks(width)
    batch, hand = plain.data(4), plain.Plain(encoder, image, label)
    pair = plain.Model(image, label), plain.Guide(encoder)
    run: dict[str, Callable[[int], Any]] = {
        SIDES[0]: lambda k: log_marginal(*pair, batch, k, refine=False, seed=0),
        SIDES[1]: lambda k: hand.log_marginal(batch.x["x"], batch.x["label"], k),
    }
    run[side](10)  # imports and buffers
    before, out = peak(), {}
    for k in draws:
        run[side](k)
        out[str(k)] = (peak() - before) / 2**20
    return out


def peak() -> int:
    """The most bytes that this process has held.

    Linux tells it of the program that runs now; `ru_maxrss` includes what the process was before it became this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if found:
            return 1024 * int(found[0])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def cheapest(found: Mapping[str, Row]) -> str | None:
    """What is as accurate as the guide's 20,000 draws in the least time, if anything is."""
    good = [n for n, row in found.items() if not n.startswith("guide") and row["rms"] <= found[BASE]["rms"]]
    return min(good, key=lambda n: found[n]["seconds"]) if good else None


def table(found: Mapping[str, Row]) -> list[str]:
    """Errors, and time over that of the guide's 20,000 draws."""
    head = ["log p(x, label)", "mean error", "rms error", "median s.e.", "CPU s", f"time / {BASE}"]
    rows = [
        [name, f"{r['bias']:+.3f}", f"{r['rms']:.3f}", f"{r['se']:.3f}", f"{r['seconds']:.2f}", ratio(found, name)]
        for name, r in found.items()
    ]
    return markdown([head, *rows])


def ratio(found: Mapping[str, Row], name: str) -> str:
    """Of seconds."""
    return f"{found[name]['seconds'] / found[BASE]['seconds']:.3f}"


def memory_table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Megabytes."""
    head = ["extra memory, MB", *(f"K = {int(k):,}" for k in next(iter(found.values())))]
    return markdown([head, *([side, *(f"{mb:.0f}" for mb in row.values())] for side, row in found.items())])


if __name__ == "__main__":
    sys.exit(main())
