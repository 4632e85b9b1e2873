"""`pyro-mm list`."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

from pyro_mm.cli.parser import command

EXAMPLES = """\
  pyro-mm list
  pyro-mm list | grep mmvae
"""
WIDTH = 100


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "list", run, lambda p: None, "show the variants and data sets, one line each", EXAMPLES)


def run(arguments: argparse.Namespace) -> int:
    """Print both lists."""
    from pyro_mm import variants
    from pyro_mm.data import available

    print("variants (pyro-mm describe NAME says more)")
    for name in variants.__all__:
        make = getattr(variants, name)
        paper = f"{_short(make.paper.authors)} {make.paper.year}" if make.paper else ""
        print(_line(name.replace("_", "-"), f"{paper:<22}{first_line(make)}"))
    print("\ndata sets")
    for name, make in available().items():
        print(_line(name, first_line(make)))
    return 0


def first_line(thing: Callable[..., Any]) -> str:
    """Of its docstring."""
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _short(authors: str) -> str:
    """`Wu & Goodman`, `Shi et al.`"""
    names = authors.split(", ")
    return " & ".join(names) if len(names) < 3 else f"{names[0]} et al."


def _line(name: str, text: str) -> str:
    room = WIDTH - 24
    return f"  {name:<22}" + (text if len(text) <= room else text[: room - 4].rsplit(" ", 1)[0] + " ...")
