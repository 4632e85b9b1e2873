"""What Python changes after a capture: the graph notices, and training is the eager one."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.objectives import Objective, Term
from pyro_mm.objectives.schedules import Schedule
from pyro_mm.training import fit
from pyro_mm.training.captured import Captured
from pyro_mm.training.graphs import AGAIN, Graphs
from pyro_mm.training.options import Options

ROWS = Batch({"x": torch.randn(16, 5, generator=torch.Generator().manual_seed(0))})
EPOCHS, STEPS = 5, 2


class Ridge(nn.Module):
    """Squares, noise, drop-out and a penalty of weight `beta`, a number of Python."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.layer, self.drop, self.beta = nn.Linear(5, 3), nn.Dropout(0.5), 0.0
        self.log: dict[str, float] = {}

    def forward(self, batch: Batch) -> Tensor:
        out = self.drop(self.layer(batch.x["x"]))
        return (out - torch.randn_like(out)).square().mean() + self.beta * self.layer.weight.square().sum()


class Annealed(Ridge):
    def set_progress(self, epochs: float) -> None:
        self.beta = min(1.0, epochs / 3)


class Hook:
    """A callback that acts on the state, after epochs or after steps."""

    def __init__(self, act: Callable[[Any], Any], when: str) -> None:
        setattr(self, when, act)


@pytest.fixture
def used(monkeypatch) -> Iterator[list[int]]:
    """How many steps were a graph's; no graph is compiled."""
    count = [0]
    call = Captured.__call__

    def counted(self: Captured, batch: Batch) -> Any:
        count[0] += 1
        return call(self, batch)

    monkeypatch.setattr(Captured, "__call__", counted)
    monkeypatch.setattr("pyro_mm.training.graphs.can_compile", lambda device: False)
    yield count


@pytest.fixture
def whole(monkeypatch, used) -> list[int]:
    """The same, where the graph holds the update as well."""
    monkeypatch.setattr("pyro_mm.training.graphs.can_compile", lambda device: True)
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    return used


def trained(
    make: Callable[[], nn.Module], how: bool | str, hook: Callable[[], Hook] | None = None, **options: Any
) -> tuple[list[Tensor], list[str]]:
    """Parameters after training, and the warnings."""
    objective = make()
    parameters = list(objective.parameters())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        callbacks = [hook()] if hook else []
        options = {"batch_size": 8, "lr": 0.05, "progress": False} | options
        fit(objective, ROWS, EPOCHS, compile=how, callbacks=callbacks, **options)
    return [p.detach() for p in [*parameters, *objective.parameters()]], [str(w.message) for w in said]


def assert_eager(make: Callable[[], nn.Module], hook: Callable[[], Hook] | None = None, word: str = "") -> None:
    """Compiled training ends where eager training does, with one word about it, or none."""
    wanted, _ = trained(make, False, hook)
    found, said = trained(make, True, hook)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert [word in text for text in said] == ([True] if word else [])


def test_a_schedule_in_python(used) -> None:
    assert_eager(
        Annealed, None, "training goes on eagerly, no longer compiled: Python changed what the graph has as it"
    )
    assert used[0] == 1


def raise_beta(state: Any) -> None:
    state.objective.beta += 0.25


def keep_a_log(state: Any) -> None:
    state.objective.log["beta"] = 0.0


def freeze(state: Any) -> None:
    state.objective.layer.bias.requires_grad_(False)


def replace(state: Any) -> None:
    state.objective.layer.bias = nn.Parameter(torch.ones(3))


def watch(state: Any) -> None:
    state.objective.layer.register_forward_hook(lambda module, given, out: 2 * out)


def calm(state: Any) -> None:
    state.objective.drop.eval()


MEDDLING = {
    "attribute, after epochs": (raise_beta, "on_epoch", r"(beta)", STEPS),
    "attribute, after steps": (raise_beta, "on_step", r"(beta)", 1),
    "dict": (keep_a_log, "on_epoch", "(log)", STEPS),
    "requires_grad": (freeze, "on_epoch", "(layer.bias.requires_grad)", STEPS),
    "parameter": (replace, "on_epoch", "layer.bias is another tensor now", STEPS),
    "hook": (watch, "on_epoch", "(layer._forward_hooks)", STEPS),
    "mode": (calm, "on_step", "(drop.training)", 1),
}


@pytest.mark.parametrize("what", MEDDLING)
def test_callbacks_that_meddle(what: str, used) -> None:
    act, when, word, steps = MEDDLING[what]
    assert_eager(Ridge, lambda: Hook(act, when), word)
    assert used[0] == steps


def test_callbacks_that_only_look_leave_the_graph_alone(used) -> None:
    seen: list[float] = []
    assert_eager(Ridge, lambda: Hook(lambda state: seen.append(state.loss), "on_step"))
    assert used[0] == EPOCHS * STEPS


class Penalty(Term):
    def __init__(self) -> None:
        super().__init__()
        self.ridge = Ridge()

    def forward(self, batch: Batch) -> Tensor:
        loss: Tensor = self.ridge(batch)
        self.report = {"": -loss.detach()}
        return loss


class Assigned(Schedule):
    """Assigns its value where those of the package write into it."""

    def at(self, epochs: float) -> None:
        self.value = torch.tensor(min(1.0, (1 + epochs) / 3))


class Wider(Schedule):
    def at(self, epochs: float) -> None:
        self.value = torch.ones(1 + (epochs >= 1))


def test_schedules_that_assign_their_value(used) -> None:
    """The graph takes what stands there, unless it is of another kind."""
    assert_eager(lambda: Objective([(Assigned(0.5), Penalty())]))
    assert used[0] == EPOCHS * STEPS
    with pytest.raises(RuntimeError, match="equal size"):  # as eagerly
        trained(lambda: Objective([(Wider(0.5), Penalty())]), True)


def test_an_optimiser_that_is_loaded_anew(whole) -> None:
    kept: dict[str, Any] = {}

    def act(state: Any) -> None:
        if state.epoch == 1:
            kept.update(copy.deepcopy(state.optimiser.state_dict()))
            assert {float(s["step"]) for s in kept["state"].values()} == {STEPS}
        else:
            state.optimiser.load_state_dict(copy.deepcopy(kept))
            state.optimiser.param_groups[0]["lr"] = 0.01 * state.epoch

    assert_eager(Ridge, lambda: Hook(act, "on_epoch"))
    assert whole[0] == EPOCHS * STEPS


def change_betas(state: Any) -> None:
    state.optimiser.param_groups[0]["betas"] = (0.5, 0.9)


def test_an_optimiser_with_other_settings(whole) -> None:
    assert_eager(Ridge, lambda: Hook(change_betas, "on_epoch"), "the optimiser has other settings than the graph")
    assert whole[0] == STEPS


def graphs_of(how: bool | str) -> Graphs:
    objective = Ridge()
    return Graphs(objective, torch.optim.Adam(objective.parameters()), Options(compile=how), "training")


def test_a_first_minibatch_of_an_odd_shape(used, caplog) -> None:
    """The shape that keeps coming gets a graph of its own; one line says that steps are eager."""
    caplog.set_level(logging.INFO)
    graphs = graphs_of(True)
    odd = graphs.of(ROWS[:3])
    assert odd is not None
    found = [graphs.of(ROWS) for _ in range(AGAIN + 3)]
    assert found[: AGAIN - 1] == [None] * (AGAIN - 1) and None not in found[AGAIN - 1 :]
    assert graphs.of(ROWS[:3]) is odd and len(graphs.graphs) == 2
    assert [r.message for r in caplog.records if "shape" in r.message] == [
        "training: a minibatch of another shape than the graph's is trained eagerly"
    ]


@pytest.mark.parametrize("rows", [[16, 16, 16, 16, 3], list(range(16, 0, -1))], ids=["last ones", "ever new"])
def test_shapes_that_seldom_come_are_not_captured(rows: list[int], used) -> None:
    graphs = graphs_of(True)
    found = [graphs.of(ROWS[:n]) is not None for _ in range(20) for n in rows]
    assert found == [n == 16 for n in rows] * 20 and len(graphs.graphs) == 1
