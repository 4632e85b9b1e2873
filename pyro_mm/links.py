"""Networks between latents: z above -> p(z below | z above), a Gaussian with diagonal covariance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.modality import positive
from pyro_mm.networks import MLP, Net, event_flat
from pyro_mm.sharing import once

__all__ = ["Link", "OptimalLink", "links"]


class Link(nn.Module):
    """z above `(..., D)` -> N(f(z), s^2) with event shape `(dim,)`.

    Args:
        above: D, or several sizes whose sum it is (of latents that are concatenated).
        dim: size of the latent below.
        net: blueprint of f.
        scale: s, fixed; None lets the network give it, one per dimension.
        learnt: `scale` is only where s starts: one parameter per dimension.
    """

    def __init__(
        self,
        above: int | Sequence[int],
        dim: int,
        net: Net | None = None,
        scale: float | None = None,
        learnt: bool = False,
    ) -> None:
        super().__init__()
        size = above if isinstance(above, int) else sum(above)
        self.dim, self.given = dim, scale is not None
        self.net = (net or MLP((256,))).encoder((size,), dim if self.given else 2 * dim)
        if scale is not None:
            start = torch.full((dim,) if learnt else (), log(scale))
            self.log_scale = nn.Parameter(start) if learnt else nn.Buffer(start)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        raw = once(self.net, z, None, lambda: event_flat(self.net, z, 1))
        if self.given:
            return dist.Normal(raw, self.log_scale.exp(), validate_args=False).to_event(1)
        loc, scale = raw.chunk(2, -1)
        return dist.Normal(loc, positive(scale), validate_args=False).to_event(1)


class OptimalLink(Link):
    """N(f(z), s^2) with one s for all, in training the one under which the batch is most probable ("sigma-VAE").

    s^2 = mean over rows and dimensions of (value - f(z))^2 (Rybkin et al. 2021, eq. 5).  A running mean of s^2 stands
    for it outside training, so that the density of a row does not depend on its neighbours.
    """

    def __init__(self, above: int | Sequence[int], dim: int, net: Net | None = None, momentum: float = 0.05) -> None:
        super().__init__(above, dim, net, scale=1.0)
        self.momentum = momentum
        self.started: Tensor
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def fitted(self, p: dist.TorchDistribution, value: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """p with the batch's own s, from the rows that are `seen`; outside training p itself."""
        if not self.training:
            return p
        error = (value - p.base_dist.loc).square().mean(-1)
        rows = seen.expand(error.shape).to(error)
        # With no row at all there is nothing to fit: the clamps keep the number finite.
        square = ((error * rows).sum() / rows.sum().clamp(min=1)).clamp(min=1e-8)
        self._keep(square.detach(), seen.any())
        return dist.Normal(p.base_dist.loc, square.sqrt(), validate_args=False).to_event(1)

    @torch.no_grad()
    def _keep(self, square: Tensor, seen: Tensor) -> None:
        old = (2 * self.log_scale).exp()
        new = torch.where(self.started, old + self.momentum * (square - old), square)
        self.log_scale.copy_(torch.where(seen, 0.5 * new.log(), self.log_scale))
        self.started.logical_or_(seen)


def links(
    dim: int,
    below: Mapping[str, int],
    net: Net | None = None,
    scales: Mapping[str, float] | None = None,
    optimal: Sequence[str] = (),
) -> dict[str, Link]:
    """One link from a latent of `dim` to every modality's own, by name.

    Args:
        scales: fixed ones; by default the networks' own.
        optimal: modalities whose scale is the batch's own (`OptimalLink`).
    """
    own = scales or {}
    return {m: OptimalLink(dim, d, net) if m in optimal else Link(dim, d, net, own.get(m)) for m, d in below.items()}
