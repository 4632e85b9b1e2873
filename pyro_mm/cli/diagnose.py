"""`pyro-mm diagnose`."""

from __future__ import annotations

import argparse
from typing import Any

from pyro_mm.cli.common import add_device, add_run, drawn, opened, progress_line, set_threads
from pyro_mm.cli.errors import UserError
from pyro_mm.cli.parser import Parser, command, count

EXAMPLES = """\
  pyro-mm diagnose runs/mvae
  pyro-mm diagnose runs/mvae --rows 500 --gaps
"""
STORY = """\
How good is the guide, and what do model and guide make of their latents?

  report       active units, KL per dimension, collapse; each modality's share of the ELBO, of
               the gradient and, in a product of experts, of the precision
  calibration  simulation-based: ranks of the true latents and of their log-density among the
               guide's draws, for every subset of modalities; EUBO - ELBO
  gaps         (--gaps, slower) how much of log p - ELBO is lost to amortisation, and how much
               to the guide's family

Figures go into the run's figures/."""


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "diagnose", run, _fill, "judge a run's guide and latents", EXAMPLES, STORY)


def _fill(p: Parser) -> None:
    add_run(p)
    p.add_argument("--rows", type=count, default=200, metavar="N", help="test rows, and simulated data (default: 200)")
    p.add_argument("--gaps", action="store_true", help="also the amortisation and family gaps")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of data and draws (default: 0)")
    add_device(p)


def run(arguments: argparse.Namespace) -> int:
    """Diagnose, print, draw."""
    set_threads(arguments, default=1)
    if arguments.rows < 2:
        raise UserError("--rows: spreads and ranks need at least 2 rows")
    from pyro_mm import evaluation, plots

    run = opened(arguments)
    pair, rows, seed = (run.recipe.model, run.recipe.guide), run.test_rows(arguments.rows), arguments.seed
    figures: dict[str, Any] = {}
    with progress_line() as tell:
        tell("report")
        about = evaluation.report(*pair, rows, seed=seed)
        figures["report"] = lambda path: plots.report(about, path=path)
        tell("calibration")
        ranks = evaluation.sbc(*pair, rows, seed=seed)
        figures["calibration"] = lambda path: plots.calibration_ecdf(ranks, path=path)
        tell("EUBO - ELBO")
        bounds = evaluation.symmetric_divergence(*pair, rows, seed=seed)
        parts = [about, ranks, bounds]
        if arguments.gaps:
            tell("gaps")
            lost = evaluation.gaps(*pair, rows, seed=seed)
            figures["gaps"] = lambda path: plots.gaps_by_subset(lost, path=path)
            parts.append(lost)
    print(f"{run.settings.variant} on {run.settings.data}, {len(rows):,} test rows\n")
    print("\n\n".join(map(repr, parts)), end="\n\n")
    for name, draw in figures.items():
        drawn(draw, run.figures / f"{name}.png")
    return 0
