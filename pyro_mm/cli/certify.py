"""`pyro-mm certify`."""

from __future__ import annotations

import argparse
from typing import Any

from pyro_mm.cli.common import add_device, add_run, drawn, opened, progress_line, set_threads
from pyro_mm.cli.parser import Parser, command, count, whole

EXAMPLES = """\
  pyro-mm certify runs/mvae
  pyro-mm certify runs/mvae --rows 200 -k 5000 --every
"""
STORY = """\
Encloses log-likelihoods from both sides.  Data are simulated from the run's model, with the
test rows' missing modalities; there an exact draw of the posterior is known, and with it an
upper end beside the usual lower one:

  sandwich  K importance draws, one of which is replaced by the exact draw
  BDMC      annealed importance sampling forwards, and backwards from the exact draw

The gap bounds the estimator's mean error on such data.  ESS and k-hat on as many real test
rows say whether those are as easy.  Writes certificates.json and figures/certificates.png."""


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "certify", run, _fill, "enclose a run's log-likelihoods from both sides", EXAMPLES, STORY)


def _fill(p: Parser) -> None:
    add_run(p)
    p.add_argument("-k", type=count, default=1000, metavar="K", help="draws per datum of the sandwich (default: 1000)")
    p.add_argument("--rows", type=count, default=64, metavar="N", help="simulated data, and test rows (default: 64)")
    p.add_argument("--temperatures", type=whole, default=300, metavar="T", help="of BDMC; 0 for none (default: 300)")
    p.add_argument("--every", action="store_true", help="BDMC for every quantity, not for the joint alone")
    p.add_argument("--no-refine", action="store_true", help="certify the guide itself, without refined proposals")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of data and draws (default: 0)")
    p.add_argument("--quiet", action="store_true", help="write the files only")
    add_device(p)


def run(arguments: argparse.Namespace) -> int:
    """Certify, print the table, write the files."""
    set_threads(arguments, default=1)
    from pyro_mm import plots
    from pyro_mm.runs import certify_run

    run = opened(arguments)
    with progress_line(arguments.quiet) as tell:
        found = certify_run(
            run,
            arguments.k,
            arguments.rows,
            annealed=arguments.temperatures,
            every=arguments.every,
            refine=not arguments.no_refine,
            seed=arguments.seed,
            tell=tell,
        )
    if not arguments.quiet:
        n = min(arguments.rows, len(run.splits.test))
        system = f"{run.settings.variant} on {run.settings.data}"
        print(f"{system}, {n:,} simulated data, K = {arguments.k:,}; nats per row\n\n{found}\n")
    if found.certificates:
        figure = run.figures / "certificates.png"
        drawn(lambda path: plots.certificates(found.certificates, path=path), figure, arguments.quiet)
    return 0
