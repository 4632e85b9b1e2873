"""More fusion rules: weighted and geometric pools, correlated experts, Hoelder pooling, mixtures over subsets.

Shapes and promises are those of `fusion`: `loc`, `scale` `(..., M, D)`, `mask` `(..., M)`, a result of batch shape
`(...)` and event shape `(D,)`, the prior where no expert is present, nothing of absent experts in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.distributions import Mixture
from pyro_mm.guides.fusion import STANDARD, Fusion, LocScale, appended, diagonal, membership

__all__ = [
    "CorrelatedExperts",
    "OverSubsets",
    "WeightedProduct",
    "geometric_mean",
    "hoelder_pooling",
    "mixture_with_prior",
    "product_without_prior",
    "weighted_product",
]


def weighted_product(
    loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD, weight: Tensor | float = 1.0
) -> dist.TorchDistribution:
    """q(z | x_S) = prod_{m in S} N(z; loc_m, scale_m^2)^w_m, normalised (Cao & Fleet 2014): no prior among the experts.

    Precision sum_S w_m / scale_m^2 in every dimension; the prior in dimensions that nothing present has a weight in.

    Args:
        weight: `(M, D)`, not negative, or one for all.
    """
    return _pool(loc, scale, mask, prior, weight, 0.0)


def product_without_prior(
    loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD
) -> dist.TorchDistribution:
    """q(z | x_S) = prod_{m in S} N(z; loc_m, scale_m^2), normalised; one present expert is returned as it is."""
    return weighted_product(loc, scale, mask, prior)


def geometric_mean(loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD) -> dist.TorchDistribution:
    """f(z | x_S) = [p(z) prod_{m in S} N(z; loc_m, scale_m^2)]^(1 / (|S| + 1)), normalised.

    mmJSD's dynamic prior with equal weights (Sutter et al. 2020): precisions are averaged, the prior's among them.
    """
    share = 1.0 / (mask.sum(-1, keepdim=True) + 1.0).to(loc)
    return _pool(loc, scale, mask, prior, share.unsqueeze(-1), share)


def mixture_with_prior(loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD) -> dist.TorchDistribution:
    """1 / (|S| + 1) [p(z) + sum_{m in S} N(z; loc_m, scale_m^2)]: the members of mmJSD's divergence."""
    seen = mask.unsqueeze(-1)
    members = torch.cat([mask, torch.ones_like(mask[..., :1])], -1)
    return Mixture(
        appended(torch.where(seen, loc, 0.0), prior[0]), appended(torch.where(seen, scale, 1.0), prior[1]), members
    )


def hoelder_pooling(loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD) -> dist.TorchDistribution:
    """The Gaussian with mean and variances of the pool  q(z) ~ [sum_{m in S} N(z; loc_m, scale_m^2)^(1/2)]^2.

    Hoelder pooling of order 1/2 (Vo & Valera 2026), half way from the product (0) to the mixture (1).  The square is a
    mixture of the geometric means of all pairs, each with weight prod_d BC_d, the Bhattacharyya coefficient of the
    pair, so that the moments are exact.
    """
    seen = mask.unsqueeze(-1)
    mu, s = torch.where(seen, loc, 0.0), torch.where(seen, scale, 1.0)
    a, b = s.unsqueeze(-2) ** -2, s.unsqueeze(-3) ** -2
    one, two = mu.unsqueeze(-2), mu.unsqueeze(-3)
    variance, mean = 2.0 / (a + b), (a * one + b * two) / (a + b)
    # log BC = 1/2 log(2 s_m s_n / (s_m^2 + s_n^2)) - (mu_m - mu_n)^2 / 4 (s_m^2 + s_n^2), in precisions.
    log_bc = 0.5 * (2.0 * (a * b).sqrt() / (a + b)).log() - 0.25 * (one - two) ** 2 * a * b / (a + b)
    both = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    some = mask.any(-1, keepdim=True)
    # Where nothing is present every pair counts, for want of a softmax of nothing; the prior then takes its place.
    log_w = torch.where(both | ~some.unsqueeze(-1), log_bc.sum(-1), -torch.inf)
    weight = log_w.flatten(-2).softmax(-1).unsqueeze(-1)
    mean, variance = mean.flatten(-3, -2), variance.flatten(-3, -2)
    first = (weight * mean).sum(-2)
    second = (weight * (variance + (mean - first.unsqueeze(-2)) ** 2)).sum(-2)
    return diagonal(*_or_prior(some, first, second.sqrt(), prior))


class WeightedProduct(nn.Module):
    """`weighted_product` with learnt weights in (0, 1) for every modality and dimension, 1/M to begin with.

    The published code clamps them to [0, 1] after every step; here each is the sigmoid of a parameter, which cannot
    stick to an end.

    Args:
        count: M, the number of modalities.
        dim: D.
        fixed: given weights instead, one number or D of them by modality; they are not learnt.

    Raises:
        ValueError: a given weight is negative, or their shape does not fit.
    """

    logits: nn.Parameter
    fixed: Tensor | None

    def __init__(self, count: int, dim: int, fixed: Sequence[float | Sequence[float]] | None = None) -> None:
        super().__init__()
        if fixed is None:
            start = torch.full((count, dim), min(1.0 / count, 0.99))
            self.logits = nn.Parameter(start.logit())
            self.fixed = None
            return
        rows = [torch.as_tensor(w, dtype=torch.get_default_dtype()) for w in fixed]
        if len(rows) != count or any(r.shape not in ((), (dim,)) or bool((r < 0).any()) for r in rows):
            raise ValueError(f"{count} weights, each one number or {dim}, none negative, are needed; got {fixed!r}")
        self.register_buffer("fixed", torch.stack([r.expand(dim) for r in rows]), persistent=False)

    @property
    def weight(self) -> Tensor:
        """w `(M, D)`."""
        return self.logits.sigmoid() if self.fixed is None else self.fixed

    def forward(self, loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD) -> dist.TorchDistribution:
        return weighted_product(loc, scale, mask, prior, self.weight)


class CorrelatedExperts(nn.Module):
    """q(z_d | x_S) = N(mean_d, 1 / A_d) of experts whose errors have correlation rho (Mancisidor et al. 2025).

    Sigma = diag(scale) R diag(scale), R = (1 - rho) I + rho 11';  A = 1' Sigma^-1 1, mean = 1' Sigma^-1 loc / A
    (Winkler 1981).  No prior among the experts: with rho = 0 it is `product_without_prior`.  A good expert beside a bad
    one may count with a negative weight for the bad, so that the mean lies outside of both.

    Args:
        rho: common correlation in [0, 1).

    Raises:
        ValueError: it is not.
    """

    def __init__(self, rho: float = 0.5) -> None:
        super().__init__()
        if not 0 <= rho < 1:
            raise ValueError(f"the correlation of experts must be in [0, 1), got {rho}")
        self.rho = rho

    def forward(self, loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD) -> dist.TorchDistribution:
        seen, rho = mask.unsqueeze(-1), self.rho
        u = torch.where(seen, torch.where(seen, scale, 1.0) ** -1, 0.0)
        v = u * torch.where(seen, loc, 0.0)
        # R^-1 = [I - rho / (1 + (n - 1) rho) 11'] / (1 - rho)  of the n present ones.
        count = mask.sum(-1, keepdim=True).to(loc)
        share = rho / (1.0 + (count - 1.0).clamp(min=0.0) * rho)
        total = ((u**2).sum(-2) - share * u.sum(-2) ** 2) / (1.0 - rho)
        first = ((u * v).sum(-2) - share * u.sum(-2) * v.sum(-2)) / (1.0 - rho)
        some = mask.any(-1, keepdim=True)
        safe = torch.where(some, total, 1.0)
        return diagonal(*_or_prior(some, first / safe, safe**-0.5, prior))


class OverSubsets(nn.Module):
    """The mixture over non-empty T in S of rule(T), for a `rule` that gives Gaussians: `OverSubsets(barycentre)`.

    Args:
        rule: a fusion rule.
        shares: a module that returns the weight of every non-empty subset `(2^M - 1,)`, by size and then in
            combination order; equal by default.  Within a row those of subsets that are there whole are renormalised.
            They carry no gradient here.
    """

    def __init__(self, rule: Fusion, shares: nn.Module | None = None) -> None:
        super().__init__()
        self.rule, self.shares = rule, shares

    def forward(self, loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale = STANDARD) -> dist.TorchDistribution:
        subsets = membership(mask.shape[-1]).to(mask.device)
        whole = (mask.unsqueeze(-2) | ~subsets).all(-1)
        weights: Any = torch.cat([whole[..., :-1], ~mask.any(-1, keepdim=True)], -1)
        if self.shares is not None:
            own = self.shares().detach()
            weights = weights * torch.cat([own, own.new_ones(1)])
        members = mask.unsqueeze(-2) & subsets & weights.bool().unsqueeze(-1)
        parts: Any = self.rule(loc.unsqueeze(-3), scale.unsqueeze(-3), members, prior)
        return Mixture(parts.base_dist.loc, parts.base_dist.scale, weights)


def _pool(
    loc: Tensor, scale: Tensor, mask: Tensor, prior: LocScale, weight: Tensor | float, share: Tensor | float
) -> dist.TorchDistribution:
    """N with precision share / s0^2 + sum_S w_m / s_m^2 and the weighted mean; the prior where that is 0."""
    seen = mask.unsqueeze(-1)
    precision = torch.where(seen, weight * torch.where(seen, scale, 1.0) ** -2, 0.0)
    base = share * torch.as_tensor(prior[1]).to(loc) ** -2
    total = precision.sum(-2) + base
    first = (precision * torch.where(seen, loc, 0.0)).sum(-2) + base * prior[0]
    some = total > 0
    safe = torch.where(some, total, 1.0)
    return diagonal(*_or_prior(some, first / safe, safe**-0.5, prior))


def _or_prior(some: Tensor, loc: Tensor, scale: Tensor, prior: LocScale) -> tuple[Tensor, Tensor]:
    """Location and scale where `some` is True, the prior's elsewhere."""
    loc0, scale0 = (torch.as_tensor(v).to(loc) for v in prior)
    return torch.where(some, loc, loc0), torch.where(some, scale, scale0)
