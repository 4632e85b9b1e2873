"""Samplers match densities: the bridge identity with a Gaussian fit.

    r = a Gaussian fitted to draws of q;   half of the draws from q, half from r;   mean of r / (q/2 + r/2) = 1

The weights are at most 2, so the mean has a small and known error.  It is not 1 when draws come from another
distribution than the density says: one expert for all particles, a standard deviation scored as a variance, a
density that does not integrate to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, biject_to

from pyro_mm.batch import Batch
from pyro_mm.distributions import independent_components
from pyro_mm.evaluation.check.pair import Failure, Pair, Skip, copy_of
from pyro_mm.evaluation.latents import Coordinates, is_continuous
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import particles
from pyro_mm.weights import Site, Sites, per_datum, replay, run

__all__ = ["bridge", "guide_density", "model_density"]

PILOTS, FULL, NUMBERS = 200, 20, 4_000_000
ALLOWED = 2e-3  # of rounding and of the fit, beside 4 standard errors
Density = Callable[[Tensor], Tensor]


def bridge(pilots: Tensor, draws: Tensor, density: Density) -> tuple[float, float]:
    """Mean of r / (q/2 + r/2) minus 1, and its standard error.

    Args:
        pilots: draws of q `(P, N, D)` to which r is fitted, per row.
        draws: further draws of q `(K, N, D)`.
        density: log q of points `(K, N, D)`, as `(K, N)`.
    """
    r = _gaussian(pilots.double())
    shares = []
    for points in (draws, r.sample((len(draws),)).to(draws.dtype)):
        log_q, log_r = density(points).double(), r.log_prob(points.double())
        shares.append((log_r - torch.logaddexp(log_q, log_r) + log(2.0)).exp())
    mean = torch.stack([s.mean(0) for s in shares]).mean(0) - 1
    variance = torch.stack([s.var(0) / len(s) for s in shares]).mean(0) / 2
    return mean.mean().item(), variance.sum().sqrt().item() / len(mean)


def _gaussian(pilots: Tensor) -> torch.distributions.Distribution:
    """A Gaussian per row, of full covariance when there are draws enough for one."""
    loc, scale = pilots.mean(0), pilots.std(0) + 1e-12
    if pilots.shape[-1] > FULL:
        return torch.distributions.Independent(Normal(loc, scale), 1)
    centred = (pilots - loc) / scale
    correlation = torch.einsum("pni,pnj->nij", centred, centred) / (len(pilots) - 1)
    root = torch.linalg.cholesky(correlation + 1e-3 * torch.eye(pilots.shape[-1]).to(pilots))
    return MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * root)


def _judge(deviations: dict[str, tuple[float, float]], what: str) -> str:
    if not deviations:
        raise Skip(f"no {what} with a density over real numbers")
    off = {n: (d, s) for n, (d, s) in deviations.items() if not abs(d) <= 4 * s + ALLOWED}
    if off:
        texts = [f"{n}: {1 + d:.3f} +- {s:.3f}" for n, (d, s) in off.items()]
        raise Failure(f"mean of r/(q/2 + r/2) is not 1 for {'; '.join(texts)}")
    worst = max(deviations.values(), key=lambda v: abs(v[0]))
    return f"mean of r/(q/2 + r/2) = {1 + worst[0]:.4f} +- {worst[1]:.4f} at worst, over {', '.join(deviations)}"


# The guide: all its latents together, drawn anew by running it.


def guide_density(pair: Pair) -> str:
    """The guide's draws follow the density that its trace gives, for every view."""
    deviations = {}
    with evaluating(pair.model, pair.guide, seed=pair.seed), independent_components():
        for label, view in pair.views():
            sites = run(pair.guide, copy_of(view))
            for name, site in sites.items():
                _require_support(name, site)
            names = [n for n, s in sites.items() if is_continuous(s) and bool(_unmasked(s).any())]
            if not names:
                continue
            where = Coordinates.of(sites, len(view), names)
            rows = where.seen.all(-1).nonzero().flatten()
            if not len(rows):
                continue
            pilots = where.pack(_values(run(particles(pair.guide, PILOTS), copy_of(view))))
            drawn = _values(run(particles(pair.guide, pair.k), copy_of(view)))
            density = _replayed(pair, view, where, rows, drawn)
            deviations[label] = bridge(pilots[:, rows], where.pack(drawn)[:, rows], density)
    return _judge(deviations, "guide site")


def _require_support(name: str, site: Site) -> None:
    """A distribution that does not say its support would be left out of the check in silence."""
    try:
        site.fn.support  # noqa: B018
    except (AttributeError, NotImplementedError) as error:
        raise Failure(
            f"the distribution of '{name}' ({type(site.fn).__name__}) has no `support`, so its density is not checked",
            "give the distribution its support, for example support = constraints.real_vector",
        ) from error


def _replayed(pair: Pair, view: Batch, where: Coordinates, rows: Tensor, drawn: dict[str, Tensor]) -> Density:
    """Points of some rows -> the guide's density there, all else held at what was drawn."""
    like = where.pack(drawn)

    def density(points: Tensor) -> Tensor:
        u = like.clone()
        u[:, rows] = points
        values, jacobian = where.unpack(u)
        sites = replay(particles(pair.guide, pair.k), copy_of(view), drawn | values)
        total: Any = jacobian
        for name in where.names:
            total = total + per_datum(sites[name]).squeeze(1)
        return total[:, rows]

    return density


def _values(sites: Sites) -> dict[str, Tensor]:
    return {n: s.value for n, s in sites.items()}


def _unmasked(site: Site) -> Tensor:
    return site.mask if isinstance(site.mask, Tensor) else torch.tensor(site.mask is not False)


# The model: every site's distribution by itself, given what the model drew before it.


def model_density(pair: Pair) -> str:
    """Every continuous site of the model draws from the density that it scores with."""
    deviations, left = {}, []
    with evaluating(pair.model, seed=pair.seed), independent_components():
        few = pair.batch[: max(2, NUMBERS // (PILOTS * max(pair.width, 1)))]
        for name, site in run(poutine.uncondition(pair.model), copy_of(few)).items():
            if is_continuous(site):
                deviations[name] = _of_distribution(site, pair.k)
            else:
                left.append(name)
    text = _judge(deviations, "model site")
    return text + (f"; no density over real numbers: {', '.join(left)}" if left else "")


def _of_distribution(site: Site, k: int) -> tuple[float, float]:
    """The bridge for one distribution, every entry of its batch shape a row."""
    fn, change = site.fn, biject_to(site.fn.support)
    like, rows = change.inv(site.value), fn.batch_shape.numel()
    k = max(50, min(k, NUMBERS // like.numel()))

    def packed(count: int) -> Tensor:
        return change.inv(fn.sample((count,))).reshape(count, rows, -1)

    def density(points: Tensor) -> Tensor:
        free = points.reshape(len(points), *like.shape)
        value = change(free)
        slope = change.log_abs_det_jacobian(free, value).reshape(len(points), rows, -1).sum(-1)
        return fn.log_prob(value).reshape(len(points), rows) + slope

    return bridge(packed(PILOTS), packed(k), density)
