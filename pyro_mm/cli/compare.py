"""`pyro-mm compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_mm.cli.common import add_device, device_of, progress_line, set_threads
from pyro_mm.cli.errors import UserError, choose
from pyro_mm.cli.parser import Names, Parser, above_zero, command, count

if TYPE_CHECKING:
    from pyro_mm.runs import Run

EXAMPLES = """\
  pyro-mm compare runs/demo/mvae runs/demo/mopoe
  pyro-mm compare runs/a runs/b --of label --given image --rows 200
  pyro-mm compare --variants mvae mmvae mopoe --data digits --epochs 50 --out runs/contest
  pyro-mm compare runs/demo/mvae --guides mvae mmvae mopoe jmvae --epochs 30
  pyro-mm compare runs/demo/mvae --priors mixture flow vamp
"""
STORY = """\
Which run's model gives held-out rows the higher likelihood?  Differences are paired by row, so
that what makes a row easy or hard for both cancels; a warning says when rows with an unreliable
estimate (k-hat) decide.  With --variants they are trained first, all with the same settings and
as many steps, and coherence, accuracy and time stand beside the likelihoods.  With --guides the
guides of variants are trained on the model of one run, which stays as it is, and their bounds
compared.  With --priors other priors of z are fitted to what one run's guide makes of the
training rows, and likelihoods under them, paired by row, and coherence stand side by side."""
START = 500  # training rows, of which the complete ones are for priors to start at
SETTINGS = ("data", "epochs", "dim", "batch_size", "lr", "patience")


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "compare", run, _fill, "compare runs by held-out log-likelihood, row by row", EXAMPLES, STORY)


def _fill(p: Parser) -> None:
    p.add_argument("folders", nargs="*", type=Path, metavar="RUN", help="folders of trained runs on the same data")
    p.add_argument("--of", nargs="+", action=Names, metavar="NAME", help="log p of these modalities (default: all)")
    p.add_argument("--given", nargs="+", action=Names, default=(), metavar="NAME", help="given these")
    p.add_argument("-k", type=count, default=1000, metavar="K", help="draws per row (default: 1000)")
    p.add_argument("--rows", type=count, metavar="N", help="the first N test rows only")
    p.add_argument("--no-refine", action="store_true", help="draw from the guides themselves")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws, and of training (default: 0)")
    p.add_argument("--root", metavar="DIR", help="where the data are (now, if they have moved)")
    new = p.add_argument_group("training variants, guides or priors first")
    new.add_argument(
        "--guides", nargs="+", action=Names, metavar="NAME", help="variants whose guides are put on the model of RUN"
    )
    new.add_argument(
        "--priors", nargs="+", action=Names, metavar="NAME", help="of z, fitted to RUN: mixture, flow, vamp"
    )
    new.add_argument(
        "--variants", nargs="+", action=Names, metavar="NAME", help="see 'pyro-mm list'; each into a folder below --out"
    )
    new.add_argument("--out", type=Path, default=Path("runs/contest"), metavar="DIR", help="(default: runs/contest)")
    new.add_argument("--data", metavar="NAME", help="the data set (default: digits)")
    new.add_argument(
        "--epochs", type=count, metavar="N", help="of each, over all its stages (default: 100, of guides and priors 30)"
    )
    new.add_argument("--dim", type=count, metavar="N", help="latent dimensions (default: 16)")
    new.add_argument("--batch-size", type=count, metavar="N", help="rows per step (default: 128)")
    new.add_argument("--lr", type=above_zero, metavar="X", help="Adam's learning rate (default: 0.001)")
    new.add_argument("--patience", type=count, metavar="N", help="stop after N epochs without a better validation loss")
    new.add_argument("--no-coherence", action="store_true", help="likelihoods only")
    add_device(new)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    set_threads(arguments)
    if arguments.variants:
        return _contest(arguments)
    if arguments.guides:
        return _zoo(arguments)
    if arguments.priors:
        return _priors(arguments)
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


def _contest(arguments: argparse.Namespace) -> int:
    """Train, evaluate, print."""
    if arguments.folders or arguments.of or arguments.given:
        raise UserError("--variants are trained anew and compared by log p of everything: give no RUN, --of or --given")
    from pyro_mm import variants
    from pyro_mm.contest import contest
    from pyro_mm.data import available
    from pyro_mm.settings import Settings

    names = [choose(name, variants.__all__, "variant") for name in arguments.variants]
    given = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    if "data" in given:
        given["data"] = choose(given["data"], available(), "data set")
    if arguments.root is not None:
        given["root"] = str(Path(arguments.root).expanduser().absolute())
    with progress_line() as tell:
        found = contest(
            names,
            Settings(names[0], seed=arguments.seed, **given),
            arguments.out,
            k=arguments.k,
            rows=arguments.rows,
            refine=not arguments.no_refine,
            coherence=not arguments.no_coherence,
            device=device_of(arguments.device),
            progress=False,
            tell=tell,
        )
    print(found)
    return 0


def _zoo(arguments: argparse.Namespace) -> int:
    """Put guides on one model, train them, print."""
    run = _one(arguments, "--guides go on the model of one RUN")
    import torch

    from pyro_mm import variants
    from pyro_mm.guide_zoo import guide_zoo

    names = [choose(name, variants.__all__, "variant") for name in arguments.guides]
    torch.manual_seed(arguments.seed)
    dim = arguments.dim or run.settings.dim
    guides = {n: getattr(variants, n)(run.splits.modalities, dim).guide for n in names}
    with progress_line() as tell:
        found = guide_zoo(
            run.recipe.model,
            guides,
            run.splits.train,
            run.test_rows(arguments.rows),
            k=arguments.k,
            tell=tell,
            **_training(arguments, run),
        )
    print(found)
    return 0


def _priors(arguments: argparse.Namespace) -> int:
    """Fit priors to one run, print."""
    run = _one(arguments, "--priors are fitted to one RUN")
    import torch

    from pyro_mm.evaluation.coherence import draws_jointly
    from pyro_mm.judges import train_judges
    from pyro_mm.prior_zoo import PRIORS, prior_zoo

    names = [choose(name, PRIORS, "prior") for name in arguments.priors]
    torch.manual_seed(arguments.seed)
    rows = run.splits.some(START, arguments.seed).to(device_of(arguments.device))
    priors = {n: PRIORS[n](run.recipe, run.settings.dim, rows) for n in names}
    test = run.test_rows(arguments.rows)
    judged = run.splits.label is not None and draws_jointly(run.recipe.model, run.splits.names)
    with progress_line() as tell:
        found = prior_zoo(
            run.recipe,
            priors,
            run.splits.train,
            test,
            judges=train_judges(run.splits, tell=tell) if judged and not arguments.no_coherence else None,
            k=arguments.k,
            refine=not arguments.no_refine,
            tell=tell,
            **_training(arguments, run),
        )
    print(found)
    return 0


def _one(arguments: argparse.Namespace, what: str) -> Run:
    """The run that something is put on."""
    from pyro_mm.runs import open_run

    if len(arguments.folders) != 1 or arguments.of or arguments.given:
        raise UserError(f"{what} and are compared by log p of everything: no --of or --given")
    run = open_run(arguments.folders[0], arguments.root)
    for module in run.recipe.modules.values():
        module.to(device_of(arguments.device))
    return run


def _training(arguments: argparse.Namespace, run: Run) -> dict[str, Any]:
    """How what is put on a run is trained: as the run was, unless told otherwise."""
    return {
        "epochs": arguments.epochs or 30,
        "batch_size": arguments.batch_size or run.settings.batch_size,
        "lr": arguments.lr or run.settings.lr,
        "patience": arguments.patience,
        "validation": run.splits.validation,
        "seed": arguments.seed,
        "accelerator": device_of(arguments.device),
        "progress": False,
    }
