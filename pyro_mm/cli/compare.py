"""`pyro-mm compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyro_mm.cli.common import add_device, device_of, progress_line, set_threads
from pyro_mm.cli.errors import UserError, choose
from pyro_mm.cli.parser import Names, Parser, above_zero, command, count

EXAMPLES = """\
  pyro-mm compare runs/demo/mvae runs/demo/mopoe
  pyro-mm compare runs/a runs/b --of label --given image --rows 200
  pyro-mm compare --variants mvae mmvae mopoe --data digits --epochs 50 --out runs/contest
  pyro-mm compare runs/demo/mvae --guides mvae mmvae mopoe jmvae --epochs 30
"""
STORY = """\
Which run's model gives held-out rows the higher likelihood?  Differences are paired by row, so
that what makes a row easy or hard for both cancels; a warning says when rows with an unreliable
estimate (k-hat) decide.  With --variants they are trained first, all with the same settings and
as many steps, and coherence, accuracy and time stand beside the likelihoods.  With --guides the
guides of variants are trained on the model of one run, which stays as it is, and their bounds
compared."""
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
    new = p.add_argument_group("training variants or guides first")
    new.add_argument(
        "--guides", nargs="+", action=Names, metavar="NAME", help="variants whose guides are put on the model of RUN"
    )
    new.add_argument(
        "--variants", nargs="+", action=Names, metavar="NAME", help="see 'pyro-mm list'; each into a folder below --out"
    )
    new.add_argument("--out", type=Path, default=Path("runs/contest"), metavar="DIR", help="(default: runs/contest)")
    new.add_argument("--data", metavar="NAME", help="the data set (default: digits)")
    new.add_argument(
        "--epochs", type=count, metavar="N", help="of each, over all its stages (default: 100, of guides 30)"
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
    if len(arguments.folders) != 1 or arguments.of or arguments.given:
        raise UserError(
            "--guides go on the model of one RUN and are compared by log p of everything: no --of or --given"
        )
    import torch

    from pyro_mm import variants
    from pyro_mm.guide_zoo import guide_zoo
    from pyro_mm.runs import open_run

    names = [choose(name, variants.__all__, "variant") for name in arguments.guides]
    run = open_run(arguments.folders[0], arguments.root)
    torch.manual_seed(arguments.seed)
    dim = arguments.dim or run.settings.dim
    guides = {n: getattr(variants, n)(run.splits.modalities, dim).guide for n in names}
    training = {"epochs": arguments.epochs or 30, "batch_size": arguments.batch_size or run.settings.batch_size}
    with progress_line() as tell:
        found = guide_zoo(
            run.recipe.model,
            guides,
            run.splits.train,
            run.test_rows(arguments.rows),
            k=arguments.k,
            seed=arguments.seed,
            tell=tell,
            **training,
            lr=arguments.lr or run.settings.lr,
            patience=arguments.patience,
            validation=run.splits.validation,
            accelerator=device_of(arguments.device),
            progress=False,
        )
    print(found)
    return 0
