"""A step's loss and gradients as one plain graph: no Pyro, no Python, and a compiler may have it.

The objective is run once under a tracer.  Whatever tensors it computes become a graph of parameters, buffers (schedules
are buffers) and data; random numbers become nodes that draw anew at every call, from torch's own stream.  Python is not
in the graph: what depends on it would be frozen.  So a capture is refused, with the reason, where Python

* looks at values (`if x.sum() > 0`, `.item()`),
* draws random numbers or keeps state of its own: two captures must agree, and modules must come back as they were,
* keeps parameters in Pyro's global store.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_mm.batch import Batch
from pyro_mm.objectives.algebra import Term
from pyro_mm.subsets import RandomSubsets
from pyro_mm.swapping import tensors_of, tensors_replaced
from pyro_mm.tracing import UnseenValues
from pyro_mm.training.adam import AdamUpdate
from pyro_mm.training.errors import keyed_terms, refuse_global_parameters
from pyro_mm.training.noise import aside

__all__ = ["CannotCapture", "Captured", "can_compile", "capture"]

Signature = tuple[Any, ...]


class CannotCapture(RuntimeError):
    """The objective cannot be a graph; the message says why."""


class Captured:
    """batch -> loss and norm of the gradient, with every term's report filled.

    Without an update `p.grad` is set for every parameter that moves; with one, the parameters have moved.  Batches of
    another signature than the one that was captured are not for it: `fits(batch)`.
    """

    def __init__(
        self, objective: nn.Module, batch: Batch, graph: Any, layout: _Layout, update: AdamUpdate | None
    ) -> None:
        self.objective, self.graph, self.layout, self.update = objective, graph, layout, update
        self.signature = signature(batch)

    def fits(self, batch: Batch) -> bool:
        """Has the batch the shapes, dtypes and device of the captured one, and can the update be made?"""
        return signature(batch) == self.signature and (self.update is None or self.update.possible)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        layout = self.layout
        state = () if self.update is None else self.update.inputs()
        loss, norm, grads, parts = self.graph(*layout.inputs(batch), state)
        if self.update is None:
            for p, place in zip(layout.moving, layout.places, strict=True):
                p.grad = None if place is None else grads[place]
        for (term, name), value in zip(layout.reported, parts, strict=True):
            term.report[name] = value
        return loss, norm


class _Layout:
    """What goes into the graph and what comes out of it, in order."""

    def __init__(self, objective: nn.Module) -> None:
        self.parameters = dict(objective.named_parameters())
        self.buffers = dict(objective.named_buffers())
        self.moving = [p for p in self.parameters.values() if p.requires_grad]
        self.moves = [n for n, p in self.parameters.items() if p.requires_grad]
        self.places: list[int | None] = []  # of every moving parameter's gradient among those that come out
        self.reported: list[tuple[Term, str]] = []

    def inputs(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Parameters, buffers, values and masks."""
        values, masks = list(batch.x.values()), list(batch.mask.values())
        return [p.detach() for p in self.parameters.values()], list(self.buffers.values()), values, masks

    def with_gradients(self) -> list[nn.Parameter]:
        """The parameters that the loss depends on."""
        return [p for p, place in zip(self.moving, self.places, strict=True) if place is not None]


def signature(batch: Batch) -> Signature:
    """What must be the same for a graph to be the right one."""
    values = tuple((m, v.shape, v.dtype, batch.mask[m].shape) for m, v in batch.x.items())
    return values, batch.device, batch.hidden, tuple(sorted(batch.views.items()))


def can_compile(device: torch.device) -> bool:
    """Is there what torch's compiler needs: a C++ compiler on a CPU, Triton on a GPU?"""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return device.type == "cpu" and any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def capture(objective: nn.Module, batch: Batch, *, compiled: bool = True, update: AdamUpdate | None = None) -> Captured:
    """The step on batches like this one, as a graph that torch compiles, or that runs as it is.

    With an update the graph moves the parameters as well, which pays only where a compiler fuses its many operations.

    The noise is eager's, number by number, so that both steps give the same but for rounding.  Parameters, buffers,
    random streams and reports are left as they were.

    Raises:
        CannotCapture: naming what would have been frozen.
    """
    layout = _Layout(objective)
    with aside(batch.device), torch.no_grad(), _reports_kept(objective):
        copies = {n: t.detach().clone() for n, t in tensors_of(objective).items()}
        with tensors_replaced(objective, copies):
            objective(batch)  # what a program keeps from its first call on
    was = _state(objective)
    if _statistics_differ(objective):
        raise CannotCapture("batch normalisation over random subsets: a graph decodes more views than an eager step")
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in layout.moving):
        raise CannotCapture("parameters have gradient hooks, which a graph would not call")
    first, second = (_traced(objective, batch, layout, seed, None) for seed in (1, 2))
    if (changed := _state(objective)) != was:
        names = sorted(n for n in {*was, *changed} if was.get(n) != changed.get(n))
        raise CannotCapture(f"it keeps state in Python ({', '.join(names[:3])}), which a graph would not change")
    if not _same(first, second):
        raise CannotCapture("two runs gave different graphs: something in it is random, or counts, in Python")
    refuse_global_parameters("after the objective was captured")
    if update is not None:
        update.start(layout.with_gradients())
        first = _traced(objective, batch, layout, 1, update)
    graph: Any = first
    if compiled:
        graph = torch.compile(first, fullgraph=True, dynamic=False, options={"fallback_random": True})
    return Captured(objective, batch, graph, layout, update)


def _traced(
    objective: nn.Module, batch: Batch, layout: _Layout, seed: int, update: AdamUpdate | None
) -> torch.fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    names = list(batch.x)

    def step(
        parameters: list[Tensor], buffers: list[Tensor], values: list[Tensor], masks: list[Tensor], state: Any
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        view = Batch._view(dict(zip(names, values, strict=True)), dict(zip(names, masks, strict=True)), batch.hidden)
        view.views = batch.views
        given = {n: p.requires_grad_(n in layout.moves) for n, p in zip(layout.parameters, parameters, strict=True)}
        held = given | dict(zip(layout.buffers, buffers, strict=True))
        with torch.enable_grad(), tensors_replaced(objective, held):
            loss = objective(view)
            grads = torch.autograd.grad(loss, [given[n] for n in layout.moves], allow_unused=True)
        found = [g for g in grads if g is not None]
        order = iter(range(len(found)))
        layout.places = [None if g is None else next(order) for g in grads]
        layout.reported = [(term, name) for _, term in keyed_terms(objective) for name in term.report]
        parts, loss = [term.report[name].detach() for term, name in layout.reported], loss.detach()
        norm = torch.stack([g.norm() for g in found]).norm()
        if update is None:
            return loss, norm, found, parts
        moved = [given[n].detach() for n, place in zip(layout.moves, layout.places, strict=True) if place is not None]
        update(moved, found, state, loss, norm)
        return loss, norm, [], parts

    copies = layout.inputs(batch)
    cloned = [[t.clone() for t in group] for group in copies[:2]]
    held: Any = () if update is None else tree_map(Tensor.clone, update.inputs())
    try:
        with aside(batch.device, seed), pyro.validation_enabled(False), _reports_kept(objective), UnseenValues():
            return make_fx(step)(*cloned, *copies[2:], held)
    except Exception as error:  # the tracer's own, of many types; none of them is a bug of the objective
        reason = str(error).strip().splitlines() or [type(error).__name__]
        text = "it looks at values in Python (`.item()`, `bool(tensor)`)" if _looks(error) else reason[0][:200]
        raise CannotCapture(text) from error


def _statistics_differ(objective: nn.Module) -> bool:
    parts = list(objective.modules())
    normalised = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in parts)
    return normalised and any(isinstance(m, RandomSubsets) for m in parts)


def _looks(error: Exception) -> bool:
    text = str(error)
    return "data-dependent" in text or "get value out of a tracing tensor" in text or "_local_scalar_dense" in text


@contextmanager
def _reports_kept(objective: nn.Module) -> Iterator[None]:
    """Terms report, and random subsets are, what training saw, not what was tried."""
    kept = [(term, dict(term.report)) for _, term in keyed_terms(objective)]
    drawn = [(s, s.membership, s.groups) for s in objective.modules() if isinstance(s, RandomSubsets)]
    try:
        yield
    finally:
        for term, report in kept:
            term.report = report
        for subsets, membership, groups in drawn:
            subsets.membership, subsets.groups = membership, groups


def _same(a: torch.fx.GraphModule, b: torch.fx.GraphModule) -> bool:
    """Do two graphs do the same, on the same constants?"""
    if a.code != b.code:
        return False
    one, other = dict(_constants(a)), dict(_constants(b))
    return one.keys() == other.keys() and all(
        t.shape == other[n].shape and t.dtype == other[n].dtype and bool(torch.equal(t, other[n]))
        for n, t in one.items()
    )


def _constants(graph: torch.fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(graph).items():
        if isinstance(value, Tensor):
            yield name, value
    yield from graph.named_buffers()
    yield from graph.named_parameters()


# What torch and this package keep in modules themselves; `_flat_weights` of recurrent layers follows their parameters.
OURS = {*vars(nn.Module()), "report", "checked", "membership", "_flat_weights", "_flat_weight_refs"}


def _state(objective: nn.Module) -> dict[str, Any]:
    """Numbers, texts, and the identity of everything else that modules hold in Python."""
    out: dict[str, Any] = {}
    for name, module in objective.named_modules():
        for key, value in vars(module).items():
            if key not in OURS:
                out[f"{name}.{key}" if name else key] = _content(value)
    return out


def _content(value: Any) -> Any:
    """Plain values as they are, collections with their lengths, other objects by what they are."""
    if isinstance(value, int | float | str | bool | tuple | frozenset | type(None)):
        return value
    return (id(value), len(value)) if isinstance(value, list | dict | set) else id(value)
