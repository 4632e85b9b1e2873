"""Ctrl-C at any moment: between steps at once, inside a step after it; and what is left behind."""

import functools
import os
import signal

import pytest
import torch
from torch import nn

from pyro_mm.objectives import elbo
from pyro_mm.training import fit
from pyro_mm.training.interrupt import Interrupts
from tests.helpers.training import At, Noisy, data, pair, raising, rows_of, same
from tests.training.test_resume import run, warmup, with_options


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C as at a terminal: a shell starts background jobs with SIGINT ignored, and the tests may run in one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Signal(nn.Module):
    """An objective that sends Ctrl-C to its own process in the middle of a step."""

    def __init__(self, objective, calls, times=1):
        super().__init__()
        self.objective, self.calls, self.times, self.count = objective, calls, times, 0

    def forward(self, batch):
        self.count += self.training
        loss = self.objective(batch)
        if self.training and self.count in self.calls:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return loss


def test_ctrl_c_waits_for_the_end_of_the_step(tmp_path):
    def case(calls=()):
        return Signal(elbo(*pair()), calls), Noisy(data()), {}

    straight, history, weights, _ = run(case, tmp_path / "straight")
    losses, partial, _, _ = run(functools.partial(case, calls=(5,)), tmp_path / "parts")
    assert sorted(losses) == [1, 2, 3, 4] and partial.interrupted  # step 5 is complete, though nobody was told
    assert torch.load(tmp_path / "parts" / "checkpoint.pt")["step"] == 5
    rest, again, last, _ = run(case, tmp_path / "parts", resume=True)
    assert sorted(rest) == list(range(6, 13)) and losses | {5: straight[5]} | rest == straight
    assert rows_of(again) == rows_of(history) and same(weights, last)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_breaks_the_step_and_keeps_the_last_checkpoint(tmp_path):
    def case(calls=()):
        return Signal(elbo(*pair()), calls, times=2), Noisy(data()), {}

    straight, _, weights, _ = run(case, tmp_path / "straight")
    losses, partial, _, _ = run(functools.partial(case, calls=(5,)), tmp_path / "parts")
    assert partial.interrupted and torch.load(tmp_path / "parts" / "checkpoint.pt")["step"] == 3
    rest, _, last, _ = run(case, tmp_path / "parts", resume=True)
    assert losses | rest == straight and min(rest) == 4 and same(weights, last)


def test_shield_holds_one_interrupt_and_lets_a_second_through():
    guard = Interrupts()
    with guard.installed():
        with pytest.raises(KeyboardInterrupt), guard:
            os.kill(os.getpid(), signal.SIGINT)
            assert not guard.whole and guard.pending
        assert guard.whole and not guard.pending
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert guard.whole
        with pytest.raises(KeyboardInterrupt), guard:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        assert not guard.whole


def test_someone_elses_handler_is_left_alone():
    heard = []
    signal.signal(signal.SIGINT, lambda *a: heard.append(1))
    try:
        with Interrupts().installed() as _:
            os.kill(os.getpid(), signal.SIGINT)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("moment", ["opening", "validating"])
def test_interrupted_between_steps(moment, tmp_path, monkeypatch):
    """Also when the order of an epoch has been drawn but no step was made, and in the middle of a validation."""
    from pyro_mm.training.leg import Leg
    from pyro_mm.training.source import Rows

    case = functools.partial(with_options, warmup, validation=data(9, seed=2))
    straight, history, weights, _ = run(case, tmp_path / "straight")
    opened = []

    def opening(self, *args, **kwargs):
        opened.append(1)
        batches = original(self, *args, **kwargs)
        if len(opened) == 4 and moment == "opening":  # dry run, epoch 1, validation, epoch 2
            os.kill(os.getpid(), signal.SIGINT)
        return batches

    def placing(self, batch):
        if len(opened) == 5 and moment == "validating":
            os.kill(os.getpid(), signal.SIGINT)
        return place(self, batch)

    original, place = Rows.open, Leg._placed
    monkeypatch.setattr(Rows, "open", opening)
    monkeypatch.setattr(Leg, "_placed", placing)
    losses, partial, _, _ = run(case, tmp_path / "parts")
    monkeypatch.undo()
    assert partial.interrupted and len(losses) == (3 if moment == "opening" else 6)
    assert len(partial) == 1
    rest, again, last, _ = run(case, tmp_path / "parts", resume=True)
    assert losses | rest == straight and rows_of(again) == rows_of(history) and same(weights, last)


def test_without_a_folder_an_interrupt_is_raised():
    model, guide = pair()
    with pytest.raises(KeyboardInterrupt):
        fit(elbo(model, guide), data(), 3, progress=False, callbacks=[At(2, raising(KeyboardInterrupt()))])
    assert not model.training and all(p.requires_grad for p in model.parameters())


def test_an_interrupted_run_leaves_the_best_weights_so_far(tmp_path):
    case = functools.partial(with_options, warmup, validation=data(9, seed=2), lr=0.5)
    _, partial, weights, _ = run(case, tmp_path, [At(10, raising(KeyboardInterrupt()))])
    saved = torch.load(tmp_path / "checkpoint.pt")
    best = {f"0.{n.removeprefix('training.')}": t for n, t in saved["leg"]["best"]["weights"].items()}
    assert partial.best_epoch == saved["leg"]["best"]["epoch"]
    assert all(torch.equal(weights[n], t) for n, t in best.items())
    assert any(not torch.equal(best[f"0.{n.removeprefix('training.')}"], t) for n, t in saved["modules"].items())


def test_an_error_after_ctrl_c_is_the_ctrl_c():
    """A terminal's Ctrl-C also kills data loader workers, and torch then raises RuntimeError."""
    guard = Interrupts()
    with guard.installed(), pytest.raises(KeyboardInterrupt) as caught, guard:
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")
    assert isinstance(caught.value.__cause__, RuntimeError) and not guard.whole and not guard.pending
    with guard.installed(), pytest.raises(RuntimeError), guard:
        raise RuntimeError("no Ctrl-C before it")


def test_sigterm_is_ctrl_c_where_there_is_a_folder_to_save_to(tmp_path):
    """A scheduler that wants its machine back sends it; without a folder it ends the process, as ever."""

    def terminate(state):
        os.kill(os.getpid(), signal.SIGTERM)

    straight, history, weights, _ = run(with_streams, tmp_path / "straight")
    losses, partial, _, _ = run(with_streams, tmp_path / "parts", [At(5, terminate)])
    assert partial.interrupted and sorted(losses) == [1, 2, 3, 4, 5]
    rest, again, last, _ = run(with_streams, tmp_path / "parts", resume=True)
    assert losses | rest == straight and rows_of(again) == rows_of(history) and same(weights, last)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    with Interrupts().installed():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def with_streams():
    return elbo(*pair()), Noisy(data()), {}


def test_among_several_processes_a_signal_waits_to_be_asked_about():
    """torchrun passes one Ctrl-C on as two signals; a third says that waiting has been long enough."""
    guard = Interrupts(shared=True, terminate=True)
    with guard.installed():
        with guard:
            os.kill(os.getpid(), signal.SIGINT)
        assert guard.pending and guard.whole
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.pending and guard.whole
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert not guard.whole
