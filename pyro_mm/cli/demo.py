"""`pyro-mm demo`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_mm.cli.common import drawn, progress_line, set_threads
from pyro_mm.cli.errors import UserError
from pyro_mm.cli.parser import Parser, command, count

if TYPE_CHECKING:
    from pyro_mm.settings import Settings

EXAMPLES = """\
  pyro-mm demo
  pyro-mm demo --epochs 20 --out runs/quick
"""
STORY = """\
MVAE, MMVAE, MoPoE and JMVAE-kl on scikit-learn's 1,797 real digits and their labels: one
table of log-likelihoods with error bars, and figures, in four to seven minutes on one core."""
VARIANTS = ("mvae", "mmvae", "mopoe", "jmvae_kl")
# A label is one of ten, a picture 64 counts: unweighted, training would hardly look at the label.
COMMON = {"dim": 12, "batch_size": 64, "lr": 2e-3, "weights": {"label": 10.0}}
OPTIONS = {"jmvae_kl": {"width": 128}}  # the paper's 512 units are for pictures 12 times as large
FIGURES = ("cross_generation", "latent_map", "loss", "khat")
RECORD = "demo.json"


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "demo", run, _fill, "train four variants on real digits and compare them", EXAMPLES, STORY)


def _fill(p: Parser) -> None:
    p.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    p.add_argument("--epochs", type=count, default=120, metavar="N", help="passes over the data (default: 120)")
    p.add_argument("-k", type=count, default=1000, metavar="K", help="draws per row (default: 1000)")


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate and draw every variant; print the table."""
    set_threads(arguments, default=1)  # networks this small gain nothing from more, and lose much on a busy machine
    began = time.perf_counter()
    from pyro_mm.files import write_atomic, write_json
    from pyro_mm.results import comparison

    out = arguments.out
    if out.exists() and any((out / v).exists() for v in VARIANTS) and not (out / RECORD).is_file():
        raise UserError(f"{out} holds runs that are not the demo's: choose another --out")
    write_json(out / RECORD, {"epochs": arguments.epochs, "k": arguments.k, "variants": list(VARIANTS)})
    found = {}
    for variant in VARIANTS:
        found[variant.replace("_", "-")] = _one(_settings(variant, arguments.epochs), out / variant, arguments.k)
    text = comparison(found)
    print(f"\n{text}\n\n{time.perf_counter() - began:.0f} s in all; figures, models and numbers:\n{out}")
    write_atomic(out / "table.txt", text + "\n")
    return 0


def _settings(variant: str, epochs: int) -> Settings:
    from pyro_mm.settings import Settings

    return Settings(variant, epochs=epochs, options=OPTIONS.get(variant, {}), **COMMON)  # type: ignore[arg-type]


def _one(settings: Settings, folder: Path, k: int) -> dict[str, Any]:
    """One variant's results as JSON, with the seconds that training took."""
    from pyro_mm.cli.figures import figures_of
    from pyro_mm.runs import evaluate_run, train_run

    name = settings.variant.replace("_", "-")
    shown = sys.stderr.isatty()
    print(f"{name}: training", end=" ... " if not shown else "\n", flush=True)
    run = train_run(settings, folder, overwrite=True, progress=shown, device="cpu")
    if run.interrupted:
        raise KeyboardInterrupt
    print(f"{run.record['seconds']:.0f} s, best epoch {run.record['best_epoch']} of {run.record['epochs']}", flush=True)
    with progress_line() as tell:
        results = evaluate_run(run, k, tell=lambda quantity: tell(f"{name}: {quantity}"))
    for figure, draw in figures_of(run, results.evidence).items():
        if figure in FIGURES:
            drawn(draw, run.figures / f"{figure}.png", quiet=True)
    return {**results.to_json(), "seconds": run.record["seconds"]}
