"""`pyro-mm compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyro_mm.cli.common import progress_line, set_threads
from pyro_mm.cli.parser import Parser, command, count

EXAMPLES = """\
  pyro-mm compare runs/demo/mvae runs/demo/mopoe
  pyro-mm compare runs/a runs/b --of label --given image --rows 200
"""
STORY = """\
Which run's model gives held-out rows the higher likelihood?  Differences are paired by row, so
that what makes a row easy or hard for both cancels; a warning says when rows with an unreliable
estimate (k-hat) decide."""


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "compare", run, _fill, "compare runs by held-out log-likelihood, row by row", EXAMPLES, STORY)


def _fill(p: Parser) -> None:
    p.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folders of trained runs on the same data")
    p.add_argument("--of", nargs="+", metavar="NAME", help="log p of these modalities (default: all)")
    p.add_argument("--given", nargs="+", default=(), metavar="NAME", help="given these")
    p.add_argument("-k", type=count, default=1000, metavar="K", help="draws per row (default: 1000)")
    p.add_argument("--rows", type=count, metavar="N", help="the first N test rows only")
    p.add_argument("--no-refine", action="store_true", help="draw from the guides themselves")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    p.add_argument("--root", metavar="DIR", help="where the data are now, if they have moved")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    set_threads(arguments)
    from pyro_mm.run_comparison import compare_runs
    from pyro_mm.runs import open_run

    runs = [open_run(folder, arguments.root) for folder in arguments.folders]
    of = None if arguments.of is None else tuple(arguments.of)
    with progress_line() as tell:
        found = compare_runs(
            runs,
            of,
            tuple(arguments.given),
            arguments.k,
            arguments.rows,
            refine=not arguments.no_refine,
            seed=arguments.seed,
            tell=tell,
        )
    print(found)
    return 0
