"""Adam with a cosine schedule, in a few lines over plain tensors: every row ascends by itself."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor

__all__ = ["ascend"]


def ascend(start: Tensor, slope: Callable[[Tensor], Tensor], steps: int, rate: float) -> Tensor:
    """`start` after `steps` of Adam (Kingma & Ba 2015) along `slope(point)`.

    The step size is rate (1 + cos(pi t / steps)) / 2.
    """
    point, first, second = start, torch.zeros_like(start), torch.zeros_like(start)
    for t in range(steps):
        g = slope(point)
        first, second = 0.9 * first + 0.1 * g, 0.99 * second + 0.01 * g.square()
        size = rate * 0.5 * (1 + cos(pi * t / steps))
        point = point + size * (first / (1 - 0.9 ** (t + 1))) / ((second / (1 - 0.99 ** (t + 1))).sqrt() + 1e-8)
    return point
