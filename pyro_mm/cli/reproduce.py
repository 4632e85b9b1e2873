"""`pyro-mm reproduce`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyro_mm.cli.common import add_bf16, add_device, device_of, progress_line, set_threads
from pyro_mm.cli.errors import choose
from pyro_mm.cli.parser import Names, Parser, above_zero, command, count, from_zero, whole

EXAMPLES = """\
  pyro-mm reproduce mvae-table --root ~/data/mnist --out runs/mvae-table
  pyro-mm reproduce mvae-table --root ~/data/mnist --epochs 50 --warmup 20 --decay 20 --rows 1000
"""
STORY = """\
Trains a paper's systems with its networks and prints our test log-likelihoods, with standard errors
and k-hat, beside the paper's. Interrupted, the same command goes on where it stood.

mvae-table: Table 2 of Wu & Goodman (2018): vae, cvae, jmvae-kl, mvae. The paper states neither K
            nor its estimator.
jmvae-table: Table 3 of Suzuki et al. (2016): jmvae-zero, jmvae-kl-0.01, jmvae-kl-0.1, jmvae-kl-1.
            The paper's are bounds with K = 1,000.

500 epochs, as published for the first, are hours of one core for every system."""


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "reproduce", run, _fill, "a published table: ours beside the paper's", EXAMPLES, STORY)


def _fill(p: Parser) -> None:
    p.add_argument("table", metavar="TABLE", help="mvae-table, jmvae-table")
    p.add_argument("--data", default="mnist", metavar="NAME", help="mnist, mnist-grey, fashion-mnist, ...-grey")
    p.add_argument("--root", metavar="DIR", help="folder of the data")
    p.add_argument("--download", action="store_true", help="fetch the data if they are missing")
    p.add_argument("--out", type=Path, metavar="DIR", help="default: runs/TABLE-DATA")
    p.add_argument("--systems", nargs="+", action=Names, metavar="NAME", help="some of the table's (default: all)")
    p.add_argument("--epochs", type=count, default=500, metavar="N", help="passes over the data (default: 500)")
    p.add_argument(
        "--warmup", type=from_zero, default=200.0, metavar="N", help="epochs until the KL counts fully (200)"
    )
    p.add_argument("--batch-size", type=count, default=100, metavar="N", help="rows per step (default: 100)")
    p.add_argument("--lr", type=above_zero, default=1e-3, metavar="X", help="Adam's learning rate (default: 0.001)")
    p.add_argument(
        "--decay", type=whole, default=0, metavar="N", help="let it fall to 0 over the last N epochs (default: 0)"
    )
    p.add_argument(
        "--alpha", type=from_zero, metavar="X", help="of JMVAE-kl, where the table does not vary it (default: 0.1)"
    )
    p.add_argument("--clip-norm", type=above_zero, metavar="X", help="shorten longer gradients")
    add_bf16(p)
    p.add_argument("-k", type=count, default=1000, metavar="K", help="draws per row (default: 1000)")
    p.add_argument("--rows", type=count, metavar="N", help="the first N test rows only")
    p.add_argument("--no-refine", action="store_true", help="draw from the guides themselves")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, rows and draws (default: 0)")
    p.add_argument("--quiet", action="store_true", help="no progress")
    add_device(p)


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, print."""
    set_threads(arguments)
    from pyro_mm.published import TABLES
    from pyro_mm.reproduce import Plan, reproduce, table

    name = choose(arguments.table, tuple(TABLES), "table")
    data = choose(arguments.data, tuple(TABLES[name].published), "data set of this table")
    systems = [choose(s, tuple(TABLES[name].systems), "system") for s in arguments.systems or ()]
    plan = Plan(
        table=name,
        data=data,
        root=arguments.root,
        epochs=arguments.epochs,
        warmup=arguments.warmup,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        decay=arguments.decay,
        precision=arguments.precision or Plan.precision,
        clip_norm=arguments.clip_norm,
        alpha=Plan.alpha if arguments.alpha is None else arguments.alpha,
        seed=arguments.seed,
        k=arguments.k,
        rows=arguments.rows,
        refine=not arguments.no_refine,
        device=device_of(arguments.device),
        systems=tuple(systems),
    )
    out = arguments.out or Path("runs") / f"{name}-{data}".replace("_", "-")
    with progress_line(arguments.quiet) as tell:
        found = reproduce(plan, out, download=arguments.download, progress=not arguments.quiet, tell=tell)
    print(f"{table(found, plan)}\n\n{out / 'table.json'}")
    return 0
