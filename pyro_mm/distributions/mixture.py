"""A mixture of diagonal location-scale experts whose sampler and density are one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Mixture", "independent_components"]

_INDEPENDENT: ContextVar[bool] = ContextVar("independent_components", default=False)


@contextmanager
def independent_components() -> Iterator[None]:
    """Draw mixture components independently per particle instead of systematically.

    Certificates, DReG gradients and calibration need independent draws; estimates are better with systematic ones.
    """
    token = _INDEPENDENT.set(True)
    try:
        yield
    finally:
        _INDEPENDENT.reset(token)


class Mixture(TorchDistribution):
    """q(z) = sum_j w_j prod_d F(z_d; loc_jd, scale_jd), w_j the normalised `weights`.

    The weights carry no gradient, so picking a component is noise, not a decision: `rsample` picks one and
    reparameterises it, which is unbiased.  Components are drawn systematically along the leftmost dimension,
    u_i = frac(i/K + U): uniform for every particle, spread evenly over particles.

    Args:
        loc, scale: `(..., J, D)`.
        weights: `(..., J)`, bool (uniform over the True ones) or non-negative; each row needs a positive entry.
        family: a location-scale family, `dist.Normal` by default.

    Raises:
        ValueError: `weights` require a gradient (a learnt weight needs a sum over components instead).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        weights: Tensor,
        family: Callable[..., TorchDistribution] = dist.Normal,
    ) -> None:
        if weights.requires_grad:
            raise ValueError("Mixture weights carry a gradient: sum the objective over components instead")
        batch = torch.broadcast_shapes(loc.shape[:-1], scale.shape[:-1], weights.shape)
        self.loc = loc.expand(*batch, loc.shape[-1])
        self.scale = scale.expand(*batch, loc.shape[-1])
        self.weights, self.family = weights.expand(batch), family
        super().__init__(batch[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Mixture:
        lead = torch.Size(batch_shape)
        return Mixture(
            self.loc.expand(*lead, *self.loc.shape[-2:]),
            self.scale.expand(*lead, *self.scale.shape[-2:]),
            self.weights.expand(*lead, self.weights.shape[-1]),
            self.family,
        )

    @property
    def log_weights(self) -> Tensor:
        """Log of the normalised weights `(..., J)`, -inf for absent experts."""
        w = self.weights.to(self.loc.dtype)
        return w.log() - w.sum(-1, keepdim=True).log()

    def components(self) -> TorchDistribution:
        """The experts, with batch shape `(..., J)`."""
        return self.family(self.loc, self.scale, validate_args=False).to_event(1)

    def _component(self, shape: torch.Size, start: Tensor | None = None) -> Tensor:
        """Expert index for every draw of batch shape `shape`; `start` is U, drawn here by default."""
        share = self.weights.to(self.loc.dtype).cumsum(-1)
        # The end of each expert's interval, normalised so that the last is exactly 1.
        ends = (share / share[..., -1:]).expand(*shape, share.shape[-1])
        if _INDEPENDENT.get() or len(shape) < 2:
            u = torch.rand(shape, dtype=ends.dtype, device=ends.device) if start is None else start
        else:
            k = shape[0]
            if start is None:
                start = torch.rand(shape[1:], dtype=ends.dtype, device=ends.device)
            step = torch.arange(k, dtype=ends.dtype, device=ends.device).view(-1, *[1] * (len(shape) - 1))
            u = (start + step / k) % 1.0
        # u < ends[j] first holds at the chosen j; absent experts have empty intervals and are never chosen.
        return (u.unsqueeze(-1) >= ends[..., :-1]).sum(-1).clamp(max=self._last())

    def _last(self) -> Any:
        """Index of the last present expert: rounding must not select an absent one behind it."""
        j = torch.arange(self.weights.shape[-1], device=self.weights.device)
        return (j * (self.weights > 0)).amax(-1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        loc, scale = self.drawn_component(torch.Size(sample_shape) + self.batch_shape)
        return self.family(loc, scale, validate_args=False).rsample()

    def drawn_component(self, shape: torch.Size, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`loc` and `scale` `(*shape, D)` of the components of as many draws; `start` is U, `shape[1:]` or, for a
        single dimension, `shape`."""
        index = self._component(shape, start)[..., None, None].expand(*shape, 1, self.loc.shape[-1])
        full = (*shape, *self.loc.shape[-2:])
        loc = self.loc.expand(full).gather(-2, index).squeeze(-2)
        return loc, self.scale.expand(full).gather(-2, index).squeeze(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        logp = self.components().log_prob(value.unsqueeze(-2))
        logp = torch.where(self.weights > 0, logp, -torch.inf)
        return torch.logsumexp(logp + self.log_weights.clamp(min=-1e30), -1)

    @property
    def mean(self) -> Tensor:
        """The mixture's mean `(..., D)`."""
        return (self.log_weights.exp().unsqueeze(-1) * self.components().mean).sum(-2)

    @property
    def variance(self) -> Tensor:
        """The mixture's variance per dimension `(..., D)`."""
        parts = self.components()
        second = (self.log_weights.exp().unsqueeze(-1) * (parts.variance + parts.mean**2)).sum(-2)
        return second - self.mean**2
