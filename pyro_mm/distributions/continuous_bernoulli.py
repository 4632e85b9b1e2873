"""The continuous Bernoulli, exact for saturated pixels too."""

from __future__ import annotations

from math import log

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mm.distributions.logits import density_of_logits

__all__ = ["ContinuousBernoulli"]

NEAR = 0.1  # where |logit| is below it, series replace quotients of small numbers


def _subtract(out: Tensor, size: Tensor) -> Tensor:
    """A(l) = log(sinh(l/2) / (l/2)) = |l|/2 - log(|l| / (1 - exp(-|l|)))."""
    far = size.clamp(min=NEAR)
    quotient = far / (1 - (-far).exp_())
    square = size.mul_(size)
    series = square * (1 / 24 - square * (1 / 2880 - square / 181440))
    return out.sub_(torch.where(square < NEAR**2, series, far.mul_(0.5).sub_(quotient.log_())))


def _slope(logits: Tensor) -> Tensor:
    """A'(l) = 1/(2 tanh(l/2)) - 1/l, the mean less 1/2."""
    square = logits * logits
    near = square < NEAR**2
    far = torch.where(near, NEAR, logits)
    series = logits * (1 / 12 - square * (1 / 720 - square / 30240))
    return torch.where(near, series, 0.5 / (far / 2).tanh() - 1 / far)


_log_density = density_of_logits(_subtract, _slope)


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """p(x) = C(l) exp(l x) / (1 + exp(l)) on [0, 1],  C(l) = l / tanh(l/2),  l the logit.

    Loaiza-Ganem & Cunningham (2019).  Torch works from probabilities clamped away from 0 and 1: in float32 its density
    integrates to 0.32 at logit 50, where decoders of black and white pixels live, and its draws have another mean.
    Here density, mean and sampler work from the logit.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log C(l) + x l - log(1 + exp(l)), nats per element; C's pole and that of the rest cancel."""
        if self._validate_args:
            self._validate_sample(value)
        return _log_density(self.logits, value)

    def _cont_bern_log_norm(self) -> Tensor:
        size = self.logits.abs()
        far = size.clamp(min=NEAR)
        series = log(2.0) + size**2 / 12 - 7 * size**4 / 1440 + 31 * size**6 / 90720
        return torch.where(size < NEAR, series, far.log() - (far / 2).tanh().log())

    @property
    def mean(self) -> Tensor:
        """1/2 + 1/(2 tanh(l/2)) - 1/l."""
        return 0.5 + _slope(self.logits)

    def icdf(self, value: Tensor) -> Tensor:
        """log(1 + u (exp(l) - 1)) / l, from whichever end has no large exponential."""
        size = self.logits.abs()
        far = size.clamp(min=1e-3)
        u = torch.where(self.logits > 0, 1 - value, value)
        x = torch.where(size < 1e-3, u - size * u * (1 - u) / 2, -torch.log1p(u * torch.expm1(-far)) / far)
        return torch.where(self.logits > 0, 1 - x, x)
