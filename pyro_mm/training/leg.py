"""One stage under way: its optimiser, its steps, its validation, and the state that a checkpoint keeps of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_mm.batch import Batch
from pyro_mm.objectives.algebra import Objective
from pyro_mm.objectives.schedules import Schedule
from pyro_mm.training.capture import CannotCapture, Captured, can_compile, capture, wanted
from pyro_mm.training.errors import NonFiniteLoss, culprits, refuse_global_parameters, reports
from pyro_mm.training.meters import Best, Means
from pyro_mm.training.noise import aside
from pyro_mm.training.options import Options
from pyro_mm.training.source import Source
from pyro_mm.training.stages import Stage

__all__ = ["Leg"]

END = 1e9
"""Epochs after which every schedule has its final value; finite, so that a periodic one has a value there too."""


class Leg:
    """A stage being trained.  `epoch` and `batch` count what is complete: epochs, and minibatches of the next one."""

    def __init__(self, stage: Stage, options: Options, fabric: Any, length: int | None) -> None:
        self.stage, self.options, self.fabric, self.length = stage, options, fabric, length
        precision = fabric.strategy.precision
        self.scaled = getattr(precision, "scaler", None) is not None  # then infinite gradients are its daily business
        self.raw = options.build(stage, fused=not self.scaled)
        self.scheduler = options.schedule(self.raw) if options.schedule is not None else None
        wrapped, self.optimiser = fabric.setup(stage.objective, self.raw)
        # On one device at full precision Fabric's wrapper has nothing to do, and takes 4 % of a small network's step.
        plain = fabric.world_size == 1 and precision.precision == "32-true"
        self.module = stage.objective if plain else wrapped
        self.moving = {n: p for n, p in stage.objective.named_parameters() if p.requires_grad}
        self.parameters = list(self.moving.values())
        self.advance = progress_of(stage.objective)
        self.epoch = self.batch = 0
        self.stopped = False
        self.captured: Captured | None = None
        self.capturing = plain and wanted(options.compile, stage.epochs * length if length else None, fabric.device)
        if options.compile is True and not plain:
            warnings.warn("only training on one device at full precision is compiled; this is eager", stacklevel=2)
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

    def step(self, batch: Batch, number: int) -> float:
        """One optimiser step; the loss before it.

        Raises:
            NonFiniteLoss: before any parameter has changed.
        """
        batch = self._placed(batch)
        self.advance(self.progress)
        loss = self._loss_and_gradients(batch, number)
        # One transfer tells of loss and gradients: a NaN under a mask leaves the loss finite and poisons the gradient.
        grads = [p.grad for p in self.parameters if p.grad is not None and not p.grad.is_sparse]
        norms = loss.new_zeros(()) if self.scaled or not grads else torch.stack(torch._foreach_norm(grads)).norm()
        value, norm = torch.stack([loss.detach(), norms]).tolist()
        if not (math.isfinite(value) and math.isfinite(norm)):
            what = "the gradient is not finite" if math.isfinite(value) else f"the loss is {value}"
            self._fail(what, batch, number)
        if self.options.clip_norm is not None:
            self.fabric.clip_gradients(
                self.module, self.optimiser, max_norm=self.options.clip_norm, error_if_nonfinite=False
            )
        self.optimiser.step()
        self.batch += 1
        self.means.add(len(batch), {"loss": value, "gradient_norm": norm, **reports(self.stage.objective)})
        return value

    def _loss_and_gradients(self, batch: Batch, number: int) -> Tensor:
        """The loss, and every moving parameter's `grad`."""
        if self.capturing:
            self._capture(batch)
        if self.captured is not None and self.captured.fits(batch):
            return self.captured(batch)
        loss: Tensor = self.module(batch)
        refuse_global_parameters(f"after the forward pass of step {number}")
        for p in self.parameters:
            p.grad = None
        self.fabric.backward(loss)
        return loss

    def _capture(self, batch: Batch) -> None:
        """A graph of the step, if there can be one."""
        self.capturing = False
        try:
            self.captured = capture(self.stage.objective, batch, compiled=can_compile(batch.device))
        except CannotCapture as refusal:
            if self.options.compile is True:
                warnings.warn(f"{self.stage.name} is trained eagerly, not compiled: {refusal}", stacklevel=2)

    @torch.no_grad()
    def validate(self, source: Source, number: int) -> dict[str, float]:
        """Mean loss and terms over `source`, in evaluation mode, with schedules at their end and always the same noise.

        The streams that training draws from, and the schedules, are put back.
        """
        means = Means()
        self.stage.objective.eval()
        try:
            with aside(self.fabric.device, self.options.seed or 0, source.generators):
                self.advance(END)
                for batch in source.open():
                    batch = self._placed(batch)
                    loss = self.module(batch)
                    means.add(len(batch), {"": loss.detach(), **reports(self.stage.objective)})
                    if not math.isfinite(float(loss)):
                        self._fail(f"the validation loss is {float(loss)}", batch, number, validating=True)
        finally:
            self.advance(self.progress)
        return {f"validation/{k}" if k else "validation": v for k, v in means.means().items()}

    def close_epoch(self, validation: float | None) -> None:
        """Count an epoch and move the learning rate."""
        self.epoch, self.batch, self.means = self.epoch + 1, 0, Means()
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(validation if validation is not None else math.nan)
        elif self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """All that every rank has alike, but the modules' tensors."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "stopped": self.stopped,
            "optimiser": self.optimiser.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(),
            "best": dict(vars(self.best)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse."""
        self.epoch, self.batch, self.stopped = state["epoch"], state["batch"], state["stopped"]
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
            # Torch warns of a scheduler that moves before the optimiser: after this load it rightly may.
            self.raw._opt_called = True  # type: ignore[attr-defined]
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.best = Best(**state["best"])

    def _placed(self, batch: Batch) -> Batch:
        device = self.fabric.device
        return batch if batch.device == device else batch.to(device)

    def _fail(self, what: str, batch: Batch, number: int, validating: bool = False) -> NoReturn:
        gradients = {} if validating else {n: p.grad for n, p in self.moving.items()}
        found = culprits(self.stage.objective, batch, gradients)
        raise NonFiniteLoss(what, number, self.epoch + 1, self.stage.name, found)


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
