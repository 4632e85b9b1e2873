"""Is this run being recorded as a graph?  Then no Python may look at values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["UnseenValues", "is_traced", "one_hot"]


def is_traced() -> bool:
    """True under `make_fx`: shortcuts that depend on data are not taken."""
    # Whoever traces has imported the tracer, which takes longer than all of this package.
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return tracer is not None and tracer.get_proxy_mode() is not None


def one_hot(x: Tensor, classes: int) -> Tensor:
    """0 and 1 along a new last dimension; torch's own looks at the values to check them, which a graph cannot.

    Raises:
        RuntimeError: a class out of range; in a graph whatever indexes by the class raises.
    """
    if not is_traced():
        return torch.nn.functional.one_hot(x.long(), classes)
    return (x.long().unsqueeze(-1) == torch.arange(classes, device=x.device)).long()


class UnseenValues(TorchFunctionMode):
    """While programs are recorded: torch's `one_hot`, which looks at values, becomes the one that does not."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.one_hot:
            x, classes = _one_hot_arguments(*args, **(kwargs or {}))
            if classes >= 0:  # else torch has to look for the largest
                return one_hot(x, classes)
        return func(*args, **(kwargs or {}))


def _one_hot_arguments(tensor: Tensor, num_classes: int = -1) -> tuple[Tensor, int]:
    return tensor, num_classes
