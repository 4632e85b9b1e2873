"""Eager steps or compiled ones: a graph where it was asked for, or where it was seen to take less time."""

from __future__ import annotations

import logging
import statistics
import warnings
from collections import Counter

import torch
from torch import nn
from torch.optim import Optimizer

from pyro_mm.batch import Batch
from pyro_mm.objectives.schedules import Schedule
from pyro_mm.training.adam import AdamUpdate
from pyro_mm.training.capture import CannotCapture, can_compile, capture
from pyro_mm.training.captured import Captured, Signature, signature
from pyro_mm.training.options import Options

__all__ = ["Graphs", "say", "wanted"]

WORTHWHILE = 20_000  # steps, over which a millisecond saved at each pays for the compiling
TRIAL = 12  # steps of each kind before one is chosen
WARM = 3  # of these are not counted: the first ones allocate, or compile
AGAIN = 12  # minibatches of another shape, and a quarter of all, make that shape worth a graph of its own
MOST = 4  # graphs of a stage
log = logging.getLogger(__name__)


class Graphs:
    """The compiled step of one stage, if it has one: a graph, or one each for a few shapes of minibatches.

    With "auto" the first steps are eager, the next ones compiled, and the kind with the lower median time goes on: for
    networks of convolutions a compiled step can take longer.  All are steps of the training, with the same noise.

    What Python holds is compared with what the graphs have where somebody may have changed it: in every epoch's first
    step, and in every step where callbacks, or schedules of the user's own, run between steps.
    """

    def __init__(self, objective: nn.Module, optimiser: Optimizer, options: Options, name: str) -> None:
        self.objective, self.optimiser, self.options, self.name = objective, optimiser, options, name
        self.measures = options.compile == "auto"
        self.over = False  # all further steps are eager
        self.unsure = False  # modules or the optimiser may have been changed since the last step
        self.told = False  # that minibatches of another shape are trained eagerly
        self.watched = any(hasattr(c, "on_step") for c in options.callbacks)
        self.meddled = self.watched or _moved_by_others(objective)
        self.graphs: dict[Signature, Captured] = {}
        self.current: Captured | None = None
        self.steps, self.others, self.refused = 0, Counter[Signature](), set[Signature]()
        self.times: dict[bool, list[float]] = {False: [], True: []}

    def of(self, batch: Batch) -> Captured | None:
        """The graph for this step; None: it is eager."""
        if self.over or (self.measures and len(self.times[False]) < TRIAL):
            return None
        deep, self.unsure = self.unsure or self.meddled, False
        if deep and (reason := next(filter(None, (g.stale() for g in self.graphs.values())), "")):
            self._drop(reason)
            return None
        key = signature(batch)
        self.steps += 1
        graph = self.graphs.get(key) or self._another(batch, key)
        if graph is not self.current:
            self.release()
        self.current = graph
        # What is left to compare is compared at every step, because it takes no time.
        if graph is not None and not deep and (reason := graph.stale(deep=False)):
            self._drop(reason)
            return None
        return graph

    def took(self, seconds: float, compiled: bool) -> None:
        """Hear what a step took, and choose once both kinds are known."""
        if not self.measures or self.over:
            return
        self.times[compiled].append(seconds)
        if len(self.times[True]) >= TRIAL:
            eager, graph = (statistics.median(self.times[kind][WARM:]) for kind in (False, True))
            log.info("%s: a compiled step takes %.3g s, an eager one %.3g s", self.name, graph, eager)
            self.measures = False
            if graph >= eager:
                self._end()

    def release(self) -> None:
        """Whoever uses the optimiser next finds it as if it had made all the steps."""
        if self.current is not None and self.current.update is not None:
            self.current.update.release()

    def close_epoch(self) -> None:
        """Others come: validation, the learning rate's schedule, callbacks."""
        self.release()
        self.unsure = True

    def _another(self, batch: Batch, key: Signature) -> Captured | None:
        """A graph for batches of this kind: the first, or one that is worth it."""
        if self.graphs and (key in self.refused or not self._often(key)):
            return None
        compiled = can_compile(batch.device)
        whole = compiled and AdamUpdate.suits(self.optimiser) and not self.watched
        update = AdamUpdate(self.optimiser, self.options.clip_norm) if whole else None
        try:
            self.release()
            self.graphs[key] = capture(self.objective, batch, compiled=compiled, update=update)
        except CannotCapture as refusal:
            if not self.graphs:
                say(self.options.compile, f"{self.name} is trained eagerly, not compiled: {refusal}")
                self._end()
                return None
            say(self.options.compile, f"{self.name}: minibatches of another shape are trained eagerly: {refusal}")
            self.refused.add(key)
        return self.graphs.get(key)

    def _often(self, key: Signature) -> bool:
        """Do minibatches of this kind, which no graph fits, keep coming?"""
        if not self.told:
            log.info("%s: a minibatch of another shape than the graph's is trained eagerly", self.name)
            self.told = True
        if len(self.others) > 100:  # of ever new shapes none keeps coming
            self.others.clear()
        self.others[key] += 1
        if self.measures or self.others[key] < AGAIN or 4 * self.others[key] < self.steps:
            return False
        if len(self.graphs) < MOST:
            return True
        say(
            self.options.compile, f"{self.name}: minibatches of more than {MOST} shapes: the others are trained eagerly"
        )
        self.refused.add(key)
        return False

    def _drop(self, reason: str) -> None:
        say(self.options.compile, f"{self.name} goes on eagerly, no longer compiled: {reason}")
        self._end()

    def _end(self) -> None:
        """Eager steps from now on."""
        self.release()
        self.graphs, self.current, self.over = {}, None, True


def _moved_by_others(objective: nn.Module) -> bool:
    """Is there a schedule that is not this package's, and may hold its value in Python?"""
    moving = [getattr(objective, "set_progress", None)]
    moving += [part.at for part in objective.modules() if isinstance(part, Schedule)]
    return any(m is not None and not (m.__module__ or "").startswith("pyro_mm.") for m in moving)


def say(asked: bool | str, text: str) -> None:
    """One line about what is not compiled: a warning to whoever has asked for it, for "auto" a line in the log."""
    if asked is True:
        warnings.warn(text, stacklevel=2)
    else:
        log.warning(text)


def wanted(asked: bool | str, steps: int | None, device: torch.device) -> bool:
    """Is a graph worth its compiling?  For "auto": many steps ahead, and a compiler for the device."""
    if asked == "auto":
        return steps is not None and steps >= WORTHWHILE and can_compile(device)
    return bool(asked)
