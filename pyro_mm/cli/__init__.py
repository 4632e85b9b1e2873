"""The command line: `pyro-mm train`, `evaluate`, `certify` and so on.

Each command is a module with `add(subparsers)` and `run(arguments) -> exit code`; torch and the rest of the library
are imported when a command runs, not when `--help` is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pyro_mm.cli.errors import explained
from pyro_mm.cli.parser import make_parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (training failed), 2 (the user's mistake) or 130 (Ctrl-C)."""
    try:
        arguments = make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed help, or one line on what is wrong
        return stop.code if isinstance(stop.code, int) else 2
    try:
        with explained(arguments) as outcome:
            outcome.code = arguments.run(arguments)
            sys.stdout.flush()
    except BrokenPipeError:  # `pyro-mm list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return outcome.code
