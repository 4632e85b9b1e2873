"""One stage under way: its optimiser, its steps, its validation, and the state that a checkpoint keeps of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.objectives.algebra import Objective
from pyro_mm.objectives.schedules import Schedule
from pyro_mm.ranks import Ranks, derived_seed
from pyro_mm.training.errors import NonFiniteLoss, culprits, reports
from pyro_mm.training.keyed import keyed_noise
from pyro_mm.training.meters import Best, Means
from pyro_mm.training.noise import aside
from pyro_mm.training.options import Options
from pyro_mm.training.source import Source, shared
from pyro_mm.training.stages import Stage
from pyro_mm.training.turn import Turn

__all__ = ["Leg"]

END = 1e9
"""Epochs after which every schedule has its final value; finite, so that a periodic one has a value there too."""


class Leg:
    """A stage being trained.  `epoch` and `batch` count what is complete: epochs, and minibatches of the next one."""

    def __init__(self, stage: Stage, options: Options, fabric: Any, length: int | None) -> None:
        self.stage, self.options, self.fabric, self.length = stage, options, fabric, length
        self.ranks = Ranks(fabric.global_rank, fabric.world_size)
        if stage.turns and self.ranks.several:
            raise ValueError(f"{stage.name}: optimisers that step in turn train in one process, not in several")
        turns = stage.turns or (stage,)
        self.turns = [Turn(s, options, fabric, self.ranks, alone=len(turns) == 1) for s in turns]
        self.planned = False  # which steps are compiled: that depends on where a resumed run is
        self.raw = self.turns[0].raw
        self.moving = {n: p for n, p in stage.objective.named_parameters() if p.requires_grad}
        self.parameters = list(self.moving.values())
        self.advance = progress_of(stage.objective)
        self.epoch = self.batch = 0
        self.stopped = False
        self.best, self.means = Best(), Means()

    @property
    def progress(self) -> float:
        """Epochs done, a fraction counts."""
        return self.epoch + (self.batch / self.length if self.length else 0.0)

    @property
    def lr(self) -> float:
        """The first parameter group's learning rate."""
        return float(self.raw.param_groups[0]["lr"])

    @property
    def finished(self) -> bool:
        """No further epoch is wanted."""
        patience = self.options.patience
        return (
            self.stopped or self.epoch >= self.stage.epochs or (patience is not None and self.best.waited >= patience)
        )

    def step(self, batch: Batch, number: int, counts: tuple[int, int] | None = None) -> float:
        """One optimiser step; the loss before it, over all ranks.

        Args:
            counts: rows of the minibatch that count, and those of all ranks' together.

        Raises:
            NonFiniteLoss: before any parameter has changed; of several turns, before those of the turn have.
        """
        if not self.planned:
            self._plan()
        batch = self._placed(batch)
        self.advance(self.progress)
        rows, total = counts or (len(batch), len(batch))
        found = [self._turned(turn, batch, number, rows, total) for turn in self.turns]
        value, norm, summed = found[0]
        self.batch += 1
        self.means.add(rows, {"loss": value, "gradient_norm": norm, **reports(self.stage.objective)})
        return summed / total if self.ranks.several else value

    def _plan(self) -> None:
        ahead = self.stage.epochs * self.length - self.epoch * self.length - self.batch if self.length else None
        for turn in self.turns:
            turn.plan(ahead, quiet=self.ranks.rank > 0 or turn is not self.turns[0])
        self.planned = True

    def _turned(self, turn: Turn, batch: Batch, number: int, rows: int, total: int) -> tuple[float, float, float]:
        """One optimiser's step: the loss before it, the norm of its gradient, and the sum of losses over all rows."""
        began = time.perf_counter()
        graph = turn.graphs.of(batch) if turn.graphs is not None else None
        loss, norms = self._eager(turn, batch, number, rows, total) if graph is None else graph(batch)
        # One transfer tells of loss and gradients: a NaN under a mask leaves the loss finite and poisons the gradient.
        value, norm = torch.stack([loss, norms]).tolist()
        what = "the gradient is not finite" if not math.isfinite(norm) else ""
        what = what if math.isfinite(value) else f"the loss is {value}"
        if what and graph is not None:
            self._eager(turn, batch, number, rows, total)  # its gradients tell where
        summed = self._agree(what, batch, number, value * rows, turn=turn)
        if graph is None or graph.update is None:
            turn.update()
        if turn.graphs is not None:
            turn.graphs.took(time.perf_counter() - began, graph is not None)
        return value, norm, summed

    def _eager(self, turn: Turn, batch: Batch, number: int, rows: int, total: int) -> tuple[Tensor, Tensor]:
        with self._noise(number, len(batch), total):
            return turn.eager(batch, number, rows, total)

    @torch.no_grad()
    def validate(self, source: Source, number: int) -> dict[str, float]:
        """Mean loss and terms over `source`, in evaluation mode, with schedules at their end and always the same noise.

        The streams that training draws from, and the schedules, are put back.
        """
        means, what, batch = Means(), "", None
        self.stage.objective.eval()
        self.ranks.alike(self.stage.objective.buffers())
        try:
            with aside(self.fabric.device, self.ranks.seed(self.options.seed or 0), source.generators):
                self.advance(END)
                for part in shared(source, self.ranks):
                    batch = self._placed(part.batch)
                    with self._noise(-1 - part.number, len(batch), part.total, part.share):
                        loss = self._unwrapped(batch)
                    means.add(part.rows, {"": loss.detach(), **reports(self.stage.objective)})
                    if not math.isfinite(float(loss)):
                        what = f"the validation loss is {float(loss)}"
                        break
            self._agree(what, batch, number)
        finally:
            self.advance(self.progress)
        return {f"validation/{k}" if k else "validation": v for k, v in means.over(self.ranks).items()}

    def _unwrapped(self, batch: Batch) -> Tensor:
        """The objective outside of what makes ranks wait for each other: they may have different numbers of batches."""
        if not self.ranks.several and not self.stage.turns:
            return self.turns[0].module(batch)  # type: ignore[no-any-return]
        with self.fabric.autocast():
            return self.stage.objective(batch)  # type: ignore[no-any-return]

    def _noise(
        self, number: int, rows: int, total: int, share: tuple[int, int] | None = None
    ) -> AbstractContextManager[None]:
        """Where the noise of a pass comes from: of step `number`, or the stream."""
        if not self.options.noise_by_row:
            return nullcontext()
        key = derived_seed(self.options.seed or 0, "step", number)
        rank, world = share or (self.ranks.rank, self.ranks.world)
        return keyed_noise(key, rank, world, rows, total, self.fabric.device)

    def close_epoch(self, validation: float | None) -> None:
        """Count an epoch and move the learning rate."""
        self.epoch, self.batch, self.means = self.epoch + 1, 0, Means()
        for turn in self.turns:
            turn.close_epoch(validation if validation is not None else math.nan)

    def state_dict(self) -> dict[str, Any]:
        """All that every rank has alike, but the modules' tensors."""
        first, *others = (turn.state_dict() for turn in self.turns)
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "stopped": self.stopped,
            **first,
            "turns": others,
            "precision": self.fabric.strategy.precision.state_dict(),
            "best": dict(vars(self.best)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        self.epoch, self.batch, self.stopped = state["epoch"], state["batch"], state["stopped"]
        for turn, own in zip(self.turns, [state, *state.get("turns", [])], strict=True):
            turn.load_state_dict(own)
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.best = Best(**state["best"])

    def _placed(self, batch: Batch) -> Batch:
        device = self.fabric.device
        return batch if batch.device == device else batch.to(device)

    def _agree(
        self, what: str, batch: Batch | None, number: int, value: float = 0.0, turn: Turn | None = None
    ) -> float:
        """The sum of `value` over the ranks; raises on every one if something, `what`, is not finite on any.

        No rank may go on without the others: these would wait for it.
        """
        failed, summed = self.ranks.sums(bool(what), value)
        if not failed:
            return summed
        gradients = {} if turn is None else {n: p.grad for n, p in turn.moving.items()}
        objective = self.stage.objective if turn is None else turn.stage.objective
        found = culprits(objective, batch, gradients) if what and batch is not None else []
        told = [(w, f, r) for r, (w, f) in enumerate(self.ranks.gathered((what, found))) if w]
        # A gradient that is shared by all comes from a loss somewhere.
        first, _, rank = min(told, key=lambda each: "gradient" in each[0])
        everything = list(dict.fromkeys(f for _, each, _ in told for f in each))
        where = f" in process {rank}" if self.ranks.several else ""
        raise NonFiniteLoss(first + where, number, self.epoch + 1, self.stage.name, everything)


def progress_of(objective: nn.Module) -> Callable[[float], Any]:
    """`objective.set_progress`, without walking through all modules at every step for an objective of ours."""
    own = getattr(objective, "set_progress", None)
    if own is None:
        return lambda epochs: None
    if getattr(type(objective), "set_progress", None) is not Objective.set_progress:
        return own
    schedules = [m for m in objective.modules() if isinstance(m, Schedule)]

    def advance(epochs: float) -> None:
        for schedule in schedules:
            schedule.at(epochs)

    return advance
