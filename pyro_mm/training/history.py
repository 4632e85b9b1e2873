"""What happened, epoch by epoch: in memory, as a table, and in files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from pyro_mm.files import write_atomic

__all__ = ["Callback", "History", "Logs", "State"]

Row = dict[str, Any]


@dataclass
class History:
    """One row per epoch: `stage`, `epoch` (from 1), `step`, `seconds`, `lr`, `loss`, `gradient_norm`, the objective's
    terms (`elbo`, `elbo/image`, `elbo/kl`, ...) and, with validation data, `validation` and `validation/elbo`, ...

    All are means over the rows of the epoch, in nats; losses are minus bounds.  `history["elbo"]` is a column.

    Attributes:
        rows: the rows, in order.
        interrupted: Ctrl-C or SIGTERM ended the run; `fit(..., resume=True)` continues it.
        stopped_early: patience, or a callback, ended a stage before its last epoch.
    """

    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False
    stopped_early: bool = False

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the last stage with the least validation loss; None without validation."""
        rows = [r for r in self.rows if r["stage"] == self.rows[-1]["stage"] and "validation" in r]
        return min(rows, key=lambda r: r["validation"])["epoch"] if rows else None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, column: str) -> list[Any]:
        """A column; NaN where a row lacks it."""
        if not any(column in r for r in self.rows):
            raise KeyError(f"no column '{column}'; there are {columns(self.rows)}")
        return [r.get(column, math.nan) for r in self.rows]

    def table(self, last: int | None = None, names: Sequence[str] | None = None) -> str:
        """The rows (or the `last` few) as aligned text; without `names`, the columns that people look at."""
        rows = self.rows if last is None else self.rows[-last:]
        hidden = {"step", "lr", *(["stage"] if len({r["stage"] for r in rows}) < 2 else [])}
        if names is None:
            names = [n for n in columns(rows) if n not in hidden and not n.startswith("validation/")]
        lines = [names, *([_short(r.get(n, "")) for n in names] for r in rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)

    def __repr__(self) -> str:
        end = ", interrupted" if self.interrupted else ", stopped early" if self.stopped_early else ""
        best = "" if self.best_epoch is None else f", best at {self.best_epoch}"
        return f"History({len(self.rows)} epochs{best}{end})\n{self.table(5)}"


@dataclass
class State:
    """What a callback sees.  Setting `stop` ends the stage after the step or epoch at hand.

    `row` is the epoch's row in `on_epoch`; in `on_step` it is empty.  `epoch` counts from 1, `step` over all stages.
    """

    objective: nn.Module
    optimiser: Optimizer
    history: History
    stage: str
    epoch: int
    step: int
    loss: float
    row: Row = field(default_factory=dict)
    stop: bool = False


class Callback(Protocol):
    """Any object with one or both of these methods."""

    def on_step(self, state: State) -> None:
        """Called after every optimiser step."""

    def on_epoch(self, state: State) -> None:
        """Called after every epoch, when its checkpoint has been written."""


class Logs:
    """The files of a run folder, and any loggers with Lightning's `log_metrics(metrics, step)`."""

    def __init__(
        self,
        folder: Path | None = None,
        jsonl: bool = False,
        tensorboard: bool = False,
        loggers: Sequence[Any] = (),
    ) -> None:
        self.csv = folder / "log.csv" if folder is not None else None
        self.jsonl = folder / "log.jsonl" if folder is not None and jsonl else None
        self.loggers = list(loggers)
        if folder is not None and tensorboard:
            self.loggers.append(_tensorboard(folder))
        self.header: list[str] = []

    def start(self, rows: list[Row]) -> None:
        """Make the files say exactly `rows`: rows after the checkpoint that is resumed are dropped."""
        self.header = columns(rows)
        if self.csv is not None:
            write_atomic(self.csv, _csv(self.header, rows, heading=bool(rows)))
        if self.jsonl is not None:
            write_atomic(self.jsonl, "".join(json.dumps(r) + "\n" for r in rows))

    def add(self, rows: list[Row]) -> None:
        """Write the last of `rows`."""
        row = rows[-1]
        if not row.keys() <= set(self.header):  # the first row, or a stage with other terms: the heading changes
            self.start(rows)
        else:
            if self.csv is not None:
                _append(self.csv, _csv(self.header, [row], heading=False))
            if self.jsonl is not None:
                _append(self.jsonl, json.dumps(row) + "\n")
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
        for logger in self.loggers:
            logger.log_metrics(numbers, row["step"])

    def close(self, status: str) -> None:
        """Let the loggers write what they hold."""
        for logger in self.loggers:
            if hasattr(logger, "finalize"):
                logger.finalize(status)


def columns(rows: Sequence[Row]) -> list[str]:
    """The names in any row, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.1f}"


def _csv(header: list[str], rows: Sequence[Row], heading: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    if heading:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def _tensorboard(folder: Path) -> Any:
    from lightning_fabric.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(root_dir=folder, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tensorboard=True needs tensorboard: pip install tensorboard") from error
