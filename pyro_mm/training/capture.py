"""A step's loss and gradients as one plain graph: no Pyro, no Python, and a compiler may have it.

The objective is run once under a tracer.  Whatever tensors it computes become a graph of parameters, buffers (schedules
are buffers) and data; random numbers become nodes that draw anew at every call, from torch's own stream.  Python is not
in the graph: what depends on it would be frozen.  So a capture is refused, with the reason, where Python

* looks at values (`if x.sum() > 0`, `.item()`, `.tolist()`), or shapes depend on them (`x[mask]`),
* draws random numbers or keeps state of its own: two captures, on other rows, must agree, and modules must come back
  as they were, in their attributes (`training.held`) and in their buffers, which may be written but not assigned,
* is called by hooks,
* keeps parameters in Pyro's global store.

What Python does after a capture (callbacks, schedules of one's own) is compared with what it was: `Captured.stale`.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pyro_mm.batch import Batch
from pyro_mm.subsets import RandomSubsets
from pyro_mm.swapping import tensors_of, tensors_replaced
from pyro_mm.tracing import LooksAtValues, SameShapes, UnseenValues
from pyro_mm.training.adam import AdamUpdate
from pyro_mm.training.captured import Captured, Layout
from pyro_mm.training.errors import keyed_terms, refuse_global_parameters
from pyro_mm.training.held import Held, hooks_of
from pyro_mm.training.noise import aside, noise_state

__all__ = ["CannotCapture", "Captured", "can_compile", "capture"]


class CannotCapture(RuntimeError):
    """The objective cannot be a graph; the message says why."""


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
    _warm(objective, batch)
    layout, held = Layout(objective), Held(objective)
    if _statistics_differ(objective):
        raise CannotCapture("batch normalisation over random subsets: a graph decodes more views than an eager step")
    if hooked := hooks_of(objective):
        raise CannotCapture(f"it has module or gradient hooks ({', '.join(hooked[:3])}), which a graph would not call")
    first, second = _traced(objective, batch, layout, 1), _traced(objective, _other(batch), layout, 2, shrunk=0.99)
    if names := held.changes():
        raise CannotCapture(f"it keeps state in Python ({', '.join(names[:3])}), which a graph would not change")
    if not _same(first, second):
        raise CannotCapture(
            "two runs gave different graphs: something in it is random, counts, or looks at values, in Python"
        )
    refuse_global_parameters("after the objective was captured")
    if update is not None:
        update.start(layout.with_gradients())
        # Where an optimiser has moved its parameters unequally often it keeps its update.
        update = None if update.impossible else update
        first = first if update is None else _traced(objective, batch, layout, 1, update)
    graph = _compiled(first, layout, batch, update) if compiled else first
    return Captured(objective, batch, graph, layout, update, held)


def _warm(objective: nn.Module, batch: Batch) -> None:
    """Let programs keep what they keep from their first call on; with gradients, without which some give no loss."""
    copies = {n: t.detach().clone().requires_grad_(t.requires_grad) for n, t in tensors_of(objective).items()}
    try:
        with aside(batch.device), torch.enable_grad(), _reports_kept(objective), tensors_replaced(objective, copies):
            objective(batch)
    except Exception as error:  # which an eager step will raise by itself
        raise CannotCapture(f"it fails: {type(error).__name__}, {_first_line(error)}") from error


def _compiled(graph: Any, layout: Layout, batch: Batch, update: AdamUpdate | None) -> Any:
    """The graph as torch compiles it, which it does in the first call: on copies, so that nothing moves."""
    try:
        out = torch.compile(graph, fullgraph=True, dynamic=False, options={"fallback_random": True})
        with aside(batch.device), torch.no_grad():
            out(*_copied(layout, batch, update))
    except Exception as error:  # of many types; a step without the compiler is as good
        raise CannotCapture(f"torch's compiler failed: {type(error).__name__}, {_first_line(error)}") from error
    return out


def _copied(layout: Layout, batch: Batch, update: AdamUpdate | None, shrunk: float = 1.0) -> tuple[Any, ...]:
    """A graph's inputs, of which it may write into all but the batch."""

    def copy(x: Tensor) -> Tensor:
        return x * shrunk if shrunk != 1.0 and x.is_floating_point() else x.clone()

    parameters, buffers, values, masks = layout.inputs(batch)
    state: Any = () if update is None else tree_map(Tensor.clone, update.inputs())
    if update is not None:
        update.release()
    return list(map(copy, parameters)), list(map(copy, buffers)), values, masks, state


def _other(batch: Batch) -> Batch:
    """A batch of the same kind in which no sum is the same: other rows, one of them twice, and one seen otherwise."""
    rows = torch.arange(1, len(batch) + 1, device=batch.device) % len(batch)
    rows[:1] = rows[-1:]
    masks = {m: v[..., rows].clone() for m, v in batch.mask.items()}
    for m in masks.keys() - batch.hidden:
        masks[m][..., 0] ^= True
    # Laid out in memory as it was; what is one row repeated stays that.
    values = {
        m: v
        if 0 in v.stride()
        else torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=v.device).copy_(v[rows])
        for m, v in batch.x.items()
    }
    out = Batch._view(values, masks, batch.hidden)
    out.views = batch.views
    return out


def _traced(
    objective: nn.Module,
    batch: Batch,
    layout: Layout,
    seed: int,
    update: AdamUpdate | None = None,
    shrunk: float = 1.0,
) -> torch.fx.GraphModule:
    """The step as operations on tensors; `shrunk`, so that parameters and schedules are not what they were."""
    from torch.fx.experimental.proxy_tensor import make_fx

    step, inputs = _step(objective, batch, layout, update), _copied(layout, batch, update, shrunk)
    try:
        with aside(batch.device, seed), pyro.validation_enabled(False), _reports_kept(objective):
            before = noise_state(batch.device)
            with UnseenValues():
                graph = make_fx(step)(*inputs)
            after = noise_state(batch.device)
    except CannotCapture:
        raise
    except Exception as error:  # the tracer's own, of many types; none of them is a bug of the objective
        text = "it looks at values in Python (`.item()`, `bool(tensor)`)" if _looks(error) else _first_line(error)
        raise CannotCapture(text) from error
    if any(before[stream] != after[stream] for stream in ("python", "numpy")):
        raise CannotCapture("it draws random numbers from Python or NumPy, which a graph would not draw again")
    return graph


def _step(objective: nn.Module, batch: Batch, layout: Layout, update: AdamUpdate | None) -> Callable[..., Any]:
    """Inputs of a graph -> loss, norm, gradients and reports."""
    names = list(batch.x)

    def step(
        parameters: list[Tensor], buffers: list[Tensor], values: list[Tensor], masks: list[Tensor], state: Any
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        view = Batch._view(dict(zip(names, values, strict=True)), dict(zip(names, masks, strict=True)), batch.hidden)
        view.views = batch.views
        given = {n: p.requires_grad_(n in layout.moves) for n, p in zip(layout.parameters, parameters, strict=True)}
        held = given | dict(zip(layout.buffers, buffers, strict=True))
        with torch.enable_grad(), SameShapes(), tensors_replaced(objective, held) as assigned:
            loss = objective(view)
            grads = torch.autograd.grad(loss, [given[n] for n in layout.moves], allow_unused=True)
            if gone := assigned():
                raise CannotCapture(
                    f"it assigns buffers or parameters ({', '.join(gone[:3])}); a graph keeps those that are written "
                    "in place (`buffer.copy_(...)`)"
                )
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

    return step


def _statistics_differ(objective: nn.Module) -> bool:
    parts = list(objective.modules())
    normalised = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in parts)
    return normalised and any(isinstance(m, RandomSubsets) for m in parts)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else type(error).__name__


def _looks(error: Exception) -> bool:
    text = "" if isinstance(error, LooksAtValues) else str(error)
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
