"""The linear-Gaussian model's posteriors in the forms the library uses: encoders, a joint network, and a guide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch

if TYPE_CHECKING:
    from pyro_mm.data.toy import LinearGaussian

__all__ = ["ExactGuide", "JointPosterior", "UnimodalPosterior"]


class UnimodalPosterior(nn.Module):
    """x `(..., d)` -> N(P^-1 W'(x - b)/s^2, diag(1 / diag P)), P = I + W'W/s^2, event shape `(D,)`.

    The mean-field Gaussian closest to p(z | x) in KL(q || p).  Its gain, bias and scales are parameters, so that
    gradients can be studied at the optimum.
    """

    def __init__(self, weight: Tensor, offset: Tensor, scale: float) -> None:
        super().__init__()
        precision = torch.eye(weight.shape[-1]).to(weight) + weight.T @ weight / scale**2
        gain = torch.linalg.solve(precision, weight.T / scale**2)
        self.weight = nn.Parameter(gain)
        self.bias = nn.Parameter(-gain @ offset)
        self.log_scale = nn.Parameter(-0.5 * precision.diagonal().log())

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        loc = nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return dist.Normal(loc, self.log_scale.exp(), validate_args=False).to_event(1)


class JointPosterior(nn.Module):
    """batch -> the exact posterior given what each row has, with variances 1 / diag(precision), event `(D,)`."""

    def __init__(self, truth: LinearGaussian) -> None:
        super().__init__()
        self.truth, self.names = truth, truth.names

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        loc, _ = self.truth.posterior(batch)
        scale = self.truth.precision(batch).diagonal(dim1=-2, dim2=-1) ** -0.5
        return dist.Normal(loc, scale, validate_args=False).to_event(1)


class ExactGuide(nn.Module):
    """z ~ p(z | what each row has), the full Gaussian; no parameters."""

    def __init__(self, truth: LinearGaussian) -> None:
        super().__init__()
        self.truth, self.names = truth, truth.names

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        """A MultivariateNormal with batch shape `(N,)` or `(S, N)`, event shape `(D,)`."""
        loc, covariance = self.truth.posterior(batch)
        return dist.MultivariateNormal(loc, covariance, validate_args=False)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))
