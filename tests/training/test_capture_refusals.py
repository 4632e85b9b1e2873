"""What a graph would freeze is refused when it is captured: values, shapes, randomness, state and hooks of Python."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.training.capture import CannotCapture, capture

ROWS = Batch(
    {"x": torch.randn(12, 5, generator=torch.Generator().manual_seed(0))}, {"x": torch.arange(12).remainder(3) > 0}
)
Twist = Callable[[Any, Tensor, Batch], Tensor]
COUNT = {"calls": 0, "factor": 1}


class Twisted(nn.Module):
    """The mean of a layer's output, `(N,)`, with a twist."""

    seen: ClassVar[dict[str, int]] = {"calls": 0}

    def __init__(self, twist: Twist) -> None:
        super().__init__()
        self.layer, self.twist = nn.Linear(5, 1), twist
        self.register_buffer("mean", torch.zeros(()))
        self.box, self.log, self.nested = SimpleNamespace(n=0), {"n": 0}, [[1.0], {"deep": {"er": 0}}]
        self.plain, self.array = torch.zeros(1), np.zeros(3)
        self.noise, self.counter = np.random.default_rng(0), itertools.count()
        self.last: Any = None

    def forward(self, batch: Batch) -> Tensor:
        return self.twist(self, self.layer(batch.x["x"]).squeeze(-1), batch) * COUNT["factor"]


def refused(twist: Twist, reason: str) -> None:
    with pytest.raises(CannotCapture, match=reason):
        capture(Twisted(twist), ROWS, compiled=False)


READ: dict[str, tuple[Twist, str]] = {
    "tolist": (lambda s, o, b: o.mean() * sum(b.mask["x"].tolist()), r"values in Python \(`.tolist\(\)`\)"),
    "numpy": (lambda s, o, b: o.mean() * float(b.mask["x"].numpy().sum()), r"`.numpy\(\)`"),
    "asarray": (lambda s, o, b: o.mean() * float(np.asarray(b.x["x"]).mean()), "`np.asarray`"),
    "data_ptr": (lambda s, o, b: o.mean() * (b.x["x"].data_ptr() % 7 + 1), r"`.data_ptr\(\)`"),
    "data": (lambda s, o, b: setattr(s.mean, "data", o.detach().mean()) or o.mean() * s.mean, "`tensor.data = ...`"),
    "parameter": (lambda s, o, b: o.mean() * sum(s.layer.bias.tolist()), r"`.tolist\(\)`"),
    "tensor of tensors": (lambda s, o, b: o.mean() * torch.tensor([o.detach().mean(), 1.0]).sum(), "has tensors in it"),
    "legacy tensor of tensors": (
        lambda s, o, b: o.mean() * torch.Tensor([b.x["x"].mean(), 1.0]).sum(),
        "looks at values",
    ),
    "legacy tensor of parameters": (
        lambda s, o, b: o.mean() * torch.Tensor([s.layer.weight.detach().mean()]).sum(),
        "looks at values",
    ),
}


@pytest.mark.parametrize("way", READ)
def test_values_that_pass_the_tracer(way: str) -> None:
    refused(*READ[way])


SHAPES: dict[str, tuple[Twist, str]] = {
    "index": (lambda s, o, b: o[b.mask["x"]].mean(), r"shapes in it depend on values \(indexing by a mask\)"),
    "nonzero": (lambda s, o, b: o[b.mask["x"].nonzero().squeeze(-1)].mean(), "nonzero"),
    "unique": (lambda s, o, b: o.mean() * len(b.x["x"].round().unique()), "unique"),
    "masked_select": (lambda s, o, b: o.masked_select(b.mask["x"]).mean(), "masked_select"),
}


@pytest.mark.parametrize("way", SHAPES)
def test_shapes_that_depend_on_data(way: str) -> None:
    refused(*SHAPES[way])


def rarely(draw: Callable[[], float]) -> Twist:
    return lambda s, o, b: o.mean() * (2.0 if draw() < 1e-9 else 1.0)


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["random", "numpy"])
def test_draws_of_python_that_rarely_matter(draw: Callable[[], float]) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    refused(rarely(draw), "random numbers from Python or NumPy")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def counts(act: Callable[[Any], Any]) -> Twist:
    """The loss itself does not depend on it: two traces are the same."""

    def twist(s: Any, out: Tensor, batch: Batch) -> Tensor:
        act(s)
        return out.mean()

    return twist


def raised(owner: Any, key: str) -> None:
    owner[key] += 1


def written(s: Any) -> None:
    s.array[0] += 1


def added(s: Any) -> None:
    s.plain.add_(1)


def counting() -> Callable[[Any], None]:
    total = {"n": 0}
    return lambda s: raised(total, "n")


STATE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "object": (lambda s: setattr(s.box, "n", s.box.n + 1), r"state in Python \(box.n\)"),
    "dict": (lambda s: raised(s.log, "n"), r"\(log\['n'\]\)"),
    "nested list": (lambda s: s.nested[0].append(0), r"\(nested\[0\]\)"),
    "nested dict": (lambda s: raised(s.nested[1]["deep"], "er"), "er"),
    "class": (lambda s: raised(s.seen, "calls"), r"\(Twisted.seen\['calls'\]\)"),
    "closure": (counting(), "total"),
    "global": (lambda s: raised(COUNT, "calls"), r"\(COUNT\['calls'\]\)"),
    "array": (written, r"\(array\)"),
    "tensor": (added, r"\(plain\)"),
    "generator": (lambda s: s.noise.random(), r"\(noise\)"),
    "counter": (lambda s: next(s.counter), r"\(counter\)"),
    "new attribute": (lambda s: setattr(s, f"call_{next(CALLS)}", 0), "call_"),
    "last value": (lambda s: setattr(s, "last", s.layer.bias * 2), r"\(last\)"),
}
CALLS = itertools.count()


@pytest.mark.parametrize("what", STATE)
def test_state_within_things_that_modules_hold(what: str) -> None:
    act, reason = STATE[what]
    refused(counts(act), reason)


def averaged(s: Any, out: Tensor, batch: Batch) -> Tensor:
    s.mean = 0.9 * s.mean + 0.1 * out.detach().mean()
    return (out - s.mean).square().mean()


def averaged_in_place(s: Any, out: Tensor, batch: Batch) -> Tensor:
    s.mean.mul_(0.9).add_(0.1 * out.detach().mean())
    return (out - s.mean).square().mean()


def test_buffers_that_are_assigned() -> None:
    refused(averaged, r"assigns buffers or parameters \(mean\)")
    objective = Twisted(averaged_in_place)
    step = capture(objective, ROWS, compiled=False)
    twin = Twisted(averaged_in_place)
    twin.load_state_dict(objective.state_dict())
    for _ in range(3):
        torch.testing.assert_close(step(ROWS)[0], twin(ROWS).detach())
    torch.testing.assert_close(objective.mean, twin.mean)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_of_modules(kind: str) -> None:
    objective = Twisted(lambda s, o, b: o.mean())
    getattr(objective.layer, f"register_{kind}_hook")(lambda *_: None)
    with pytest.raises(CannotCapture, match=r"has module or gradient hooks \(layer\)"):
        capture(objective, ROWS, compiled=False)


def test_what_does_not_depend_on_data_is_captured() -> None:
    """Constants may be looked at and may make shapes, and indices of rows are no mask."""

    def twist(s: Any, out: Tensor, batch: Batch) -> Tensor:
        even = torch.arange(12) % 2 == 0
        out = out[even].repeat_interleave(torch.tensor([1, 2] * 3)) + out[torch.arange(0, 9)]
        return (out * sum(s.plain.tolist(), 2.0) * sum(torch.tensor([1.0, 2.0]).tolist())).mean()

    objective = Twisted(twist)
    torch.testing.assert_close(capture(objective, ROWS, compiled=False)(ROWS)[0], objective(ROWS).detach())


def test_constants_into_which_data_were_written_are_none() -> None:
    def twist(s: Any, out: Tensor, batch: Batch) -> Tensor:
        counts = torch.zeros(12, dtype=torch.long)
        counts[:2] = batch.mask["x"][:2].long()
        return out.mean() * sum(counts.tolist())

    refused(twist, r"`.tolist\(\)`")


def test_an_objective_that_fails_is_left_to_fail_eagerly() -> None:
    def failing(s: Any, out: Tensor, batch: Batch) -> Tensor:
        raise ValueError("no such thing")

    refused(failing, "it fails: ValueError, no such thing")
