"""Gaussian posteriors of whole sets of rows: what distances between all pairs of them are made from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributions

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture, MixtureOf
from pyro_mm.guides.randomness import SemiImplicit
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import Site, Sites, run

__all__ = ["Gaussian", "gaussian", "gaussian_posteriors", "is_seen", "one_density", "shared_latents"]

Gaussian = distributions.MultivariateNormal | distributions.Independent
"""Batch shape `(N,)`, event shape `(D,)`, float64: full, or diagonal as `Independent(Normal, 1)`."""


def is_seen(site: Site) -> bool:
    """Is the latent drawn in every row?  Private latents of hidden modalities are masked."""
    return site.mask is not False and (site.mask is None or bool(torch.as_tensor(site.mask).all()))


def shared_latents(guide: Program, queries: Batch, gallery: Batch) -> tuple[str, ...]:
    """The latents that the guide draws both for rows of one batch and for rows of the other, in its order.

    Raises:
        ValueError: there is none.
    """
    seen = [[n for n, s in run(particles(guide, 1), b[:1]).items() if is_seen(s)] for b in (queries, gallery)]
    both = tuple(n for n in seen[0] if n in seen[1])
    if not both:
        raise ValueError(
            f"the guide draws latents {seen[0]} for the queries and {seen[1]} for the gallery: with none in common, "
            "their posteriors cannot be compared"
        )
    return both


def one_density(guide: Program) -> None:
    """Raise ValueError for a guide whose density is known only given what it draws without showing it."""
    if isinstance(guide, SemiImplicit) or hasattr(guide, "mixture_views"):
        raise ValueError(
            f"{type(guide).__name__} is a mixture over randomness that no site shows: its posteriors have no density "
            "to compare; use by_likelihood, or by_cosine for their means"
        )


def gaussian_posteriors(guide: Program, batch: Batch, names: tuple[str, ...], chunk: int) -> dict[str, Gaussian]:
    """q(z_l | row) of these latents for every row, `chunk` rows at a time.

    A mixture of which one component is left (one modality shown to a mixture of experts) is that component.

    Raises:
        ValueError: naming the latent, when it is no Gaussian given the row alone.
    """
    one_density(guide)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {n: [] for n in names}
    for rows in batch.blocks(chunk):
        sites = run(particles(guide, 2), rows)  # two draws of what stands above a latent show whether it depends on it
        for name in names:
            parts[name].append(_moments(sites, name, len(rows)))
    return {n: gaussian(*(torch.cat(p) for p in zip(*found, strict=True))) for n, found in parts.items()}


def gaussian(loc: Tensor, scale: Tensor) -> Gaussian:
    """N(loc, S), S by its Cholesky factor `(..., D, D)` or by standard deviations `(..., D)`."""
    if scale.dim() > loc.dim():
        return distributions.MultivariateNormal(loc, scale_tril=scale, validate_args=False)
    return distributions.Independent(distributions.Normal(loc, scale, validate_args=False), 1, validate_args=False)


def _moments(sites: Sites, name: str, n: int) -> tuple[Tensor, Tensor]:
    """Mean `(N, D)`, and standard deviations `(N, D)` or a Cholesky factor `(N, D, D)`."""
    site = sites[name]
    loc, scale, event = _parameters(site)
    if loc.dim() - event > 3:
        raise ValueError(f"latent '{name}' stands in a plate nested inside the datum: no closed form here")
    loc, scale = (
        t.expand(2, 1, n, *t.shape[-e:] if e else ())
        for t, e in ((loc, event), (scale, scale.dim() - loc.dim() + event))
    )
    if not (torch.equal(loc[0], loc[1]) and torch.equal(scale[0], scale[1])):
        raise ValueError(
            f"latent '{name}' depends on latents drawn before it, so its posterior given the row is no Gaussian; use "
            "by_sampled_kl or by_likelihood, or by_cosine"
        )
    full = scale.dim() > loc.dim()
    loc, scale = loc[0, 0].double(), scale[0, 0].double()
    return loc.reshape(n, -1), scale if full else scale.reshape(n, -1)


def _parameters(site: Site) -> tuple[Tensor, Tensor, int]:
    """Mean, standard deviation or Cholesky factor, and the number of the mean's event dimensions."""
    fn: Any = site.fn
    event = fn.event_dim
    if isinstance(fn, MixtureOf) and fn.single is not None:  # `backed`, where every row has something
        fn = fn.single
    while isinstance(fn, distributions.Independent):
        fn = fn.base_dist
    if isinstance(fn, Mixture):
        fn = _last_component(fn)
    if isinstance(fn, distributions.MultivariateNormal):
        return fn.loc, fn.scale_tril, event
    if isinstance(fn, distributions.Normal):
        return fn.loc, fn.scale, event
    raise ValueError(
        f"latent '{site.name}' has a posterior {type(fn).__name__}; the closed form is known for Gaussians: use "
        "by_sampled_kl for any density, or by_cosine"
    )


def _last_component(q: Mixture) -> Any:
    """The component that alone has weight in every row; the mixture itself where there is no such."""
    if not bool(((q.weights > 0).sum(-1) == 1).all()):
        return q
    index = (q.weights > 0).int().argmax(-1)[..., None, None].expand(*q.loc.shape[:-2], 1, q.loc.shape[-1])
    return q.family(q.loc.gather(-2, index).squeeze(-2), q.scale.gather(-2, index).squeeze(-2), validate_args=False)
