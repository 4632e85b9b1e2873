"""The loop: stages, epochs, steps; and what is kept so that it can go on from any step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_mm.batch import Batch
from pyro_mm.ranks import Ranks
from pyro_mm.training import checkpoint
from pyro_mm.training.errors import NonFiniteLoss, refuse_global_parameters, require_modalities
from pyro_mm.training.history import History, Logs, State
from pyro_mm.training.interrupt import Interrupts
from pyro_mm.training.leg import Leg
from pyro_mm.training.meters import FETCH, Bar
from pyro_mm.training.noise import aside, noise_state, set_noise
from pyro_mm.training.options import Options
from pyro_mm.training.source import Rows, Source
from pyro_mm.training.stages import Stage

__all__ = ["Loop"]


class Loop:
    """One call of `fit`, from its arguments to its history."""

    def __init__(
        self,
        stages: Sequence[Stage],
        modules: Mapping[str, nn.Module],
        options: Options,
        fabric: Any,
        train: Source,
        valid: Source | None,
        folder: Path | None,
        config: str,
        logs: Logs,
    ) -> None:
        self.stages, self.options, self.fabric = stages, options, fabric
        self.train, self.valid, self.config, self.logs = train, valid, config, logs
        # Named modules first, then whatever else the objectives hold; shared tensors count once, under the first name.
        self.modules = {**modules, **{s.name: s.objective for s in stages}}
        self.path = folder / checkpoint.FILE if folder is not None else None
        self.ranks = Ranks(fabric.global_rank, fabric.world_size)
        self.history, self.guard = History(), Interrupts(self.ranks.several, terminate=folder is not None)
        self.last: Batch | None = None
        self.index = self.step = 0
        self.start: dict[str, Any] = {}
        self.leg: Leg
        self.bar: Bar

    def run(self, saved: dict[str, Any] | None) -> History:
        """Train, from `saved` on if given."""
        self._prepare()
        self._restore(saved)
        self.logs.start(self.history.rows)
        status = "failed"
        try:
            with self.guard.installed():
                while self.index < len(self.stages):
                    self._stage(saved)
                    saved, self.index = None, self.index + 1
            status = "success"
        except KeyboardInterrupt:
            status = "aborted"
            self.history.interrupted = True
            if self.path is None:
                raise
        finally:
            self.logs.close(status)
        return self.history

    def _prepare(self) -> None:
        """Move everything to the device and run every objective once.

        An autoguide or a lazy layer gets its parameters only then; an optimiser made earlier would never move them.
        """
        refuse_global_parameters("before training")
        with aside(self.fabric.device, generators=self.train.generators):
            self.last = batch = next(self.train.open(), None)
            if batch is None:
                raise ValueError("the data are empty: the loader gave no minibatch")
            for stage in self.stages:
                require_modalities(stage.objective, batch)
                self.fabric.to_device(stage.objective)
                stage.objective.eval()
                stage.objective(batch.to(self.fabric.device))
        refuse_global_parameters("after the objective ran once")

    def _restore(self, saved: dict[str, Any] | None) -> None:
        """Modules, position, history and random streams."""
        if saved is None:
            return
        checkpoint.copy_into(self.modules, saved["modules"], origin=str(self.path))
        self.index, self.step, self.start = saved["stage"], saved["step"], saved["start"]
        self.history.rows, self.history.stopped_early = saved["history"], saved["stopped_early"]
        own = saved["ranks"][self.ranks.rank]
        for g, state in zip(self.train.generators, own.get("generators", saved["generators"]), strict=True):
            g.set_state(state)
        if self.start and "began" in own:
            self.start["generators"] = own["began"]
        set_noise(own["noise"], self.fabric.device)

    def _stage(self, saved: dict[str, Any] | None) -> None:
        """Train one stage to its end and put its best weights back."""
        stage = self.stages[self.index]
        with stage.only_moving():
            self.leg = leg = Leg(stage, self.options, self.fabric, self.train.length)
            if isinstance(leg.turns[0].scheduler, ReduceLROnPlateau) and self.valid is None:
                raise ValueError("ReduceLROnPlateau watches the validation loss: give `validation`")
            if saved is not None:
                leg.load_state_dict(saved["leg"])
                leg.means.load_state_dict(saved["ranks"][self.ranks.rank]["means"])
            elif self.index == 0:
                self._save()  # so that a folder that cannot be written shows now, and a first epoch can be resumed
            shown = self.options.progress and self.fabric.is_global_zero
            done = leg.epoch * (leg.length or 0) + leg.batch
            self.bar = Bar(shown, stage.name, stage.epochs, leg.length, done)
            try:
                while not leg.finished:
                    self._epoch()
                with self.guard:
                    if leg.stopped:  # which a callback may have said after the epoch's checkpoint
                        self._save()
                    self.history.stopped_early |= leg.stopped or leg.epoch < stage.epochs
            except KeyboardInterrupt:
                if self.guard.whole:  # on all ranks or on none
                    self._save()
                self._finish()
                raise
            finally:
                self.bar.close()
            self._finish()

    def _finish(self) -> None:
        """The best weights, and evaluation mode: what follows a stage is the next one, or likelihoods.

        Of several turns the last: validation has the loss of the first one, which others may rightly make worse.
        """
        best = self.leg.best.weights
        if best is not None and self.options.restore_best and not self.leg.stage.turns:
            checkpoint.copy_into(self.modules, best, origin="the best weights")
        self.leg.stage.objective.eval()

    def _epoch(self) -> None:
        leg, began = self.leg, time.perf_counter()
        self.bar.epoch(leg.epoch + 1)
        leg.stage.set_modes()
        batches = self._open()
        while not leg.stopped:
            with self.guard:
                turn = self._turn(next(batches, None))
                if turn is None:
                    break
                self.step += 1
                loss = leg.step(turn[0], self.step, turn[1])
            self.bar.step()
            if leg.batch % FETCH == 0 and self.options.progress:
                self.bar.show(leg.means.means())
            self._call("on_step", loss)
            self._heed()
        self._close_epoch(began)
        self._heed()

    def _turn(self, batch: Batch | None) -> tuple[Batch, tuple[int, int]] | None:
        """The minibatch, with its rows and those of all ranks; None when no rank has one.

        A rank that has run out of data goes along with its last minibatch, of which no row counts.
        """
        rows = 0 if batch is None else len(batch)
        if self.ranks.several and isinstance(self.train, Rows):
            counts = self.train.counts(self.leg.batch)  # known without asking
        else:
            counts = rows, int(self.ranks.sums(rows)[0])
        if not counts[1]:
            return None
        self.last = self.last if batch is None else batch
        assert self.last is not None, "a minibatch was read before training"
        return self.last, counts

    def _heed(self) -> None:
        """Let all ranks stop when one was asked to: by a signal, or by a callback."""
        if self.ranks.several:
            pending, stopped = self.ranks.sums(self.guard.pending, self.leg.stopped)
            self.leg.stopped = stopped > 0
            if pending:
                self.guard.pending = False
                raise KeyboardInterrupt

    def _open(self) -> Iterator[Batch]:
        """The epoch's minibatches that are still to come."""
        generators, device, rank = self.train.generators, self.fabric.device, self.ranks.rank
        epoch = len(self.history.rows)
        with self.guard:
            here = noise_state(device)
            if not self.start:
                self.start = {"generators": [g.get_state() for g in generators], "noise": self.ranks.gathered(here)}
                return self.train.open(epoch)
            # Resumed within an epoch: from its start draw the same order, then return to where the streams were.
            for g, state in zip(generators, self.start["generators"], strict=True):
                g.set_state(state)
            set_noise(self.start["noise"][rank], device)
            batches = self.train.open(epoch, skip=self.leg.batch)
            set_noise(here, device)
            return batches

    def _close_epoch(self, began: float) -> None:
        """Validation, learning rate, best weights, history, checkpoint and logs of an epoch."""
        leg = self.leg
        if leg.batch == 0:
            raise ValueError(f"the data gave no minibatch in epoch {leg.epoch + 1}: can they be read only once?")
        validation = leg.validate(self.valid, self.step) if self.valid is not None else {}
        metric = validation.get("validation")
        with self.guard:
            seconds = time.perf_counter() - began
            row: dict[str, Any] = {"stage": leg.stage.name, "epoch": leg.epoch + 1, "step": self.step}
            means = leg.means.over(self.ranks)
            row |= {"seconds": seconds, "lr": leg.lr, **means, **validation}
            self._require_finite()
            if metric is not None and leg.best.improves(metric, leg.epoch + 1):
                leg.best.weights = checkpoint.snapshot(self.modules)
            leg.close_epoch(metric)
            self.start = {}
            self.history.rows.append(row)
            if leg.epoch % self.options.checkpoint_every == 0 or leg.finished:
                self._save()
            if self.fabric.is_global_zero:
                self.logs.add(self.history.rows)
        self.bar.show(means, metric)
        self._call("on_epoch", means["loss"], row)

    def _require_finite(self) -> None:
        """A checkpoint must be one that training can go on from."""
        leg = self.leg
        if bool(torch.stack([torch.isfinite(p).all() for p in leg.parameters]).all()):
            return
        bad = [f"parameter {n}" for n, p in leg.moving.items() if not bool(torch.isfinite(p).all())]
        what = "the parameters are not finite after the last step"
        raise NonFiniteLoss(what, self.step, leg.epoch + 1, leg.stage.name, bad[:3])

    def _call(self, method: str, loss: float, row: dict[str, Any] | None = None) -> None:
        """Tell the callbacks, and hear whether one of them wants to stop."""
        if not self.options.callbacks:
            return
        leg = self.leg
        epoch = leg.epoch + (method == "on_step")
        state = State(leg.stage.objective, leg.raw, self.history, leg.stage.name, epoch, self.step, loss, row or {})
        for callback in self.options.callbacks:
            if hasattr(callback, method):
                try:
                    getattr(callback, method)(state)
                except KeyboardInterrupt:
                    if not self.ranks.several:
                        raise
                    self.guard.pending = True
        leg.stopped |= state.stop

    def _save(self) -> None:
        """Write the checkpoint, if there is a folder; batch statistics become rank 0's, as in every step."""
        self.ranks.alike(self.leg.stage.objective.buffers())
        if self.path is None:
            return
        own = {
            "noise": noise_state(self.fabric.device),
            "means": self.leg.means.state_dict(),
            "generators": [g.get_state() for g in self.train.generators],
            "began": self.start.get("generators"),
        }
        ranks, error = self.ranks.gathered(own), None
        if self.fabric.is_global_zero:
            try:
                self._write(ranks)
            except Exception as caught:  # which all are to hear of
                error = caught
        if failed := self.ranks.gathered(error)[0]:
            raise failed

    def _write(self, ranks: list[dict[str, Any]]) -> None:
        """The checkpoint, rank 0's and what the others told it."""
        assert self.path is not None
        state = {
            "format": checkpoint.FORMAT,
            "config": self.config,
            "modules": {n: t.detach() for n, t in checkpoint.tensors_of(self.modules).items()},
            "stage": self.index,
            "step": self.step,
            "leg": self.leg.state_dict(),
            "history": self.history.rows,
            "stopped_early": self.history.stopped_early,
            "ranks": ranks,
            "generators": ranks[0]["generators"],
            "start": self.start,
        }
        checkpoint.write(self.path, state)
