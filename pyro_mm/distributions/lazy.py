"""A distribution that is made when something about it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Lazy", "deferring", "is_deferring", "made"]

_DEFERRING: ContextVar[bool] = ContextVar("deferring", default=False)


@contextmanager
def deferring() -> Iterator[None]:
    """In here models need not run decoders whose density nobody asks for: see `models.views.decoded`."""
    token = _DEFERRING.set(True)
    try:
        yield
    finally:
        _DEFERRING.reset(token)


def is_deferring() -> bool:
    """Are we inside `deferring()`?"""
    return _DEFERRING.get()


def made(fn: Any) -> Any:
    """The distribution itself: what `fn` stands for if it is lazy, else `fn`."""
    return fn.full if isinstance(fn, Lazy) else fn


class Lazy(dist.TorchDistribution):
    """Stands for `make()`, which is called once, when anything but the shapes is asked.

    Args:
        make: gives the distribution.
        batch_shape, event_shape: of it.
        like: a tensor of its dtype, on its device.
    """

    arg_constraints: dict[str, object] = {}  # noqa: RUF012
    has_rsample: Any = False
    """Pyro asks at every site; whoever wants derivatives of draws, or a list of values, asks `made(fn)`."""

    def __init__(
        self, make: Callable[[], dist.TorchDistribution], batch_shape: Any, event_shape: Any, like: Tensor
    ) -> None:
        self.make, self.like = make, like
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @cached_property
    def full(self) -> dist.TorchDistribution:
        """The distribution."""
        return self.make()

    def masked_log_prob(self) -> Tensor:
        """The log-density where it is masked in every row: 0, and nothing is made for it."""
        return self.like.new_zeros(()).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.full.log_prob(value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        if (shape := torch.Size(batch_shape)) == self.batch_shape:
            return self
        return Lazy(lambda: self.full.expand(shape), shape, self.event_shape, self.like)

    @property
    def support(self) -> Any:
        return self.full.support

    @property
    def mean(self) -> Tensor:
        return self.full.mean

    @property
    def mode(self) -> Tensor:
        return self.full.mode

    @property
    def variance(self) -> Tensor:
        return self.full.variance

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.full.sample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.full.rsample(sample_shape)
