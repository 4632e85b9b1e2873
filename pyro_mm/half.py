"""Layers in bfloat16, densities in full precision; and what that changes.

Accelerators and recent CPUs multiply matrices in bfloat16 faster.  Of a program run wholly in it sums of hundreds of
log-densities would keep 8 bits.  Here only linear and convolution layers are computed
in it, whatever program calls them; what they return is float32 again, and so are latents, densities and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["BF16_LAYERS", "HalfLayers", "Rounding", "apart", "together"]

BF16_LAYERS = "bf16-layers"
"""What `fit` calls a training under `HalfLayers`."""
LAYERS = {
    torch.nn.functional.linear,
    *(getattr(torch, f"conv{d}d") for d in (1, 2, 3)),
    *(getattr(torch, f"conv_transpose{d}d") for d in (1, 2, 3)),
}

Rounding = tuple[float, float, int]
"""Mean change of an estimate by layers in bfloat16, the largest, nats, and the number of rows it was seen on."""


class HalfLayers(TorchFunctionMode):
    """`with HalfLayers():` float32 linear and convolution layers take and multiply bfloat16, and return float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        if func not in LAYERS or any(v.dtype != torch.float32 for v in tensors):
            return func(*args, **kwargs)
        return func(*map(_half, args), **{name: _half(value) for name, value in kwargs.items()}).float()


def together(parts: Sequence[Rounding | None]) -> Rounding | None:
    """What several parts found, as one; None where none of them was in bfloat16."""
    found = [p for p in parts if p is not None]
    n = sum(rows for _, _, rows in found)
    return (sum(m * r for m, _, r in found) / max(n, 1), max(m for _, m, _ in found), n) if found else None


def apart(both: Rounding | None, part: Rounding | None) -> Rounding | None:
    """Of a difference of two estimates: the largest change is at most the sum of theirs."""
    if both is None or part is None:
        return None
    return both[0] - part[0], both[1] + part[1], min(both[2], part[2])


def _half(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) else value
