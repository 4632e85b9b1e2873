"""The continuous Bernoulli, exact for saturated pixels too."""

from __future__ import annotations

from math import log

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["ContinuousBernoulli"]

NEAR = 0.1  # where |logit| is below it, series replace quotients of small numbers


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """p(x) = C(l) exp(l x) / (1 + exp(l)) on [0, 1],  C(l) = l / tanh(l/2),  l the logit.

    Loaiza-Ganem & Cunningham (2019).  Torch works from probabilities clamped away from 0 and 1: in float32 its density
    integrates to 0.32 at logit 50, where decoders of black and white pixels live, and its draws have another mean.
    Here density, mean and sampler work from the logit.
    """

    def _cont_bern_log_norm(self) -> Tensor:
        size = self.logits.abs()
        far = size.clamp(min=NEAR)
        series = log(2.0) + size**2 / 12 - 7 * size**4 / 1440 + 31 * size**6 / 90720
        return torch.where(size < NEAR, series, far.log() - (far / 2).tanh().log())

    @property
    def mean(self) -> Tensor:
        """1/2 + 1/(2 tanh(l/2)) - 1/l."""
        size = self.logits.abs()
        far = size.clamp(min=NEAR)
        series = size / 12 - size**3 / 720 + size**5 / 30240
        return 0.5 + self.logits.sign() * torch.where(size < NEAR, series, 0.5 / (far / 2).tanh() - 1 / far)

    def icdf(self, value: Tensor) -> Tensor:
        """log(1 + u (exp(l) - 1)) / l, from whichever end has no large exponential."""
        size = self.logits.abs()
        far = size.clamp(min=1e-3)
        u = torch.where(self.logits > 0, 1 - value, value)
        x = torch.where(size < 1e-3, u - size * u * (1 - u) / 2, -torch.log1p(u * torch.expm1(-far)) / far)
        return torch.where(self.logits > 0, 1 - x, x)
