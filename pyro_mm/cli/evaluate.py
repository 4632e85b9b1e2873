"""`pyro-mm evaluate`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from pyro_mm.cli.common import add_device, add_run, opened, progress_line, set_threads
from pyro_mm.cli.errors import choose
from pyro_mm.cli.parser import Parser, command, count

if TYPE_CHECKING:
    from pyro_mm.results import Results
    from pyro_mm.runs import Run

EXAMPLES = """\
  pyro-mm evaluate runs/mvae
  pyro-mm evaluate runs/mvae -k 10000 --rows 100
  pyro-mm evaluate runs/nexus --metrics coherence,rank,likelihood
  pyro-mm evaluate runs/mld --tasks classification,generation,retrieval
  pyro-mm evaluate runs/mopoe --tasks retrieval --scores cosine,likelihood --rows 500
"""
STORY = """\
Joint, marginal and conditional log-likelihoods by importance sampling, means over the test
rows in nats, and the accuracy of the label inferred from everything else.  Draws come from a
proposal that is first refined for every row (Laplace's approximation, improved by gradient
steps where that is poor), from the guide and from the prior.

  SE          of the mean over rows (for other rows of the same population)
  MC SE       of the mean for these very rows (for other random draws)
  median ESS  effective number of the K draws per row
  k-hat       share of rows whose weights have so heavy a tail that their standard error
              is not to be believed: joint and marginals, lower bounds in expectation, may
              then lie far below.  More draws (-k) help.

accuracy is that of the model's Bayes classifier p(label | rest), 'accuracy (guide)' that of
the mean of p(label | z) over the guide's draws.  Writes results.json and evidence.nc (for
ArviZ) into the run's folder.

Other --metrics are about what is generated, as classifiers and autoencoders see it that are
trained on the real training rows first, and kept.  They need a data set with a label.

  coherence   share of test rows whose class is kept in each modality generated from every set
              of others, and share of draws from the prior whose modalities all agree
  rank        Frechet distance of each modality generated from one other, from all and from
              nothing to the test rows, in the features of an autoencoder

They go into metrics.json.

--tasks measures what the model is good for; results go into tasks.json.

  classification  the label named from every set of other modalities, all under Gaussian
                  noise of 0, 0.25, 0.5 and 1 standard deviation
  generation      draws from the prior: Frechet and kernel distance, precision and recall in
                  the features of an autoencoder
  retrieval       test rows of one modality ranked for each row of another: R@1, 5, 10,
                  median rank, mean average precision, with bootstrap intervals; by --scores
                  of posteriors (cosine of means; kl, in closed form for Gaussians, or
                  sampled-kl; wasserstein) or by likelihood, log p(row | query), which takes longest"""


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "evaluate", run, _fill, "estimate a run's log-likelihoods on its test rows", EXAMPLES, STORY)


def _fill(p: Parser) -> None:
    add_run(p)
    names = "likelihood, coherence, rank, or several with commas (default: likelihood, unless --tasks)"
    p.add_argument("--metrics", metavar="NAMES", help=names)
    p.add_argument("--tasks", metavar="NAMES", help="classification, generation, retrieval, or several with commas")
    scores = "of retrieval: cosine, kl, sampled-kl, wasserstein, likelihood, or several (default: cosine)"
    p.add_argument("--scores", metavar="NAMES", default="cosine", help=scores)
    spoilt = "what spoils the inputs of classification: noise (the default), salt_and_pepper, occlusion or swap"
    p.add_argument("--corruption", metavar="KIND", default="noise", help=spoilt)
    p.add_argument("--judges", metavar="DIR", help="where the classifiers are kept (default: in the cache folder)")
    p.add_argument("-k", type=count, default=1000, metavar="K", help="draws per row (default: 1000)")
    p.add_argument("--rows", type=count, metavar="N", help="the first N test rows only")
    p.add_argument("--no-refine", action="store_true", help="draw from the guide itself, without refined proposals")
    faster = "likelihoods with the decoders' layers in bfloat16, for hardware that is fast at it; prints the change"
    p.add_argument("--bf16", action="store_true", help=faster)
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    p.add_argument("--quiet", action="store_true", help="write the files only")
    add_device(p)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table, write the files."""
    set_threads(arguments)
    from pyro_mm.metrics import known
    from pyro_mm.tasks import KNOWN, SCORES

    tasks = [] if arguments.tasks is None else known(arguments.tasks, KNOWN, "task")
    scores = known(arguments.scores, tuple(SCORES), "score")
    default = [] if tasks else ["likelihood"]
    which = default if arguments.metrics is None else known(arguments.metrics)
    run = opened(arguments)
    if "likelihood" in which:
        _likelihoods(run, arguments)
    if others := [m for m in which if m != "likelihood"]:
        if len(others) < len(which) and not arguments.quiet:
            print()
        _measure(run, others, arguments)
    if tasks:
        if which and not arguments.quiet:
            print()
        _perform(run, tasks, scores, arguments)
    return 0


def _perform(run: Run, which: list[str], scores: list[str], arguments: argparse.Namespace) -> None:
    from pyro_mm.task_tables import tasks_table
    from pyro_mm.tasks import CORRUPTIONS, evaluate_tasks

    with progress_line(arguments.quiet) as tell:
        options: dict[str, Any] = {"folder": arguments.judges, "seed": arguments.seed, "tell": tell}
        kind = choose(arguments.corruption, CORRUPTIONS, "corruption")
        found = evaluate_tasks(run, which, arguments.rows, scores=scores, kind=kind, **options)
    if not arguments.quiet:
        _say(run, found, tasks_table(found))


def _say(run: Run, found: dict[str, Any], text: str) -> None:
    print(f"{run.settings.variant} on {run.settings.data}, {found['rows']:,} test rows\n\n{text}")


def _measure(run: Run, which: list[str], arguments: argparse.Namespace) -> None:
    from pyro_mm.metrics import evaluate_metrics, metrics_table

    with progress_line(arguments.quiet) as tell:
        options: dict[str, Any] = {"folder": arguments.judges, "seed": arguments.seed, "tell": tell}
        found = evaluate_metrics(run, which, rows=arguments.rows, **options)
    if not arguments.quiet:
        _say(run, found, metrics_table(found))


def _likelihoods(run: Run, arguments: argparse.Namespace) -> None:
    from pyro_mm.results import table
    from pyro_mm.runs import evaluate_run

    with progress_line(arguments.quiet) as tell:
        options = {"refine": not arguments.no_refine, "bf16": arguments.bf16, "seed": arguments.seed}
        found = evaluate_run(run, arguments.k, arguments.rows, **options, tell=tell)
    if not arguments.quiet:
        system = f"{run.settings.variant} on {run.settings.data}"
        print(f"{system}, {found.rows:,} test rows, K = {found.k:,}; nats per row\n")
        print(table(found.to_json()))
    _write_arviz(run, found)


def _write_arviz(run: Run, found: Results) -> None:
    """`evidence.nc`; results.json is written already, so a missing netCDF package costs a note only."""
    from pyro_mm import arviz

    if not found.evidence:
        return
    try:
        data = arviz.to_arviz(found.evidence, None, run.splits.test[: found.rows])
        arviz.save(data, run.folder / "evidence.nc")
    except ImportError as error:
        print(f"pyro-mm: no evidence.nc: {error}", file=sys.stderr)
