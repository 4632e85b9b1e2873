"""`pyro-mm train`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_mm.cli.common import add_bf16, add_device, device_of, set_threads
from pyro_mm.cli.errors import UserError, choose
from pyro_mm.cli.parser import Parser, above_zero, assignment, assignments, command, count, from_zero

if TYPE_CHECKING:
    from pyro_mm.settings import Settings

EXAMPLES = """\
  pyro-mm train mvae --out runs/mvae
  pyro-mm train jmvae-kl --alpha 0.1 --dim 8 --epochs 200 --patience 20
  pyro-mm train mopoe --data mnist --root ~/data/mnist --dim 64 --beta-warmup 20 --weights label=50
  pyro-mm train mmvae-iwae --set k=20
  pyro-mm train --resume --out runs/mvae --epochs 300
"""
STORY = """\
The run's folder gets config.json, run.json, log.csv, checkpoint.pt and model/; the weights
of the epoch with the least validation loss are kept.  Ctrl-C saves; --resume goes on from
there as if nothing had happened: bit for bit, or to rounding where steps are compiled."""
COMPILE: dict[str, bool | str] = {"yes": True, "no": False, "auto": "auto"}
SETTINGS = ("data", "root", "epochs", "dim", "batch_size", "lr", "seed", "beta", "beta_warmup", "patience", "precision")


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "train", run, _fill, "train a variant on a data set, into a folder", EXAMPLES, STORY)


def _fill(p: Parser) -> None:
    p.add_argument("variant", nargs="?", metavar="VARIANT", help="see 'pyro-mm list'; left out with --resume --out")
    p.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/VARIANT-DATA)")
    start = p.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on with the run in --out; its settings are kept")
    start.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    data = p.add_argument_group("data")
    data.add_argument("--data", metavar="NAME", help="the data set (default: digits)")
    data.add_argument("--root", metavar="DIR", help="its folder, for sets that are read from files")
    data.add_argument("--download", action="store_true", help="fetch what is missing, if torchvision can")
    model = p.add_argument_group("model and objective")
    model.add_argument("--dim", type=count, metavar="N", help="latent dimensions (default: 16)")
    model.add_argument("--beta", type=from_zero, metavar="X", help="weight of the KL (default: 1)")
    model.add_argument("--beta-warmup", type=from_zero, metavar="EPOCHS", help="let it grow from 0 over these epochs")
    weights = "weight of a likelihood in training, as label=50"
    model.add_argument("--weights", type=assignments, action="append", metavar="NAME=X", help=weights)
    noise = "noise on what encoders see of it in training, of up to so many of its standard deviations: image=1.5"
    model.add_argument("--noise", type=assignments, action="append", metavar="NAME=X", help=noise)
    model.add_argument("--alpha", type=float, metavar="X", help="the variant's alpha (jmvae-kl): as --set alpha=X")
    model.add_argument(
        "--set", type=assignment, action="append", metavar="NAME=X", help="another argument of the variant: k=20"
    )
    how = p.add_argument_group("training")
    how.add_argument("--epochs", type=count, metavar="N", help="passes over the data (default: 100)")
    how.add_argument("--batch-size", type=count, metavar="N", help="rows per step (default: 128)")
    how.add_argument("--lr", type=above_zero, metavar="X", help="Adam's learning rate (default: 0.001)")
    how.add_argument("--patience", type=count, metavar="N", help="stop after N epochs without a better validation loss")
    how.add_argument("--seed", type=int, metavar="N", help="of parameters, row order and noise (default: 0)")
    add_device(how)
    add_bf16(how)
    compiling = (
        "graphs of the training step: yes, no, or auto (the default): in runs of 20,000 steps and more, if faster"
    )
    how.add_argument("--compile", choices=list(COMPILE), default="auto", metavar="WHEN", help=compiling)
    how.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    how.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(arguments: argparse.Namespace) -> int:
    """Train, and say what came of it."""
    set_threads(arguments)
    from pyro_mm.runs import train_run

    settings, folder = settings_of(arguments)
    arguments.run_folder = folder  # for what is said if this does not end well
    if not arguments.quiet:
        print(f"{settings.variant} on {settings.data} -> {folder}", flush=True)
    done = train_run(
        settings,
        folder,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        download=arguments.download,
        progress=not arguments.quiet and sys.stderr.isatty(),
        tensorboard=arguments.tensorboard,
        device=device_of(arguments.device),
        compile=COMPILE[arguments.compile],
    )
    if done.interrupted:
        raise KeyboardInterrupt
    if not arguments.quiet:
        r = done.record
        early = ", stopped early" if r["stopped_early"] else ""
        print(f"{r['epochs']} epochs in {r['seconds']:.0f} s{early}; weights of epoch {r['best_epoch']}")
        print(f"next: pyro-mm evaluate {shlex.quote(str(folder))}")
    return 0


def settings_of(arguments: argparse.Namespace) -> tuple[Settings, Path]:
    """What the command line asks for, on top of the run's own settings when it is resumed."""
    from dataclasses import replace

    from pyro_mm import variants
    from pyro_mm.data import available
    from pyro_mm.settings import Settings, read_settings

    given = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    if "root" in given:
        given["root"] = str(Path(given["root"]).expanduser().absolute())  # the run may be opened from elsewhere
    if "data" in given:
        given["data"] = choose(given["data"], available(), "data set")
    if arguments.variant is not None:
        given["variant"] = choose(arguments.variant, variants.__all__, "variant")
    for what in ("weights", "noise"):
        if parts := getattr(arguments, what):
            given[what] = {m: x for part in parts for m, x in part.items()}
    options = {k: v for part in arguments.set or [] for k, v in part.items()}
    if arguments.alpha is not None:
        options["alpha"] = arguments.alpha
    if options:
        given["options"] = options
    if "variant" not in given and not (arguments.resume and arguments.out):
        raise UserError("which variant? 'pyro-mm list' shows them (to resume a run: --resume --out DIR)")
    folder = arguments.out or Path("runs") / f"{given['variant']}-{given.get('data', 'digits')}"
    if arguments.resume:
        return replace(read_settings(folder), **given), folder
    return Settings(**given), folder
