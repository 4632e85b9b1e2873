"""Priors with parameters: a Gaussian mixture, a flow, and what encoders make of learnt inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import Flowed, MaskedFlow, Mixture
from pyro_mm.modality import Encoder
from pyro_mm.models.priors import NormalMixture, StandardNormal
from pyro_mm.models.pseudo import PseudoSamples

__all__ = ["FlowPrior", "GaussianMixture", "VampPrior"]


class GaussianMixture(NormalMixture):
    """p(z) = sum_c pi_c N(z; mu_c, diag(sigma_c^2)), all of it learnt.

    Means start as standard normal draws, scales at 1, shares equal.

    Args:
        dim: of z.
        parts: how many.

    Raises:
        ValueError: fewer than one.
    """

    def __init__(self, dim: int, parts: int = 10) -> None:
        if parts < 1:
            raise ValueError(f"a mixture has at least 1 part, got {parts}")
        super().__init__(torch.randn(parts, dim))
        self.log_scale = nn.Parameter(torch.zeros(parts, dim))

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        return self.log_scale.exp()


class FlowPrior(nn.Module):
    """p(z) = N(u; 0, I) |det du/dz|,  u = flow(z) masked autoregressive.

    A density takes one pass, a draw one for every dimension.

    Args:
        dim: of z.
        blocks, widths: of the `MaskedFlow`.
    """

    def __init__(self, dim: int, blocks: int = 4, widths: tuple[int, ...] = (128, 128)) -> None:
        super().__init__()
        self.base, self.flow = StandardNormal(dim), MaskedFlow(dim, blocks, widths)

    def forward(self) -> dist.TorchDistribution:
        return Flowed(self.base(), self.flow)


class VampPrior(nn.Module):
    """p(z) = 1/N sum_i q(z | u_i),  u_i = (u_i1, ..., u_iM) a pseudo-input of every modality, q fused from encoders.

    The "variational mixture of posteriors" (Tomczak & Welling 2018) of a multimodal guide: `fuse` as in `Experts`.

    Args:
        encoders: name -> encoder, shared with the guide.
        fuse: `(loc, scale, mask) -> Distribution`, a Gaussian or a `Mixture`.
        count: N.
    """

    def __init__(
        self, encoders: Mapping[str, Encoder], fuse: Callable[..., dist.TorchDistribution], count: int = 50
    ) -> None:
        super().__init__()
        self.inputs = nn.ModuleDict({m: PseudoSamples(encoder, count, f"p_{m}") for m, encoder in encoders.items()})
        self.fuse = fuse

    def start_at(self, rows: Batch) -> VampPrior:
        """Let the pseudo-inputs be the first N of these rows, and return the prior.

        From there a fit to a trained guide goes up from what a sample of the aggregated posterior has; from random
        inputs it has a long way to go.

        Raises:
            ValueError: there are fewer, or they lack something.
        """
        names = list(self.inputs)
        complete = rows[torch.stack([rows.mask[m] for m in names]).all(0)]
        for m in names:
            self.inputs[m].start_at(complete.x[m])  # type: ignore[operator]
        return self

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Locations and scales `(C, D)` of the parts, and their weights `(C,)`; C is N unless `fuse` makes mixtures."""
        each: list[Any] = [part.moments() for part in self.inputs.values()]  # type: ignore[operator]
        loc, scale = (torch.stack([e[i] for e in each], -2) for i in (0, 1))
        q: Any = self.fuse(loc, scale, torch.ones(loc.shape[:-1], dtype=torch.bool, device=loc.device))
        if isinstance(q, Mixture):
            return q.loc.flatten(0, 1), q.scale.flatten(0, 1), q.log_weights.exp().flatten()
        return q.base_dist.loc, q.base_dist.scale, torch.ones_like(q.base_dist.loc[:, 0]).detach()

    def forward(self) -> dist.TorchDistribution:
        return Mixture(*self.moments())
