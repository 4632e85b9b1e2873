"""Recombination of concepts: AND, IN COMMON and IGNORE on posteriors over disentangled latents (SCAN).

A concept names values of some factors and leaves others open.  Where every factor has a latent dimension of its own,
its posterior is narrow in the dimensions that it specifies and the prior in the others, so that concepts combine
dimension by dimension: AND is the union of what two concepts specify, IN COMMON the intersection, IGNORE the difference
(Higgins et al. 2018, section 4).  The paper trains a network to do it, by KL(q(z | image) || its output) over images of
the combined concept; what is here is where that training ends, in closed form.

    specified:  sigma_d < threshold * sigma of the prior
    in common:  both concepts specify d, and their equal mixture's moments still do (they name the same value)

Shapes: `q` and `r` are diagonal Normals of batch shape `(...)` and event shape `(D,)`, and so is the result.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mm.guides.fusion import STANDARD, LocScale

__all__ = ["conjunction", "ignore", "in_common"]

Moments = tuple[Tensor, Tensor]


def conjunction(
    q: dist.TorchDistribution, r: dist.TorchDistribution, prior: LocScale = STANDARD, threshold: float = 0.5
) -> dist.TorchDistribution:
    """AND: what either concept specifies.  Where both name the same value as IN COMMON, elsewhere the narrower of them.

    Idempotent, unlike `product_of_posteriors`, for which two descriptions are two independent observations.
    """
    (loc, scale), (other, other_scale), shared, mean = _compared(q, r, prior, threshold)
    first = scale <= other_scale
    narrower = torch.where(first, loc, other), torch.where(first, scale, other_scale)
    return _normal(shared, mean, narrower)


def in_common(
    q: dist.TorchDistribution, r: dist.TorchDistribution, prior: LocScale = STANDARD, threshold: float = 0.5
) -> dist.TorchDistribution:
    """IN COMMON: where both name the same value, the moments of their equal mixture; elsewhere the prior."""
    _, _, shared, mean = _compared(q, r, prior, threshold)
    return _normal(shared, mean, _prior(mean, prior))


def ignore(
    q: dist.TorchDistribution, r: dist.TorchDistribution, prior: LocScale = STANDARD, threshold: float = 0.5
) -> dist.TorchDistribution:
    """IGNORE: the first concept without what it has in common with the second; there it is the prior."""
    own, _, shared, mean = _compared(q, r, prior, threshold)
    return _normal(shared, _prior(mean, prior), own)


def _compared(
    q: dist.TorchDistribution, r: dist.TorchDistribution, prior: LocScale, threshold: float
) -> tuple[Moments, Moments, Tensor, Moments]:
    """Moments of both, where they have something in common `(..., D)`, and moments of their equal mixture."""
    if not threshold > 0:
        raise ValueError(f"a dimension is specified below a threshold, which must be positive; got {threshold}")
    one, two = _moments(q), _moments(r)
    loc = (one[0] + two[0]) / 2
    scale = ((one[1].square() + two[1].square()) / 2 + ((one[0] - two[0]) / 2).square()).sqrt()
    limit = threshold * torch.as_tensor(prior[1]).to(scale)
    shared = (one[1] < limit) & (two[1] < limit) & (scale < limit)
    return one, two, shared, (loc, scale)


def _moments(q: dist.TorchDistribution) -> Moments:
    base = getattr(q, "base_dist", None)
    if not isinstance(base, torch.distributions.Normal) or q.event_dim != 1:
        raise TypeError(f"concepts recombine as Normal(...).to_event(1), dimension by dimension; got {q!r}")
    return base.loc, base.scale


def _prior(like: Moments, prior: LocScale) -> Moments:
    return torch.zeros_like(like[0]) + prior[0], torch.zeros_like(like[1]) + prior[1]


def _normal(where: Tensor, yes: Moments, no: Moments) -> dist.TorchDistribution:
    loc, scale = torch.where(where, yes[0], no[0]), torch.where(where, yes[1], no[1])
    return dist.Normal(loc, scale, validate_args=False).to_event(1)
