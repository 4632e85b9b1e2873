"""A captured step: what goes into the graph and what comes out of it, and whether it is still the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.objectives.algebra import Term
from pyro_mm.training.adam import AdamUpdate
from pyro_mm.training.held import Held

__all__ = ["Captured", "Layout", "signature"]

Signature = tuple[Any, ...]


class Captured:
    """batch -> loss and norm of the gradient, with every term's report filled.

    Without an update `p.grad` is set for every parameter that moves; with one, the parameters have moved.  Batches of
    another signature than the one that was captured are not for it, and nor is an objective that has changed since:
    `fits(batch)`.
    """

    def __init__(
        self, objective: nn.Module, batch: Batch, graph: Any, layout: Layout, update: AdamUpdate | None, held: Held
    ) -> None:
        self.objective, self.graph, self.layout, self.update, self.held = objective, graph, layout, update, held
        self.signature = signature(batch)

    def fits(self, batch: Batch) -> bool:
        """Has the batch the shapes, dtypes and device of the captured one, and is the graph not stale?"""
        return signature(batch) == self.signature and not self.stale()

    def stale(self, deep: bool = True) -> str:
        """Why the graph is no longer the step; "": it is.

        Args:
            deep: compare what modules hold in Python, too.  The rest is compared in a few microseconds.
        """
        if replaced := self.layout.replaced():
            return f"{replaced} is another tensor now"
        if self.update is not None and (reason := self.update.impossible):
            return reason
        if not deep:
            return ""
        if self.update is not None and not AdamUpdate.suits(self.update.optimiser):
            return "the optimiser has got hooks, or rarer options"
        names = self.held.changes()
        return f"Python changed what the graph has as it was ({', '.join(names[:3])})" if names else ""

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


class Layout:
    """What goes into the graph and what comes out of it, in order."""

    def __init__(self, objective: nn.Module) -> None:
        self.parameters = dict(objective.named_parameters())
        self.buffers = dict(objective.named_buffers())
        self.moving = [p for p in self.parameters.values() if p.requires_grad]
        self.moves = [n for n, p in self.parameters.items() if p.requires_grad]
        self.places: list[int | None] = []  # of every moving parameter's gradient among those that come out
        self.reported: list[tuple[Term, str]] = []
        self.stands: list[tuple[dict[str, Tensor | None], str, Tensor, str]] = []  # everywhere a tensor is registered
        for prefix, part in objective.named_modules():
            for store in (part._parameters, part._buffers):
                named = [(k, t) for k, t in store.items() if t is not None]
                self.stands += [(store, k, t, f"{prefix}.{k}" if prefix else k) for k, t in named]  # type: ignore[arg-type]

    def inputs(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Parameters, buffers, values and masks."""
        values, masks = list(batch.x.values()), list(batch.mask.values())
        return [p.detach() for p in self.parameters.values()], list(self.buffers.values()), values, masks

    def replaced(self) -> str:
        """The name of a parameter or buffer in whose place another tensor stands; "": there is none.

        A buffer that a schedule has assigned, in its one place and of the same kind, is taken from now on.
        """
        for i, (store, key, tensor, name) in enumerate(self.stands):
            now = store.get(key)
            if now is tensor:
                continue
            alone = sum(t is tensor for _, _, t, _ in self.stands) == 1
            if now is None or name not in self.buffers or not alone or _kind(now) != _kind(tensor):
                return name
            self.stands[i] = store, key, now, name
            self.buffers[name] = now
        return ""

    def with_gradients(self) -> list[nn.Parameter]:
        """The parameters that the loss depends on."""
        return [p for p, place in zip(self.moving, self.places, strict=True) if place is not None]


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def signature(batch: Batch) -> Signature:
    """What must be the same for a graph to be the right one."""
    values = tuple(
        (m, v.shape, v.stride(), v.dtype, batch.mask[m].shape, batch.mask[m].stride()) for m, v in batch.x.items()
    )
    return values, batch.device, batch.hidden, tuple(sorted(batch.views.items()))
