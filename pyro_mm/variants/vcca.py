"""VCCA (DVCCA), VCCA-private and bi-VCCA: one view explains all views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, PrivateExperts, mixture_of_experts, shared_given, single
from pyro_mm.handlers import given
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint, Private
from pyro_mm.objectives import Schedule, elbo, total
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.sizes import by_modality

PAPER = Paper(
    "Wang, Yan, Lee, Livescu", "Deep variational canonical correlation analysis", 2016,
    "arXiv:1610.03454", "coordinated, cross-modal generation loss",
)  # fmt: skip


@page(PAPER)
def vcca(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_1), x_1 the first modality; elsewhere called DVCCA.

    Maximises E_{q(z|x_1)} sum_m log p(x_m|z) - beta KL(q(z|x_1) || p(z)), with beta 1 a bound on log p(X).  Rows
    without x_1 teach nothing, and have the prior as their guide.
    """
    model = Joint(decoders(modalities, dim), dim)
    guide = single(encoders(modalities[:1], dim))
    bound = elbo(model, given(guide, *guide.names), beta=beta, weights=weights, analytic_kl=True)
    return Recipe("vcca", model, guide, bound)


@page(PAPER)
def vcca_private(
    modalities: Sequence[Modality],
    dim: int = 64,
    private: Mapping[str, int] | int | None = None,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(w_m) p(x_m|z, w_m) with q(z|x_1) and q(w_m|x_m); w_m is the paper's h_m.

    Maximises E_q sum_m log p(x_m|z, w_m) - beta [KL(q(z|x_1) || p(z)) + sum_m KL(q(w_m|x_m) || p(w_m))], with beta 1 a
    bound on log p(X); a row counts if it has x_1.

    Args:
        dim: of z; private: of w_m, one size for all or by modality (default: half of `dim`, at least 1).
    """
    own = by_modality(modalities, private, {}, max(1, dim // 2))
    model = Private(decoders(modalities, {m: dim + size for m, size in own.items()}), own, dim)
    shared = single(encoders(modalities[:1], dim))
    guide = PrivateExperts(shared, encoders(modalities, own))
    seen = shared_given(guide, *shared.names)
    return Recipe("vcca_private", model, guide, elbo(model, seen, beta=beta, weights=weights, analytic_kl=True))


@page(PAPER)
def bivcca(
    modalities: Sequence[Modality],
    dim: int = 64,
    mu: float = 0.7,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_m) for every m, each of which must explain all modalities.

    Maximises  mu ELBO(X; q(z|x_1)) + (1 - mu) mean_{m>1} ELBO(X; q(z|x_m)),  a mean of bounds on log p(X) where the row
    is complete (of one that lacks something the terms of what it has keep their weights); two modalities in the paper,
    mu = 0.7 as Vedantam et al. (2018) ran it.  Every q(z|x_m) is fitted to p(z|X) and comes
    out as narrow, so that a product of several would be too narrow: what infers from several is their equal mixture.

    Args:
        mu: weight of the first modality's term, in (0, 1).

    Raises:
        ValueError: `mu` outside (0, 1), or fewer than two modalities.
    """
    if not 0 < mu < 1 or len(modalities) < 2:
        raise ValueError(f"bivcca weighs two modalities or more by mu in (0, 1); got {len(modalities)} and mu {mu}")
    model, guide = Joint(decoders(modalities, dim), dim), Experts(encoders(modalities, dim), mixture_of_experts)
    first, *others = (elbo(model, given(guide, m), beta=beta, weights=weights, analytic_kl=True) for m in guide.names)
    return Recipe("bivcca", model, guide, mu * first + (1 - mu) / len(others) * total(others))
