"""What a guide says of every latent dimension: is it used, and how many nats does it cost.

A dimension is *active* when its posterior mean moves with the data, Var_x E_q[z_d | x] > threshold (Burda et al. 2016,
section 5.2), and *collapsed* when its posterior is the prior: KL(q(z_d|x) || p(z_d)) < 0.01 nats in at least 99 % of
the rows (Lucas et al. 2019, definition 1).  KL per dimension, by what the two distributions of a site are:

    independent dimensions      the KL itself, in closed form where torch has one; they add up to the site's KL
    a mixture, a full Gaussian  the KL of the marginals: each is at most the site's KL, and they need not add up to it
    anything else (a flow)      the site's KL only
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_mm.distributions import Mixture
from pyro_mm.objectives.elbo import closed_kl, require_valid_analytic_kl
from pyro_mm.weights import Run, Site, per_datum

__all__ = ["Latent", "LatentSums", "by_row", "seen_rows"]

NEGLIGIBLE, NEARLY_ALL = 0.01, 0.99


@dataclass(frozen=True)
class Latent:
    """One site given some modalities; tensors are `(D,)`, event dimensions and plates nested in the datum side by side.

    Attributes:
        rows: in how many rows it is drawn; means are over these.
        activity: Var_x E_q[z_d | x], less what the noise of the means adds; NaN where there is no mean.
        active: is that above the threshold?
        kl: nats per dimension, or None where only the total can be had.
        collapsed: is the posterior the prior in nearly all rows?  Where `kl` is None: is it in all dimensions at once?
        total: KL of the site, nats.
        total_se: its standard error over the data, Monte Carlo noise included.
        method: how the KL was computed.
    """

    rows: int
    activity: Tensor
    active: Tensor
    kl: Tensor | None
    collapsed: Tensor
    total: float
    total_se: float
    method: str

    def summary(self) -> dict[str, Any]:
        """Numbers for JSON; NaN is None."""
        return {
            "rows": self.rows,
            "active_units": int(self.active.sum()),
            "collapsed_units": int(self.collapsed.sum()),
            "dims": len(self.active),
            "kl": finite(self.total),
            "kl_se": finite(self.total_se),
            "kl_method": self.method,
            "activity": [finite(v) for v in self.activity.tolist()],
            "kl_per_dim": None if self.kl is None else [finite(v) for v in self.kl.tolist()],
            "active": self.active.tolist(),
            "collapsed": self.collapsed.tolist(),
        }


def finite(value: float) -> float | None:
    """The number, or None: JSON has no NaN."""
    return value if abs(value) < float("inf") else None


class LatentSums:
    """Sums over particles of one site's posterior means, their squares, and its KLs, for some rows."""

    def __init__(self) -> None:
        self.k, self.method = 0, ""
        self.seen: Any = None
        self.mean: Any = 0.0
        self.square: Any = 0.0
        self.kl: Any = 0.0  # (N, D), or None
        self.total: Any = 0.0

    def add(self, pair: Run, name: str) -> Tensor:
        """Take in a chunk of particles; the KL of every row, its mean over them `(N,)`."""
        q = pair.guide[name]
        each, total, self.method = _divergence(pair, name)
        mean = by_row(_mean(q), q.fn.event_dim).double()
        self.seen = _seen(q, q.value, q.fn.event_dim)
        self.mean, self.square, self.k = self.mean + mean.sum(0), self.square + mean.square().sum(0), self.k + len(mean)
        total = total.double()
        self.kl = None if each is None else self.kl + torch.where(self.seen, each.double(), 0.0).sum(0)
        self.total = self.total + total.sum(0)
        return total.mean(0)

    @staticmethod
    def join(parts: list[LatentSums]) -> LatentSums:
        """The rows of several blocks."""
        whole = LatentSums()
        whole.k, whole.method = parts[0].k, parts[0].method
        for name in ("seen", "mean", "square", "total"):
            setattr(whole, name, torch.cat([getattr(p, name) for p in parts]))
        whole.kl = None if parts[0].kl is None else torch.cat([p.kl for p in parts])
        return whole

    def result(self, threshold: float) -> Latent | None:
        """None where no row has the latent."""
        rows = self.seen.any(-1)
        n, seen = int(rows.sum()), self.seen
        if not n:
            return None
        activity = self._activity()
        total = (self.total / self.k)[rows]
        kl = None if self.kl is None else self.kl / self.k
        small = (total < NEGLIGIBLE).unsqueeze(-1) if kl is None else kl[rows] < NEGLIGIBLE
        share = (small & seen[rows]).sum(0) / seen.sum(0)
        return Latent(
            n,
            activity,
            activity > threshold,
            None if kl is None else kl.sum(0) / seen.sum(0),
            share >= NEARLY_ALL,
            total.mean().item(),
            total.std().item() / sqrt(n) if n > 1 else float("nan"),
            self.method,
        )

    def _activity(self) -> Tensor:
        """Variance over the rows of posterior means, less their mean squared standard error `(D,)`."""
        count = self.seen.sum(0)
        mean = torch.where(self.seen, self.mean / self.k, 0.0)
        noise = (self.square / self.k - (self.mean / self.k).square()).clamp(min=0.0) / (self.k - 1)
        away = torch.where(self.seen, mean - mean.sum(0) / count, 0.0)
        variance = away.square().sum(0) / (count - 1) - torch.where(self.seen, noise, 0.0).sum(0) / count
        return torch.where(count > 1, variance.clamp(min=0.0), torch.nan)


def by_row(value: Tensor, event: int = 0) -> Tensor:
    """`(K, ..., N, *event)` as `(K, N, D)`: plates nested inside the datum and event dimensions side by side."""
    while value.dim() < 3 + event:
        value = value.unsqueeze(0)
    return value.movedim((value.dim() - event - 3, value.dim() - event - 1), (0, 1)).flatten(2)


def seen_rows(site: Site, n: int) -> Tensor:
    """Bool `(N,)`: rows in which the site is not masked."""
    if not isinstance(site.mask, Tensor):
        return torch.full((n,), site.mask is not False, device=site.value.device)
    return site.mask.expand(*site.mask.shape[:-1], n).reshape(-1, n).any(0)


def _seen(site: Site, like: Tensor, event: int) -> Tensor:
    """Bool `(N, D)`: what of a tensor of shape `(K, ..., N, *event)` is not masked."""
    mask = site.mask if isinstance(site.mask, Tensor) else torch.tensor(site.mask is not False)
    mask = mask.to(like.device).reshape(mask.shape + (1,) * event)
    return by_row(mask.expand(like.shape), event)[0]


def _mean(site: Site) -> Tensor:
    """The distribution's mean, or the draws where it does not know its own: their average is treated alike."""
    try:
        return site.fn.mean.expand(site.value.shape)
    except NotImplementedError:
        return site.value if site.value.is_floating_point() else torch.full(site.value.shape, torch.nan)


def _divergence(pair: Run, name: str) -> tuple[Tensor | None, Tensor, str]:
    """KL per dimension `(K, N, D)` or None, the site's `(K, N)`, and how they were computed."""
    q, p, event = pair.guide[name], pair.model[name], pair.guide[name].fn.event_dim
    valid = _analytic(pair, name)
    sampled = (per_datum(q) - per_datum(p)).squeeze(1)
    ours, theirs = marginals(q.fn), marginals(p.fn)
    closed = _closed_total(q, p) if valid else None
    whole = sampled if closed is None else closed
    if ours is None or theirs is None:
        return None, whole, f"total only, {'sampled' if closed is None else 'closed form'}"
    exact = closed_kl(ours, theirs) if valid else None
    drawn = ours.log_prob(q.value) - theirs.log_prob(q.value)
    each, rough = (by_row(v, event) for v in (drawn if exact is None else exact, drawn))
    how = "sampled" if exact is None else "closed form"
    seen = _seen(q, q.value, event)
    parts = torch.where(seen, each, 0.0).sum(-1)
    if _factorised(q.fn) and _factorised(p.fn):
        return each, parts, how
    if closed is None:  # what is known of the parts need not be drawn
        whole = whole + parts - torch.where(seen, rough, 0.0).sum(-1)
    return each, whole, f"marginals, {how}"


def _analytic(pair: Run, name: str) -> bool:
    try:
        require_valid_analytic_kl(pair, name)
    except ValueError:
        return False
    return True


def _closed_total(q: Site, p: Site) -> Tensor | None:
    value = closed_kl(q.fn, p.fn)
    return None if value is None else torch.where(_seen(q, value, 0), by_row(value), 0.0).sum(-1)


def marginals(fn: Any) -> Any:
    """The distribution of every dimension by itself, batch shape `(..., *event)`; None where it is not known."""
    if isinstance(fn, torch.distributions.Independent):
        return marginals(fn.base_dist)
    if isinstance(fn, Mixture):
        share = fn.log_weights.unsqueeze(-2).expand(fn.loc.mT.shape)
        which = dist.Categorical(logits=share, validate_args=False)
        parts = fn.family(fn.loc.mT, fn.scale.mT, validate_args=False)
        return dist.MixtureSameFamily(which, parts, validate_args=False)
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return dist.Normal(fn.loc, fn.variance.sqrt(), validate_args=False)
    return fn if fn.event_dim == 0 else None


def _factorised(fn: Any) -> bool:
    if isinstance(fn, torch.distributions.Independent):
        return _factorised(fn.base_dist)
    return fn.event_dim == 0
