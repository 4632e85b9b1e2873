"""What an exchange has reached, on disk after every round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from pyro_mm.files import BadFile
from pyro_mm.training import checkpoint

__all__ = ["Reached", "fit_folder", "keep", "reached"]

FILE = "exchange.pt"


@dataclass
class Reached:
    """After so many rounds: responsibilities `(N, C)`, what was said to the VAE and by it `(N, D)`, its losses."""

    rounds: int
    r: Tensor | None
    mu: Tensor
    codes: Tensor
    losses: list[float] = field(default_factory=list)


def fit_folder(folder: Path, number: int) -> Path:
    """Where the VAE's training of a round keeps its checkpoint while it runs, and its log."""
    return folder / f"round_{number}"


def keep(folder: Path, modules: Mapping[str, nn.Module], now: Reached) -> None:
    """Write it down, and drop what the round's own training needed to go on.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    checkpoint.write(
        folder / FILE,
        {
            "format": checkpoint.FORMAT,
            "rounds": now.rounds,
            "r": now.r,
            "mu": now.mu,
            "codes": now.codes,
            "losses": now.losses,
            "tensors": checkpoint.snapshot(modules),
        },
    )
    (fit_folder(folder, now.rounds) / checkpoint.FILE).unlink(missing_ok=True)


def reached(folder: Path, modules: Mapping[str, nn.Module], start: Reached) -> Reached:
    """What the folder holds, its parameters put into the modules; or `start`.

    Raises:
        BadFile: the file is damaged or something else.
        ValueError: it is about other modules, or another number of rows or classes.
    """
    path = folder / FILE
    if not path.is_file():
        return start
    saved = checkpoint.read(path)
    if "rounds" not in saved:
        raise BadFile(f"{path} is no exchange's")
    there, here = (tuple(s.shape) for s in (saved["mu"], start.mu))
    if there != here:
        raise ValueError(f"{path} is about {there[0]} rows of {there[1]} numbers, these are {here[0]} of {here[1]}")
    checkpoint.copy_into(modules, saved["tensors"], str(path))
    r, mu, codes = (saved[k].to(start.mu.device) for k in ("r", "mu", "codes"))
    return Reached(saved["rounds"], r, mu, codes, saved["losses"])
