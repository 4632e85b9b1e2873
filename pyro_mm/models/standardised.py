"""Codes at mean 0 and variance 1, and decoders that read them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Restored", "Scaler"]


class Scaler(nn.Module):
    """Codes brought to mean 0 and variance 1 over the rows that were seen in training mode.

    Running sums, not a batch's own moments: rows do not depend on each other, and what is masked counts nowhere.
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("square", torch.zeros(dim))  # sum of squared deviations

    @property
    def scale(self) -> Tensor:
        """The standard deviations `(D,)`; 1 before there were two rows."""
        return torch.where(self.count > 1, (self.square / (self.count - 1).clamp(min=1)).sqrt().clamp(min=1e-4), 1.0)

    def forward(self, code: Tensor) -> Tensor:
        """Codes `(..., D)` as a diffusion sees them."""
        return (code - self.mean) / self.scale

    def restored(self, z: Tensor) -> Tensor:
        """The other way."""
        return self.mean + self.scale * z

    @torch.no_grad()
    def learn(self, code: Tensor, rows: Tensor, memory: float | Tensor = math.inf) -> None:
        """Take codes `(N, D)` of these rows `(N,)` into mean and variance (Chan et al. 1979).

        The rows so far count as no more than `memory`, so that older ones fade; 0 forgets them.
        """
        kept = (memory / self.count.clamp(min=1)).clamp(max=1.0)
        self.count *= kept
        self.square *= kept
        new = torch.where(rows[:, None], code, 0.0)
        n = rows.sum().to(code.dtype)
        mean = new.sum(0) / n.clamp(min=1)
        square = torch.where(rows[:, None], new - mean, 0.0).square().sum(0)
        count, delta = self.count + n, mean - self.mean
        self.square += square + delta.square() * self.count * n / count.clamp(min=1)
        self.mean += delta * n / count.clamp(min=1)
        self.count.copy_(count)


class Restored(nn.Module):
    """The decoder of a modality, from its part of z."""

    def __init__(self, decoder: nn.Module, scaler: nn.Module, start: int, size: int) -> None:
        super().__init__()
        self.decoder, self.scaler, self.part = decoder, scaler, slice(start, start + size)

    def forward(self, z: Tensor) -> Any:
        scaler: Any = self.scaler
        return self.decoder(scaler.restored(z[..., self.part]))
