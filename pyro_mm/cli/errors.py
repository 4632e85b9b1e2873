"""What a command says when it cannot do what was asked: one line on stderr, and how to go on."""

from __future__ import annotations

import argparse
import errno
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

__all__ = ["Outcome", "UserError", "choose", "explained"]

LITTLE = 10 << 20  # bytes on a disk that is as good as full


class UserError(ValueError):
    """A mistake on the command line."""


@dataclass
class Outcome:
    """The exit code of a command."""

    code: int = 0


@contextmanager
def explained(arguments: argparse.Namespace) -> Iterator[Outcome]:
    """Turn what a user can mend into one line and an exit code; with `--debug`, and for bugs, leave the traceback."""
    outcome = Outcome()
    try:
        yield outcome
    except KeyboardInterrupt:
        outcome.code = 130
        resume = _resume(arguments)
        _say("interrupted" + (f"; go on with: {resume}" if resume else ""))
    except BrokenPipeError:
        raise
    except ArithmeticError as error:  # NonFiniteLoss
        if arguments.debug:
            raise
        outcome.code = 1
        _say(f"training failed: {_one_line(error)}; a smaller --lr often helps")
    except Exception as error:
        if arguments.debug or not _is_mistake(error):
            raise
        outcome.code = 2
        _say(f"{_words(error)}{_hint(error, arguments)}")


def choose(name: str, options: Iterable[str], kind: str) -> str:
    """The option that `name` means; dashes count as underscores, and case not at all.

    Raises:
        UserError: there is none; the message suggests what is close, or lists them.
    """
    options = list(options)
    wanted = name.strip().lower().replace("-", "_")
    if wanted in options:
        return wanted
    close = get_close_matches(wanted, options, n=3, cutoff=0.6)
    meant = f"did you mean {' or '.join(_dashed(c) for c in close)}?" if close else f"there are {_listed(options)}"
    raise UserError(f"unknown {kind} '{name}': {meant}")


def _listed(options: list[str]) -> str:
    return ", ".join(_dashed(o) for o in options)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _is_mistake(error: Exception) -> bool:
    """Is it about what the user asked for?  A ValueError from deep inside torch is a bug, and wants its traceback."""
    if isinstance(error, ImportError):
        return not (error.name or "").startswith("pyro_mm")
    if isinstance(error, UserError | OSError) or type(error).__name__ == "NoLikelihood":
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = str(last.tb_frame.f_globals.get("__name__", "")) if last is not None else ""
    return isinstance(error, ValueError) and place.startswith("pyro_mm")


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{_one_line(error.strerror)}"
    return _one_line(error)


def _hint(error: Exception, arguments: argparse.Namespace) -> str:
    """How to go on, where there is a way."""
    if isinstance(error, OSError) and (error.errno in (errno.ENOSPC, errno.EDQUOT) or _disk_full(arguments)):
        resume = _resume(arguments)
        return "; free some space" + (f", then go on with: {resume}" if resume else "")
    if isinstance(error, FileExistsError) and error.errno is None:  # ours; the system's is about a file in the way
        return " (--resume, --overwrite or --out)"
    return ""


def _disk_full(arguments: argparse.Namespace) -> bool:
    """torch's writer reports a full disk in words of its own."""
    folder: Path | None = getattr(arguments, "run_folder", None)
    return folder is not None and folder.is_dir() and shutil.disk_usage(folder).free < LITTLE


def _resume(arguments: argparse.Namespace) -> str | None:
    """The command that goes on with a training of which something was saved."""
    folder: Path | None = getattr(arguments, "run_folder", None)
    if folder is None or not (folder / "checkpoint.pt").is_file():
        return None
    return f"pyro-mm train --resume --out {shlex.quote(str(folder))}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _say(text: str) -> None:
    print(f"pyro-mm: {text}", file=sys.stderr)
