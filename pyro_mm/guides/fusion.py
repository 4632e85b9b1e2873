"""Fusion rules: `(loc, scale, mask) -> Distribution` over the shared latent.

Shapes: `loc`, `scale` are `(..., M, D)`, one expert per modality; `mask` is `(..., M)` bool, True where present.  The
result has batch shape `(...)` and event shape `(D,)`, and is the prior where no expert is present.  Values of absent
experts never reach the result.  A rule of your own is any function of this form; it may take `prior=` as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mm.distributions import Mixture

__all__ = [
    "SYMMETRIC",
    "Fusion",
    "barycentre",
    "mixture_of_experts",
    "mixture_of_products",
    "product_of_a_subset",
    "product_of_experts",
    "product_of_posteriors",
]

Fusion = Callable[..., dist.TorchDistribution]
LocScale = tuple[Tensor | float, Tensor | float]
STANDARD: LocScale = (0.0, 1.0)
LISTED = 20
"""Modalities of which all subsets are listed at most: a million."""


def product_of_experts(loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD) -> dist.TorchDistribution:
    """q(z | x_S) = p(z) prod_{m in S} N(z; loc_m, scale_m^2), normalised (Wu & Goodman 2018, section 2.2).

    Precision 1/s0^2 + sum_S 1/scale_m^2; the prior is one of the experts, counted once.
    """
    return diagonal(*_product(loc, scale, mask.unsqueeze(-1), prior))


def product_of_posteriors(
    loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD
) -> dist.TorchDistribution:
    """q(z | x_S) = p(z) prod_{m in S} q_m(z) / p(z), each q_m an approximate posterior that holds the prior already.

    A single present expert is returned as it is.  With several, an expert wider than the prior adds no (rather
    than negative) precision.
    """
    seen = mask.unsqueeze(-1)
    loc0, scale0 = prior
    own = torch.where(seen, scale, 1.0) ** -2
    base = torch.as_tensor(scale0).to(loc) ** -2
    gain = torch.where(seen, (own - base).clamp(min=0.0), 0.0)
    shift = torch.where(seen, own * (loc - loc0), 0.0)
    total = base + gain.sum(-2)
    many = (total**-1 * torch.where(own > base, shift, 0.0).sum(-2) + loc0, total**-0.5)
    single = (mask.sum(-1) == 1).unsqueeze(-1)
    one = (torch.where(seen, loc, 0.0).sum(-2), torch.where(seen, scale, 0.0).sum(-2))
    return diagonal(torch.where(single, one[0], many[0]), torch.where(single, one[1], many[1]))


def mixture_of_experts(
    loc: Tensor,
    scale: Tensor,
    mask: Tensor,
    prior: tuple[Tensor | float, ...] = STANDARD,
    family: Callable[..., dist.TorchDistribution] = dist.Normal,
) -> dist.TorchDistribution:
    """q(z | x_S) = 1/|S| sum_{m in S} F(z; loc_m, scale_m) (Shi et al. 2019); Laplace experts by `family`.

    The prior may be a mixture, (loc, scale, weights) with one row for every part.
    """
    seen = mask.unsqueeze(-1)
    loc = appended(torch.where(seen, loc, 0.0), prior[0])
    scale = appended(torch.where(seen, scale, 1.0), prior[1])
    nothing = ~mask.any(-1, keepdim=True)
    weights = torch.cat([mask, nothing], -1)
    if len(prior) > 2:
        weights = torch.cat([mask.to(loc), nothing * torch.as_tensor(prior[2]).to(loc)], -1)
    return Mixture(loc, scale, weights, family)


def mixture_of_products(loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD) -> dist.TorchDistribution:
    """q(z | x_S) = mean over non-empty T in S of p(z) prod_{m in T} N(z; loc_m, scale_m^2), each normalised.

    MoPoE (Sutter et al. 2021), with the prior in every product, so that one modality alone is told as it is by
    `product_of_experts`; their code has it in the product of all modalities only.
    """
    subsets = membership(mask.shape[-1]).to(mask.device)
    whole = (mask.unsqueeze(-2) | ~subsets).all(-1)
    # The empty subset, last, is the prior: chosen only where nothing is present.
    present = torch.cat([whole[..., :-1], ~mask.any(-1, keepdim=True)], -1)
    products = _product(loc, scale, mask.unsqueeze(-1), prior, subsets)
    return Mixture(*products, present)


def product_of_a_subset(loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD) -> dist.TorchDistribution:
    """p(z) prod_{m in T} N(z; loc_m, scale_m^2), normalised; T drawn anew at every call and for every row, uniformly
    among the non-empty subsets of what is present.

    For training with many modalities: a draw from a component of `mixture_of_products` at the cost of one product, M
    experts instead of 2^M - 1 subsets.  What is linear in the mixture, as MoPoE's bound, has it for an unbiased
    estimate.  Its density is the component's: likelihoods need that of the mixture.
    """
    return product_of_experts(loc, scale, _subset_of(mask), prior)


def barycentre(loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD) -> dist.TorchDistribution:
    """2-Wasserstein barycentre of the present diagonal Gaussians: mean of means, mean of standard deviations."""
    seen = mask.unsqueeze(-1)
    count = mask.sum(-1, keepdim=True)
    empty = (count == 0).to(loc.dtype)
    share = count.clamp(min=1)
    mean = (torch.where(seen, loc, 0.0).sum(-2)) / share + empty * prior[0]
    return diagonal(mean, torch.where(seen, scale, 0.0).sum(-2) / share + empty * prior[1])


SYMMETRIC = frozenset(
    {
        product_of_experts,
        product_of_posteriors,
        mixture_of_experts,
        mixture_of_products,
        product_of_a_subset,
        barycentre,
    }
)
"""Rules that give the same without the experts that are absent in every row, wherever these stood."""


def _subset_of(mask: Tensor) -> Tensor:
    """Of every row's present modalities a non-empty subset, drawn uniformly; nothing of nothing.

    The place of the first member is geometric, 1/2, 1/4, ..., cut off at n and renormalised; what comes after it is
    there or not by the toss of a coin: no weight depends on 2^n, which would overflow.
    """
    place, n = mask.cumsum(-1) - 1, mask.sum(-1, keepdim=True)
    u = torch.rand(n.shape, dtype=torch.float64, device=mask.device)
    first = (-torch.log2(1.0 - u * (1.0 - 0.5**n))).long().clamp(max=n - 1)
    tossed = torch.rand(mask.shape, device=mask.device) < 0.5
    return mask & ((place == first) | ((place > first) & tossed))


def _product(
    loc: Tensor, scale: Tensor, seen: Tensor, prior: LocScale, subsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Location and scale of the product over the expert axis, or over every row of the membership matrix."""
    loc0, scale0 = prior
    base = torch.as_tensor(scale0).to(loc) ** -2
    precision = torch.where(seen, torch.where(seen, scale, 1.0) ** -2, 0.0)
    # A prior of every row's own stands before the experts' axis.
    centre = loc0.unsqueeze(-2) if isinstance(loc0, Tensor) and loc0.dim() > 1 else loc0
    moment = precision * (torch.where(seen, loc, 0.0) - centre)
    if subsets is None:
        total, first = base + precision.sum(-2), moment.sum(-2)
    else:
        member = subsets.to(loc.dtype)
        total, first = base + member @ precision, member @ moment
    return first / total + loc0, total**-0.5


def diagonal(loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
    """N(loc, diag(scale^2)), event shape `(D,)`."""
    return dist.Normal(loc, scale, validate_args=False).to_event(1)


def appended(values: Tensor, last: Tensor | float) -> Tensor:
    """One more row along the expert axis, or those of a matrix."""
    rows = torch.as_tensor(last).to(values)
    rows = rows.expand(*values.shape[:-2], rows.shape[0] if rows.dim() == 2 else 1, values.shape[-1])
    return torch.cat([values, rows], -2)


@cache
def membership(m: int) -> Tensor:
    """Membership matrix `(2^M, M)` of all subsets by size, the empty one last.

    Raises:
        ValueError: too many to list.
    """
    if m > LISTED:
        raise ValueError(
            f"{m} modalities have 2^{m} subsets, which a mixture over all of them would list.  Train with "
            "`product_of_a_subset` (`mopoe(..., sampled=True)`), and use `product_of_experts` for likelihoods"
        )
    groups = [s for r in range(1, m + 1) for s in combinations(range(m), r)] + [()]
    return torch.tensor([[i in s for i in range(m)] for s in groups], dtype=torch.bool).reshape(-1, m)
