"""`pyro-mm plot`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pyro_mm.cli.common import add_run, drawn, opened, progress_line, set_threads
from pyro_mm.cli.errors import choose
from pyro_mm.cli.parser import Names, Parser, command, count

EXAMPLES = """\
  pyro-mm plot runs/mvae
  pyro-mm plot runs/mvae --only latent_map loss --format pdf
"""
STORY = """\
loss                    the objective and its terms by epoch
cross_generation        every modality from every subset of them
cross_generation_sheet  every modality from each one alone, for one row
reconstructions         data and what comes back
prior_samples           draws from the model
latent_map              posterior means, coloured by label
traversal               the data while one coordinate of z moves
private_traversal       the same for a latent of one modality
classification          accuracy of the label under noise, if 'evaluate --tasks' measured it
retrieval               what finds its own, likewise
khat                    how far the likelihood estimates are to be trusted

Files go into the run's figures/."""
NAMES = (
    "loss", "cross_generation", "cross_generation_sheet", "reconstructions", "prior_samples", "latent_map", "traversal",
    "private_traversal", "classification", "retrieval", "khat",
)  # fmt: skip


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "plot", run, _fill, "draw the figures of a run", EXAMPLES, STORY)


def _fill(p: Parser) -> None:
    add_run(p)
    p.add_argument("--only", nargs="+", action=Names, metavar="NAME", help="these figures (default: all)")
    p.add_argument("--format", default="png", metavar="SUFFIX", help="png, pdf, svg, ... (default: png)")
    p.add_argument("-k", type=count, default=1000, metavar="K", help="draws per row behind khat (default: 1000)")
    p.add_argument("--rows", type=count, default=500, metavar="N", help="test rows behind khat (default: 500)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of draws (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    """Draw."""
    set_threads(arguments)
    wanted = [choose(name, NAMES, "figure") for name in arguments.only or NAMES]
    from pyro_mm.cli.figures import figures_of
    from pyro_mm.results import evaluate

    run = opened(arguments)
    evidence = {}
    if "khat" in wanted:
        with progress_line() as tell:
            test = run.splits.test[: arguments.rows]
            evidence = evaluate(run.recipe, test, None, arguments.k, seed=arguments.seed, tell=tell).evidence
    figures = figures_of(run, evidence, arguments.seed)
    if lacking := [name for name in arguments.only or () if choose(name, NAMES, "figure") not in figures]:
        print(f"pyro-mm: this run has nothing to draw for {', '.join(lacking)}", file=sys.stderr)
    for name in NAMES:
        if name in wanted and name in figures:
            drawn(figures[name], run.figures / f"{name}.{arguments.format.lstrip('.')}")
    return 0
