"""The processes of a data-parallel run ("ranks"): which one this is, and what all of them must agree on.

With one process everything here is the identity, and torch's distributed package is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "derived_seed"]

T = TypeVar("T")
CONTROL: dict[int, Any] = {}
"""For every default process group, by identity, a group on the CPU."""


class Ranks:
    """This process among `world`; `rank` counts from 0.

    What is agreed on are a few numbers and small objects.  They go through a group on the CPU, so that no accelerator
    is waited for.  Every method is collective: all ranks must call it, in the same order.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self.group = _control() if world > 1 else None

    @classmethod
    def now(cls) -> Ranks:
        """Those of torch's default process group, if there is one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def several(self) -> bool:
        """Is there more than one?"""
        return self.world > 1

    def seed(self, seed: int) -> int:
        """This rank's: rank 0 has the one of a single process, the others have unrelated ones."""
        return derived_seed(seed, "rank", self.rank) if self.rank else seed

    def sums(self, *values: float) -> list[float]:
        """Each value summed over the ranks, in float64."""
        if not self.several:
            return [float(v) for v in values]
        totals = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(totals, group=self.group)
        return totals.tolist()

    def any(self, flag: bool) -> bool:
        """Is it so on any rank?"""
        return self.sums(flag)[0] > 0

    def gathered(self, own: T) -> list[T]:
        """Every rank's object, by rank."""
        every = [own] * self.world
        if self.several:
            dist.all_gather_object(every, own, group=self.group)
        return every

    def alike(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values that rank 0 has, in place."""
        if self.several:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def derived_seed(seed: int, *names: object) -> int:
    """A seed below 2^32 for what is named; equal names give equal seeds, others unrelated ones."""
    digest = sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:4])


def _control() -> Any:
    """The default group where it is on the CPU; else one beside it, made once."""
    if dist.get_backend() == "gloo":
        return None
    key = id(dist.group.WORLD)
    if key not in CONTROL:
        CONTROL[key] = dist.new_group(backend="gloo")
    return CONTROL[key]
