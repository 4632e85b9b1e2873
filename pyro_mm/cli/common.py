"""What several commands share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_mm.cli.errors import UserError

if TYPE_CHECKING:
    from pyro_mm.runs import Run

__all__ = ["add_bf16", "add_device", "add_run", "device_of", "drawn", "opened", "progress_line", "set_threads"]


def set_threads(arguments: argparse.Namespace, default: int | None = None) -> None:
    """As many threads as asked for, else `default`, else torch's own choice."""
    if (threads := arguments.threads or default) is not None:
        import torch

        torch.set_num_threads(threads)


def opened(arguments: argparse.Namespace) -> Run:
    """The run that a command is about, on the device that it was asked to use."""
    from pyro_mm.runs import open_run

    device = device_of(getattr(arguments, "device", "cpu"))
    run = open_run(arguments.folder, arguments.root)
    for module in run.recipe.modules.values():
        module.to(device)
    return run


def add_device(parser: argparse._ActionsContainer) -> None:
    """`--device`."""
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, mps or auto (the default)")


def add_bf16(parser: argparse._ActionsContainer, default: str | None = None) -> None:
    """`--bf16`, as `precision`."""
    told = "train with layers in bfloat16, for hardware that is fast at it; all else stays as it is"
    choice: dict[str, Any] = {"dest": "precision", "action": "store_const", "const": "bf16-layers", "default": default}
    parser.add_argument("--bf16", **choice, help=told)


def device_of(name: str) -> str:
    """`cpu`, `cuda` or `mps`; `auto` is the best there is.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(d for d, found in there.items() if found)
    if not there.get(name):
        raise UserError(f"no device '{name}' here; there is {', '.join(d for d, found in there.items() if found)}")
    return name


def add_run(parser: argparse.ArgumentParser) -> None:
    """The positional argument RUN and where its data are."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="the folder of a trained run")
    parser.add_argument("--root", metavar="DIR", help="where its data are now, if they have moved")


class progress_line:
    """`tell` for `evaluate_run`: one line on a terminal's stderr that is overwritten, and gone in the end."""

    def __init__(self, quiet: bool = False) -> None:
        self.shown = not quiet and sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self.shown:
            print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> progress_line:
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def drawn(draw: Callable[[Path], Any], path: Path, quiet: bool = False) -> None:
    """Draw a figure into a file, close it, and say where it is."""
    os.environ.setdefault("MPLBACKEND", "Agg")  # a terminal has no windows
    from pyro_mm import plots

    figure, _ = draw(path)
    plots.close(figure)
    if not quiet:
        print(path)
