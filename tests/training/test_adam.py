"""A whole step as one graph is the eager step and torch's Adam, however the two take turns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.training.adam import AdamUpdate
from pyro_mm.training.capture import CannotCapture, capture
from pyro_mm.training.graphs import TRIAL, Graphs
from pyro_mm.training.options import Options
from tests.training.test_capture import DATA, MODALITIES

KINDS = {
    "Adam": lambda p: torch.optim.Adam(p, 3e-3, fused=True),
    "Adam, not fused": lambda p: torch.optim.Adam(p, 3e-3),
    "Adam with decay": lambda p: torch.optim.Adam(p, 3e-3, betas=(0.8, 0.99), eps=1e-4, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.3, fused=True),
}


def objective() -> nn.Module:
    torch.manual_seed(0)
    out: nn.Module = variants.mvae(MODALITIES, 2).objective
    return out


def eager_step(loss: nn.Module, optimiser: torch.optim.Optimizer, batch: Batch, clip: float | None) -> Tensor:
    optimiser.zero_grad(set_to_none=True)
    value = loss(batch)
    value.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(loss.parameters(), clip)
    optimiser.step()
    return value.detach()


def assert_alike(one: nn.Module, other: nn.Module, a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
        assert a.state[p].keys() == b.state[q].keys()
        for key, value in a.state[p].items():
            torch.testing.assert_close(value, b.state[q][key], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_graph_and_eager_steps_take_turns(kind: str, clip: float | None) -> None:
    """Every third batch is smaller and eager; the learning rate moves; both twins end alike, moments included."""
    one, other = objective(), objective()
    a, b = KINDS[kind](one.parameters()), KINDS[kind](other.parameters())
    update = AdamUpdate(a, clip)
    graph = capture(one, DATA, compiled=False, update=update)
    torch.manual_seed(1)
    for i in range(7):
        batch = DATA[:20] if i % 3 == 2 else DATA
        for optimiser in (a, b):
            optimiser.param_groups[0]["lr"] = 3e-3 / (1 + i)
        state = torch.get_rng_state()
        if graph.fits(batch):
            graph(batch)
        else:
            update.release()
            eager_step(one, a, batch, clip)
        torch.set_rng_state(state)
        eager_step(other, b, batch, clip)
    update.release()
    assert_alike(one, other, a, b)


def test_nothing_moves_where_the_gradient_is_not_finite() -> None:
    loss = objective()
    optimiser = torch.optim.Adam(loss.parameters(), fused=True)
    update = AdamUpdate(optimiser, None)
    graph = capture(loss, DATA, compiled=False, update=update)
    graph(DATA)
    before = [p.detach().clone() for p in loss.parameters()]
    moments = [optimiser.state[p]["exp_avg"].clone() for p in loss.parameters()]
    bad = Batch._view({**DATA.x, "x": torch.full_like(DATA.x["x"], torch.nan)}, DATA.mask)
    value, _ = graph(bad)
    assert not torch.isfinite(value)
    update.release()
    for p, was, m in zip(loss.parameters(), before, moments, strict=True):
        assert torch.equal(p, was) and torch.equal(optimiser.state[p]["exp_avg"], m)
        assert float(optimiser.state[p]["step"]) == 1


@pytest.mark.parametrize(
    ("make", "suits"),
    [
        (lambda p: torch.optim.Adam(p), True),
        (lambda p: torch.optim.AdamW(p), True),
        (lambda p: torch.optim.Adam(p, amsgrad=True), False),
        (lambda p: torch.optim.Adam(p, maximize=True), False),
        (lambda p: torch.optim.SGD(p, 0.1), False),
        (lambda p: torch.optim.Adam([{"params": [q]} for q in p]), False),
        (lambda p: torch.optim.NAdam(p), False),
    ],
)
def test_it_knows_which_optimisers_it_can_be(make, suits: bool) -> None:
    assert AdamUpdate.suits(make(list(objective().parameters()))) is suits


def test_an_optimiser_with_hooks_is_left_to_itself() -> None:
    optimiser = torch.optim.Adam(objective().parameters())
    optimiser.register_step_post_hook(lambda *_: None)
    assert not AdamUpdate.suits(optimiser)


def test_changed_settings_are_not_the_graphs() -> None:
    loss = objective()
    optimiser = torch.optim.Adam(loss.parameters())
    graph = capture(loss, DATA, compiled=False, update=AdamUpdate(optimiser, None))
    assert graph.fits(DATA)
    optimiser.param_groups[0]["betas"] = (0.5, 0.9)
    assert not graph.fits(DATA)


def test_gradient_hooks_are_refused() -> None:
    loss = objective()
    next(loss.parameters()).register_hook(lambda g: 2 * g)
    with pytest.raises(CannotCapture, match="gradient hooks"):
        capture(loss, DATA, compiled=False)


@pytest.mark.parametrize(("eager", "graph", "kept"), [(2.0, 1.0, True), (1.0, 2.0, False)])
def test_auto_keeps_what_took_less_time(monkeypatch, eager: float, graph: float, kept: bool) -> None:
    monkeypatch.setattr("pyro_mm.training.graphs.can_compile", lambda device: False)  # the graph runs as it is
    loss = objective()
    optimiser = torch.optim.Adam(loss.parameters())
    graphs = Graphs(loss, optimiser, Options(compile="auto"), "training")
    used = []
    for i in range(3 * TRIAL):
        compiled = graphs.of(DATA) is not None
        used.append(compiled)
        graphs.took((graph if compiled else eager) + (50.0 if i in (0, TRIAL) else 0.0), compiled)
    assert used == [False] * TRIAL + [True] * TRIAL + [kept] * TRIAL
