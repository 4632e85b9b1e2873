"""Priors p(z): modules without inputs whose call returns a distribution with event shape `(dim,)`."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["LearntScale", "StandardNormal", "as_prior"]


class StandardNormal(nn.Module):
    """p(z) = N(0, I)."""

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(dim), persistent=False)
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)


class LearntScale(nn.Module):
    """p(z) = prod_d F(0, s_d), s = D softmax(raw): MMVAE's prior (Shi et al. 2019), scales of mean 1.

    `family` is `dist.Laplace` in the paper.
    """

    zero: Tensor

    def __init__(self, dim: int, family: Callable[..., dist.TorchDistribution] = dist.Laplace) -> None:
        super().__init__()
        self.family = family
        self.raw = nn.Parameter(torch.zeros(dim))
        self.register_buffer("zero", torch.zeros(dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        scale = self.raw.softmax(-1) * len(self.raw)
        return self.family(self.zero, scale, validate_args=False).to_event(1)


def as_prior(prior: int | nn.Module) -> nn.Module:
    """A dimension stands for the standard normal of that dimension."""
    return StandardNormal(prior) if isinstance(prior, int) else prior
