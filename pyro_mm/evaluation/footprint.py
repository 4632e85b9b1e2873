"""How much memory a pass needs, measured on a small one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

__all__ = ["Meter", "bytes_per_particle"]

MANY = 17  # particles of the larger of two passes: enough to tell what grows with them from what does not


class Meter(TorchFunctionMode):
    """Counts the bytes of tensors made inside it that are alive at once; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.now = self.peak = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for ref in [r for r in self.alive if r.expired()]:
            self.now -= self.alive.pop(ref)
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                storage = _plain(t).untyped_storage()
                ref = StorageWeakRef(storage)
                if ref not in self.alive:
                    self.alive[ref] = storage.nbytes()
                    self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return out


def _plain(t: Tensor) -> Tensor:
    """The tensor inside the wrappers of `torch.func`, which have no storage of their own."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t


def bytes_per_particle(run: Callable[[int], object]) -> float:
    """By how much the peak of `run(k)` grows with each particle; the random state is left alone.

    At least 1: a program may do everything in place.
    """
    peaks = []
    with torch.random.fork_rng(_devices(), enabled=True):
        for k in (1, MANY):
            with Meter() as meter:
                run(k)
            peaks.append(meter.peak)
    return max(1.0, (peaks[1] - peaks[0]) / (MANY - 1))


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
