"""Eager steps or compiled ones: a graph where it was asked for, or where it was seen to take less time."""

from __future__ import annotations

import logging
import statistics
import warnings

import torch
from torch import nn
from torch.optim import Optimizer

from pyro_mm.batch import Batch
from pyro_mm.training.adam import AdamUpdate
from pyro_mm.training.capture import CannotCapture, Captured, can_compile, capture
from pyro_mm.training.options import Options

__all__ = ["Graphs", "wanted"]

WORTHWHILE = 20_000  # steps, over which a millisecond saved at each pays for the compiling
TRIAL = 12  # steps of each kind before one is chosen
WARM = 3  # of these are not counted: the first ones allocate, or compile
log = logging.getLogger(__name__)


class Graphs:
    """The compiled step of one stage, if it has one.

    With "auto" the first steps are eager, the next ones compiled, and the kind with the lower median time goes on: for
    networks of convolutions a compiled step can take longer.  All are steps of the training, with the same noise.
    """

    def __init__(self, objective: nn.Module, optimiser: Optimizer, options: Options, name: str) -> None:
        self.objective, self.optimiser, self.options, self.name = objective, optimiser, options, name
        self.measures = options.compile == "auto"
        self.waiting = True  # no graph has been tried yet
        self.captured: Captured | None = None
        self.times: dict[bool, list[float]] = {False: [], True: []}

    def of(self, batch: Batch) -> Captured | None:
        """The graph for this step; None: it is eager."""
        if self.waiting and (not self.measures or len(self.times[False]) >= TRIAL):
            self._capture(batch)
        if self.captured is not None and self.captured.fits(batch):
            return self.captured
        self.release()
        return None

    def took(self, seconds: float, compiled: bool) -> None:
        """Hear what a step took, and choose once both kinds are known."""
        if not self.measures:
            return
        self.times[compiled].append(seconds)
        if len(self.times[True]) >= TRIAL:
            eager, graph = (statistics.median(self.times[kind][WARM:]) for kind in (False, True))
            log.info("%s: a compiled step takes %.3g s, an eager one %.3g s", self.name, graph, eager)
            if graph >= eager:
                self.release()
                self.captured = None
            self.measures = False

    def release(self) -> None:
        """Whoever uses the optimiser next finds it as if it had made all the steps."""
        if self.captured is not None and self.captured.update is not None:
            self.captured.update.release()

    def _capture(self, batch: Batch) -> None:
        """A graph of the step, if there can be one; of the whole step where that pays."""
        self.waiting = False
        compiled = can_compile(batch.device)
        whole = compiled and AdamUpdate.suits(self.optimiser) and not self._watched()
        update = AdamUpdate(self.optimiser, self.options.clip_norm) if whole else None
        try:
            self.captured = capture(self.objective, batch, compiled=compiled, update=update)
        except CannotCapture as refusal:
            self.measures = False
            if self.options.compile is True:
                warnings.warn(f"{self.name} is trained eagerly, not compiled: {refusal}", stacklevel=2)

    def _watched(self) -> bool:
        """May a callback look at gradients, which a whole step does not show?"""
        return any(hasattr(c, "on_step") for c in self.options.callbacks)


def wanted(asked: bool | str, steps: int | None, device: torch.device) -> bool:
    """Is a graph worth its compiling?  For "auto": many steps ahead, and a compiler for the device."""
    if asked == "auto":
        return steps is not None and steps >= WORTHWHILE and can_compile(device)
    return bool(asked)
