"""Terms of one objective look at the same data through the same networks: run each once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

__all__ = ["once", "shared_networks"]

Found = TypeVar("Found")
_found: ContextVar[dict[tuple[Any, ...], tuple[Any, ...]] | None] = ContextVar("pyro_mm_shared", default=None)


@contextmanager
def shared_networks() -> Iterator[None]:
    """Inside, a network is run once for the same tensor and mask, however many programs ask for it.

    Its output, and so the noise of a drop-out layer, is then common to them: sums of terms keep their expectation, a
    divergence between two programs of one noisy network does not.  What the programs do with the output is theirs.
    """
    if _found.get() is not None:
        yield
        return
    token = _found.set({})
    try:
        yield
    finally:
        _found.reset(token)


def once(net: nn.Module, x: Tensor | tuple[Tensor, ...], mask: Tensor | None, compute: Callable[[], Found]) -> Found:
    """`compute()`, or what it gave before for the very same network, tensors and mask.

    Parameters that were swapped for others (`frozen`), another mode, or gradients switched off make another network.
    Networks with random weights of their own (`PyroModule`) have sample sites, and are run each time.
    """
    found = _found.get()
    if found is None:
        return compute()
    parameter = next(net.parameters(), None)
    seen = tuple(map(id, x)) if isinstance(x, tuple) else id(x)
    key = (id(net), seen, id(mask), id(parameter), net.training, torch.is_grad_enabled())
    if key in found:
        return found[key][0]  # type: ignore[no-any-return]
    out = compute()
    if not any(isinstance(part, PyroModule) for part in net.modules()):
        # The objects are kept as well: an id is only theirs while they live.
        found[key] = out, net, x, mask, parameter
    return out
