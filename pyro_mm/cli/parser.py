"""Arguments of all commands, without importing what they run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from pyro_mm import __version__

__all__ = [
    "Names",
    "Parser",
    "above_zero",
    "assignment",
    "assignments",
    "command",
    "count",
    "from_zero",
    "make_parser",
    "whole",
]

INTRO = """\
Multimodal generative models as Pyro programs: train published variants, and estimate
their log-likelihoods with error bars.

start here:
  pyro-mm demo                                   four variants on real digits, in minutes
  pyro-mm list                                   variants and data sets
  pyro-mm train mvae --data digits --out runs/a  then: pyro-mm evaluate runs/a
"""


class _Wide(argparse.RawDescriptionHelpFormatter):
    """Room for the longest command's name beside its help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)
        self._action_max_length = 13  # argparse forgets that the names of commands are indented


class Names(argparse.Action):
    """Several names, with spaces or commas between them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        names = [name.strip() for text in values for name in text.split(",")]
        setattr(namespace, self.dest, [name for name in names if name])


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; knows options by their full names only."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see '{self.prog} --help')", file=sys.stderr)
        sys.exit(2)


def make_parser() -> Parser:
    """The parser of `pyro-mm`."""
    from pyro_mm.cli import (
        certify,
        compare,
        demo,
        describe,
        diagnose,
        evaluate,
        generate,
        listing,
        plot,
        reproduce,
        train,
    )

    parser = Parser("pyro-mm", description=INTRO, formatter_class=_Wide)
    parser.add_argument("--version", action="version", version=f"pyro_mm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for module in (demo, listing, describe, train, evaluate, certify, diagnose, compare, generate, plot, reproduce):
        module.add(commands)
    return parser


def command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    fill: Callable[[Parser], object],
    summary: str,
    examples: str,
    story: str = "",
) -> None:
    """Add a sub-command: `fill` adds its arguments; those that all commands have come last."""
    parser: Parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + "." + (f"\n\n{story}" if story else ""),
        epilog=f"examples:\n{examples.rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    fill(parser)
    shared = parser.add_argument_group("other options")
    shared.add_argument("--threads", type=count, metavar="N", help="CPU threads of torch; 1 is best for small networks")
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")


def count(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got '{text}'")
    return value


def whole(text: str) -> int:
    """A whole number of at least 0."""
    if text.strip() == "0":
        return 0
    try:
        return count(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got '{text}'") from None


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got '{text}'")
    return value


def from_zero(text: str) -> float:
    """A finite number of at least 0."""
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got '{text}'")
    return value


def assignments(text: str) -> dict[str, float]:
    """`label=50,image=1` as numbers by name."""
    found = {}
    for part in text.split(","):
        name, value = _split(part, "label=50")
        found[name] = from_zero(value)
    return found


def assignment(text: str) -> dict[str, Any]:
    """`alpha=0.1` as one value by name; the value is JSON, or text where it is none."""
    name, value = _split(text, "alpha=0.1")
    try:
        return {name.replace("-", "_"): json.loads(value)}
    except ValueError:
        return {name.replace("-", "_"): value}


def _split(text: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise argparse.ArgumentTypeError(f"must look like {example}, got '{text}'")
    return name.strip(), value.strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
