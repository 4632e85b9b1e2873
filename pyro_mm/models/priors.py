"""Priors p(z): modules without inputs whose call returns a distribution with event shape `(dim,)`."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["Clusters", "LearntScale", "NormalMixture", "StandardLaplace", "StandardNormal", "as_prior", "moments_of"]


class _Standard(nn.Module):
    """Location 0 and scale 1 in every dimension."""

    family: Callable[..., dist.TorchDistribution]
    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(dim), persistent=False)
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return self.family(self.loc, self.scale, validate_args=False).to_event(1)


class StandardNormal(_Standard):
    """p(z) = N(0, I)."""

    family = dist.Normal


class StandardLaplace(_Standard):
    """p(z) = prod_d Laplace(0, 1)."""

    family = dist.Laplace


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


class NormalMixture(nn.Module):
    """Base: p(z) = sum_c pi_c N(z; mu_c, diag(s_c^2)), its index c summed out; a subclass says what s is.

    Args:
        loc: where the means start, `(C, D)`; shares start equal.
    """

    scale: Tensor
    """s, `(C, D)`."""

    def __init__(self, loc: Tensor) -> None:
        super().__init__()
        self.loc, self.logits = nn.Parameter(loc), nn.Parameter(torch.zeros(len(loc)))

    def forward(self) -> dist.TorchDistribution:
        index = dist.Categorical(logits=self.logits, validate_args=False)
        return dist.MixtureSameFamily(index, self._parts(), validate_args=False)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Locations and scales `(C, D)` of the parts, and their shares `(C,)` without a gradient."""
        return self.loc, self.scale, self.logits.softmax(-1).detach()

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(c | z) `(..., C)` of z `(..., D)`, exact."""
        return (self._parts().log_prob(z.unsqueeze(-2)) + self.logits.log_softmax(-1)).softmax(-1)

    def _parts(self) -> dist.TorchDistribution:
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)


class Clusters(NormalMixture):
    """p(z) = sum_c pi_c N(z; mu_c, s^2 I): a mixture whose index c is summed out (CMVAE, Palumbo et al. 2024).

    p(c | z) is then exact (`responsibilities`).  Means start uniform in (-1, 1), shares equal; s is fixed.

    Args:
        dim: of z.
        clusters: how many.
        scale: s.
    """

    def __init__(self, dim: int, clusters: int = 10, scale: float = 1.0) -> None:
        if clusters < 1 or not scale > 0:
            raise ValueError(f"at least 1 cluster, of positive scale; got {clusters} of {scale:g}")
        super().__init__(2 * torch.rand(clusters, dim) - 1)
        self.scale = nn.Buffer(torch.full((clusters, dim), float(scale)), persistent=False)


def moments_of(prior: nn.Module) -> tuple[Tensor, ...]:
    """(loc, scale) of a location-scale prior; (loc, scale, weights) of a mixture, one row for every part.

    A prior of another form says it by a method `moments()`.
    """
    if (moments := getattr(prior, "moments", None)) is not None:
        return tuple(moments())
    p = prior().base_dist
    return p.loc, p.scale


def as_prior(prior: int | nn.Module) -> nn.Module:
    """A dimension stands for the standard normal of that dimension."""
    return StandardNormal(prior) if isinstance(prior, int) else prior
