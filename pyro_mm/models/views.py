"""Decoding only those views of a batch that can see the modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions.lazy import Lazy, is_deferring
from pyro_mm.distributions.quicker import log_prob_of

__all__ = ["Viewwise", "decoded"]


def decoded(m: str, decode: nn.Module, z: Tensor, batch: Batch) -> dist.TorchDistribution:
    """p(x_m | z), the decoder run for the views in which the modality is not hidden altogether.

    Under `in_subsets` z is `(..., S, N, D)`, and of M modalities every one is in half of all subsets: the other half
    is masked anyway.  In an evaluation (`deferring`) a modality that is hidden in every row is not decoded until
    somebody asks what would be made of it.
    """
    if is_deferring() and m in batch.hidden and m in batch.x:
        return Lazy(lambda: decode(z), z.shape[:-1], batch.x[m].shape[1:], z)
    shown = batch.views.get(m, ())
    partly = any(shown) and not all(shown) and z.dim() >= 3 and z.shape[-3] == len(shown)
    return Viewwise(decode, z, shown) if partly else decode(z)  # type: ignore[no-any-return]


class Viewwise(Lazy):
    """p(x | z) of batch shape `(..., S, N)` whose log-density is computed in some of the S views, and is 0 in others.

    For everything but the log-density (draws, means) the decoder is run on all views after all.

    Args:
        decode: z `(..., N, D)` -> p(x | z).
        z: `(..., S, N, D)`.
        shown: for every view, is it wanted?
    """

    def __init__(self, decode: nn.Module, z: Tensor, shown: Sequence[bool]) -> None:
        self.chosen = torch.tensor([s for s, is_shown in enumerate(shown) if is_shown], device=z.device)
        self.kept: dist.TorchDistribution = decode(z.index_select(-3, self.chosen))
        super().__init__(lambda: decode(z), z.shape[:-1], self.kept.event_shape, z)

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        return self if torch.Size(batch_shape) == self.batch_shape else self.full.expand(batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        views = -2 - self.event_dim
        if value.dim() >= -views and value.shape[views] == self.batch_shape[-2] > 1:
            value = value.index_select(views, self.chosen)
        found = log_prob_of(self.kept, value)
        zero = found.new_zeros(*found.shape[:-2], self.batch_shape[-2], found.shape[-1])
        return zero.index_copy(-2, self.chosen, found)

    @property
    def has_rsample(self) -> bool:
        return bool(self.kept.has_rsample)

    @property
    def support(self) -> Any:
        return self.kept.support
