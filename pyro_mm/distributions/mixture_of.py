"""A mixture of distributions of any kinds, in fixed proportions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_mm.distributions.mixture import Mixture
from pyro_mm.tracing import is_traced

__all__ = ["MixtureOf"]


class MixtureOf(TorchDistribution):
    """q(z) = sum_j w_j q_j(z), q_j reparameterised distributions over real vectors, w_j the normalised `weights`.

    What `Mixture` is for one location-scale family: the weights carry no gradient, `rsample` picks a part and
    reparameterises it, and parts are drawn systematically along the leftmost dimension.  A part whose weights are 0
    everywhere is not looked at.

    Args:
        parts: J distributions of one event shape `(D,)`, whose batch shapes broadcast.
        weights: `(..., J)`, bool or non-negative; each row needs a positive entry.

    Raises:
        ValueError: the numbers of parts and weights differ, or weights require a gradient.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, parts: Sequence[TorchDistribution], weights: Tensor) -> None:
        if len(parts) != weights.shape[-1]:
            raise ValueError(f"{len(parts)} parts with {weights.shape[-1]} weights")
        if weights.requires_grad:
            raise ValueError("MixtureOf weights carry a gradient: sum the objective over parts instead")
        batch = torch.broadcast_shapes(weights.shape[:-1], *(p.batch_shape for p in parts))
        self.parts, self.weights = tuple(parts), weights.expand(*batch, len(parts))
        super().__init__(batch, parts[0].event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureOf:
        return MixtureOf(self.parts, self.weights.expand(*batch_shape, len(self.parts)))

    def _used(self) -> list[int]:
        if is_traced():  # a graph must serve any weights
            return list(range(len(self.parts)))
        return [j for j in range(len(self.parts)) if bool((self.weights[..., j] > 0).any())]

    @property
    def single(self) -> TorchDistribution | None:
        """The one part that has weight, or None where there are several."""
        used = self._used()
        return self.parts[used[0]].expand(self.batch_shape) if len(used) == 1 else None

    @property
    def mean(self) -> Tensor:
        """sum_j w_j E_j[z]: known where the parts that are used know theirs."""
        shares = self.weights / self.weights.sum(-1, keepdim=True)
        terms = [
            torch.where(shares[..., j, None] > 0, shares[..., j, None] * self.parts[j].mean, 0.0) for j in self._used()
        ]
        return torch.stack(torch.broadcast_tensors(*terms)).sum(0)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        used = self._used()
        if len(used) == 1:
            return self.parts[used[0]].expand(shape).rsample()
        draws = {j: self.parts[j].expand(shape).rsample() for j in used}
        blank = next(iter(draws.values())).new_zeros(*self.weights.shape, 1)
        index = Mixture(blank, torch.ones_like(blank), self.weights)._component(shape).unsqueeze(-1)
        value = draws[used[0]]
        for j in used[1:]:
            value = torch.where(index == j, draws[j], value)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        total = self.weights.to(value.dtype).sum(-1).log()
        terms = []
        for j in self._used():
            w = self.weights[..., j].to(value.dtype)
            terms.append(torch.where(w > 0, self.parts[j].log_prob(value) + w.clamp(min=1e-30).log(), -torch.inf))
        return torch.logsumexp(torch.stack(torch.broadcast_tensors(*terms)), 0) - total
