"""A prior made of what an encoder says about inputs that are learnt with the rest."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.distributions import Mixture
from pyro_mm.modality import Encoder
from pyro_mm.networks import event_flat

__all__ = ["PseudoSamples"]


class PseudoSamples(nn.Module):
    """p(z) = 1/N sum_i q_m(z | u_i), u_i learnt (Tomczak & Welling 2018), q_m the encoder of a modality.

    u_i are what the encoder's network reads of the modality (its features: of a label the one-hot vector), so that they
    need not be data.  They start uniform in (0, 1), or at data (`start_at`).

    Args:
        encoder: shared with a guide.
        count: N.
        symbol: what objectives print for p.
    """

    def __init__(self, encoder: Encoder, count: int, symbol: str = "p") -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"at least 1 pseudo-sample, got {count}")
        self.encoder, self.symbol = encoder, symbol
        shape = encoder.modality.likelihood.feature_shape(encoder.modality.shape)
        self.u = nn.Parameter(torch.rand(count, *shape))

    def start_at(self, x: Tensor) -> None:
        """Let u_1 ... u_N be the features of the first N of these data `(n, *shape)`.

        Raises:
            ValueError: there are fewer.
        """
        if len(x) < len(self.u):
            raise ValueError(f"{len(self.u)} pseudo-samples of '{self.encoder.modality.name}' cannot start at {len(x)}")
        with torch.no_grad():
            self.u.copy_(self.encoder.modality.likelihood.features(x[: len(self.u)]).reshape(self.u.shape))

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Locations and scales `(N, D)` of the parts, and their equal weights `(N,)`."""
        q = self.encoder.distribution(event_flat(self.encoder.net, self.u, self.u.dim() - 1)).base_dist
        return q.loc, q.scale, torch.ones_like(q.loc[:, 0]).detach()

    def forward(self) -> dist.TorchDistribution:
        return Mixture(*self.moments())
