"""The linear-Gaussian system of the reports, and its rows."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from tests.helpers.estimates import hidden, truth

LG = truth()
TEST = hidden(LG.sample(120, seed=1))


def kl_to_standard(loc: Tensor, scale: Tensor) -> Tensor:
    """KL(N(loc, scale^2) || N(0, 1)), elementwise."""
    return 0.5 * (scale**2 + loc**2 - 1) - scale.log()


class Scaled(nn.Module):
    """An expert with its standard deviations times a factor."""

    def __init__(self, expert: nn.Module, factor: float) -> None:
        super().__init__()
        self.expert, self.factor = expert, factor

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        q = self.expert(x).base_dist
        return dist.Normal(q.loc, q.scale * self.factor).to_event(1)
