"""Log-densities of pixels from their logits, in few passes over memory and with exact derivatives of every order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["LogDensity", "density_of_logits"]

LogDensity = Callable[[Tensor, Tensor], Tensor]
"""(logits, values) -> log-densities, nats, of the shape that the two broadcast to."""


def density_of_logits(subtract: Callable[[Tensor, Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> LogDensity:
    """log p(x | l) = (x - 1/2) l - A(l), an exponential family with an even A, and d log p / dl = x - 1/2 - A'(l).

    Autograd keeps the inputs and nothing else; logits of half precision are computed in float32.

    Args:
        subtract: takes A(l) from a tensor in place, given that and |l|, which it may overwrite.
        slope: A'(l), by operations that autograd can differentiate.
    """

    class Density(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(l: Tensor, x: Tensor) -> Tensor:
            return subtract((x - 0.5) * l, l.abs())

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
            l, x = ctx.saved_tensors
            by_logits, by_values = ctx.needs_input_grad
            return (
                (grad * (x - 0.5 - slope(l))).sum_to_size(l.shape) if by_logits else None,
                (grad * l).sum_to_size(x.shape) if by_values else None,
            )

        @staticmethod
        def jvp(ctx: Any, along_l: Tensor | None, along_x: Tensor | None) -> Tensor:
            l, x = ctx.saved_tensors
            out = torch.zeros_like(x - l)
            out = out if along_l is None else out + along_l * (x - 0.5 - slope(l))
            return out if along_x is None else out + along_x * l

    def log_density(logits: Tensor, values: Tensor) -> Tensor:
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        return Density.apply(logits, values.to(logits.dtype))  # type: ignore[no-any-return]

    return log_density
