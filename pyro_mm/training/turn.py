"""One optimiser and what it moves: a stage's, or one of those that a stage lets move in turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_mm.batch import Batch
from pyro_mm.ranks import Ranks
from pyro_mm.training.errors import refuse_global_parameters
from pyro_mm.training.graphs import Graphs, say, wanted
from pyro_mm.training.options import Options
from pyro_mm.training.stages import Stage

__all__ = ["Turn"]


class Turn:
    """An objective, its optimiser and its compiled step, if it has one.

    Args:
        alone: no other optimiser moves parameters of the stage.
    """

    def __init__(self, stage: Stage, options: Options, fabric: Any, ranks: Ranks, alone: bool) -> None:
        self.stage, self.options, self.fabric, self.ranks = stage, options, fabric, ranks
        precision = fabric.strategy.precision
        self.scaled = getattr(precision, "scaler", None) is not None  # then infinite gradients are its daily business
        self.raw = options.build(stage, fused=not self.scaled)
        self.scheduler = options.schedule(self.raw) if options.schedule is not None else None
        wrapped, self.optimiser = fabric.setup(stage.objective, self.raw)
        # On one device at full precision Fabric's wrapper has nothing to do, and takes 4 % of a small network's step.
        plain = not ranks.several and precision.precision == "32-true"
        self.module = stage.objective if plain else wrapped
        self.backward = fabric.backward
        if plain:
            self.optimiser, self.backward = self.raw, Tensor.backward
        own = {id(p) for p in stage.moving()}
        self.moving = {n: p for n, p in stage.objective.named_parameters() if id(p) in own}
        self.parameters = list(self.moving.values())
        self.others = [] if alone else [p for p in stage.objective.parameters() if p.requires_grad and id(p) not in own]
        self.graphs: Graphs | None = None
        self.fit_for_graphs = {
            "on one device at full precision": plain,
            "of stages without turns": alone,
            "without noise_by_row": not options.noise_by_row,
        }

    def plan(self, steps: int | None, quiet: bool) -> None:
        """Choose between eager steps and compiled ones, where so many are still to come (None: nobody knows)."""
        if not wanted(self.options.compile, steps, self.fabric.device):
            return
        lacking = [reason for reason, there in self.fit_for_graphs.items() if not there]
        if not lacking:
            self.graphs = Graphs(self.stage.objective, self.raw, self.options, self.stage.name)
        elif not quiet:
            say(self.options.compile, f"only training {lacking[0]} is compiled; this is eager")

    def eager(self, batch: Batch, number: int, rows: int, total: int) -> tuple[Tensor, Tensor]:
        """The loss, the norm of the gradient, and every moving parameter's `grad`."""
        # The first pass, before training, was validated.
        with pyro.validation_enabled(False), self._others_still():
            loss: Tensor = self.module(batch)
            refuse_global_parameters(f"after the forward pass of step {number}")
            for p in self.parameters:
                p.grad = None
            # Over the ranks gradients are averaged, whatever rows each has.
            share = rows * self.ranks.world / total
            self.backward(loss if share == 1.0 else loss * share)
        grads = [p.grad for p in self.parameters if p.grad is not None and not p.grad.is_sparse]
        norm = loss.new_zeros(()) if self.scaled or not grads else torch.stack(torch._foreach_norm(grads)).norm()
        return loss.detach(), norm

    def update(self) -> None:
        """Clip, and let the optimiser step."""
        if self.options.clip_norm is not None:
            self.fabric.clip_gradients(
                self.module, self.optimiser, max_norm=self.options.clip_norm, error_if_nonfinite=False
            )
        self.optimiser.step()

    def close_epoch(self, metric: float) -> None:
        """Move the learning rate; `metric` is the validation loss, or nan."""
        if self.graphs is not None:
            self.graphs.close_epoch()
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(metric)
        elif self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Of optimiser and learning rate."""
        self.release()
        scheduler = self.scheduler.state_dict() if self.scheduler is not None else None
        return {"optimiser": self.optimiser.state_dict(), "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        self.release()
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
            # Torch warns of a scheduler that moves before the optimiser: after this load it rightly may.
            self.raw._opt_called = True  # type: ignore[attr-defined]

    def release(self) -> None:
        """Whoever uses the optimiser next finds it as if it had made all the steps."""
        if self.graphs is not None:
            self.graphs.release()

    @contextmanager
    def _others_still(self) -> Iterator[None]:
        """What other turns move gets no gradient in this one."""
        for p in self.others:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in self.others:
                p.requires_grad_(True)
