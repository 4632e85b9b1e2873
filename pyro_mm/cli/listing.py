"""`pyro-mm list`."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

from pyro_mm.cli.parser import Parser, command

EXAMPLES = """\
  pyro-mm list
  pyro-mm list | grep mmvae
  pyro-mm list --markdown
"""
WIDTH = 100


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "list", run, _fill, "show the variants by family, and the data sets, one line each", EXAMPLES)


def _fill(p: Parser) -> None:
    p.add_argument("--markdown", action="store_true", help="the whole catalogue: formulas, programs, checked numbers")


def run(arguments: argparse.Namespace) -> int:
    """Print both lists, or the catalogue."""
    from pyro_mm import catalogue, variants
    from pyro_mm.data import available

    if arguments.markdown:
        print(catalogue.markdown(catalogue.entries()), end="")
        return 0
    print("variants (pyro-mm describe NAME says more)")
    for family, names in catalogue.in_families():
        print(f"\n {family}")
        for name in names:
            make = getattr(variants, name)
            paper = f"{_short(make.paper.authors)} {make.paper.year}" if make.paper else ""
            print(_line(name.replace("_", "-"), f"{paper:<27}{first_line(make)}"))
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
