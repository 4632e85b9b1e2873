"""Masked autoregressive flows: Gaussians seen through a triangular map whose density takes one pass."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import constraints

__all__ = ["Flowed", "MaskedFlow"]

LARGEST = 5.0  # of |log scale| in one block: no step of training makes a map that cannot be turned back


class MaskedFlow(nn.Module):
    """z -> u in blocks  u_d = (z_d - m_d(z_<d)) exp(-s_d(z_<d)),  every second one in reversed order of coordinates.

    A masked autoregressive flow (Papamakarios et al. 2017): u, and so the density of z, takes one pass of every block;
    z from u takes one pass for every coordinate.

    Args:
        dim: D.
        blocks: how many.
        widths: hidden sizes of the networks of m and s, each at least D (smaller ones are made so).
    """

    def __init__(self, dim: int, blocks: int = 2, widths: tuple[int, ...] = (128, 128, 128)) -> None:
        super().__init__()
        if dim < 1 or blocks < 1:
            raise ValueError(f"a flow has at least 1 dimension and 1 block, got {dim} and {blocks}")
        self.dim, order = dim, torch.arange(dim)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one dimension the map is affine, and that is well
            self.blocks = nn.ModuleList([
                AutoRegressiveNN(dim, [max(w, dim) for w in widths], permutation=order.flip(0) if i % 2 else order)
                for i in range(blocks)
            ])  # fmt: skip

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """u `(..., D)` and log |det du/dz| `(...)`."""
        volume: Tensor | float = 0.0
        for block in self.blocks:
            shift, log_scale = _affine(block, z)
            z, volume = (z - shift) * torch.exp(-log_scale), volume - log_scale.sum(-1)
        return z, torch.as_tensor(volume)

    def inverse(self, u: Tensor) -> Tensor:
        """z `(..., D)` of u."""
        for block in reversed(self.blocks):
            z = torch.zeros_like(u)
            for _ in range(self.dim):  # every pass settles one more coordinate, with its derivatives
                shift, log_scale = _affine(block, z)
                z = u * torch.exp(log_scale) + shift
            u = z
        return u


class Flowed(TorchDistribution):
    """z with flow(z) ~ base:  log p(z) = log base(u) + log |det du/dz|,  u = flow(z).

    Args:
        base: a distribution with event shape `(D,)`.
        flow: a `MaskedFlow` of D dimensions.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: TorchDistribution, flow: nn.Module) -> None:
        self.base, self.flow = base, flow
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flowed:
        return Flowed(self.base.expand(torch.Size(batch_shape)), self.flow)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        out: Tensor = self.flow.inverse(self.base.rsample(torch.Size(sample_shape)))  # type: ignore[operator]
        return out

    def log_prob(self, value: Tensor) -> Tensor:
        u, volume = self.flow(value)
        out: Tensor = self.base.log_prob(u) + volume
        return out


def _affine(block: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    shift, raw = block(z)
    return shift, LARGEST * torch.tanh(raw / LARGEST)
