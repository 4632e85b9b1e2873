"""Numbers on their way to a person: means over an epoch, the best so far, the progress bar."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mm.ranks import Ranks

__all__ = ["Bar", "Best", "Means"]

FETCH = 20
"""Steps between fetching values from the device."""


class Means:
    """Means over rows of what every step reports.  Values stay on their device until `fetch`, all in one transfer."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.rows: dict[str, int] = {}
        self.waiting: list[tuple[int, Mapping[str, Tensor | float]]] = []

    def add(self, rows: int, values: Mapping[str, Tensor | float]) -> bool:
        """Take one step's values, means over `rows` rows; True when it fetched."""
        self.waiting.append((rows, values))
        if len(self.waiting) < FETCH:
            return False
        self.fetch()
        return True

    def fetch(self) -> None:
        """Bring what waits into the sums."""
        flat = [v for _, values in self.waiting for v in values.values()]
        tensors = [v.reshape(()) for v in flat if isinstance(v, Tensor)]
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])
        for rows, values in self.waiting:
            for name, value in values.items():
                number = next(numbers) if isinstance(value, Tensor) else value
                self.sums[name] = self.sums.get(name, 0.0) + number * rows
                self.rows[name] = self.rows.get(name, 0) + rows
        self.waiting = []

    def means(self) -> dict[str, float]:
        """Means so far."""
        self.fetch()
        return {name: total / max(self.rows[name], 1) for name, total in self.sums.items()}

    def over(self, ranks: Ranks) -> dict[str, float]:
        """Means over the rows of all ranks; the same on each."""
        every = Means()
        for state in ranks.gathered(self.state_dict()):
            for name, rows in state["rows"].items():
                every.sums[name] = every.sums.get(name, 0.0) + state["sums"][name]
                every.rows[name] = every.rows.get(name, 0) + rows
        return every.means()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint in the middle of an epoch."""
        self.fetch()
        return {"sums": dict(self.sums), "rows": dict(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        self.sums, self.rows, self.waiting = dict(state["sums"]), dict(state["rows"]), []


@dataclass
class Best:
    """The least validation loss, the weights that gave it, and the epochs since."""

    metric: float = math.inf
    epoch: int = 0
    waited: int = 0
    weights: dict[str, Tensor] | None = None

    def improves(self, metric: float, epoch: int) -> bool:
        """Count an epoch; True when it is the best so far and its weights are wanted."""
        if metric < self.metric:
            self.metric, self.epoch, self.waited = metric, epoch, 0
            return True
        self.waited += 1
        return False


class Bar:
    """A progress bar over one stage's steps, with the ELBO, its terms and the last validation loss."""

    def __init__(self, shown: bool, stage: str, epochs: int, length: int | None, done: int) -> None:
        self.epochs, self.stage, self.valid = epochs, stage, ""
        self.bar: Any = None
        if shown:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=length and length * epochs, initial=done, unit="step", dynamic_ncols=True)

    def epoch(self, number: int) -> None:
        """A new epoch begins."""
        if self.bar is not None:
            self.bar.set_description(f"{self.stage}, epoch {number}/{self.epochs}", refresh=False)

    def step(self) -> None:
        """One step done."""
        if self.bar is not None:
            self.bar.update()

    def show(self, means: Mapping[str, float], validation: float | None = None) -> None:
        """New numbers: a single term with its parts, several terms each as one number."""
        if self.bar is None:
            return
        if validation is not None:
            self.valid = f", validation={validation:.5g}"
        terms = {k: v for k, v in means.items() if k not in ("loss", "gradient_norm")}
        whole = [k for k in terms if "/" not in k]
        if len(whole) > 1 or not terms:
            terms = {k: means[k] for k in whole or ["loss"] if k in means}
        text = ", ".join(f"{k.rpartition('/')[2]}={v:.5g}" for k, v in terms.items())
        self.bar.set_postfix_str(text + self.valid, refresh=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
