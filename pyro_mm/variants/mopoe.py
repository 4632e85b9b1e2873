"""MoPoE: a mixture of the products of experts of every subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, mixture_of_products, product_of_a_subset
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, componentwise_elbo, elbo
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Sutter, Daunhawer, Vogt",
    "Generalized multimodal ELBO",
    2021,
    "arXiv:2105.02470",
    "joint, aggregated inference",
)


@page(PAPER)
def mopoe(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
    sampled: bool = False,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|X) = mean over non-empty S of p(z) prod_{m in S} q_m(z|x_m).

    Maximises E_q log p(X|z) - beta mean_S KL(q_S || p(z)) (eq. 5 with the convexity of the KL).

    `sampled`: an unbiased estimate of it, by one S for every row and step, whose cost grows with M instead of 2^M.  It
    is for training: the pair keeps the mixture over all S, for up to a dozen modalities.
    """
    model, guide = _pair(modalities, dim)
    trained = Experts(dict(guide.encoders.items()), product_of_a_subset) if sampled else guide
    return Recipe("mopoe", model, guide, componentwise_elbo(model, trained, beta=beta, weights=weights))


@page(PAPER)
def mopoe_density(
    modalities: Sequence[Modality],
    dim: int = 64,
    particles: int = 3,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """MoPoE with the mixture's own density in the bound, E_q log p(X, z) / q(z|X): tighter than the published form."""
    model, guide = _pair(modalities, dim)
    return Recipe("mopoe", model, guide, elbo(model, guide, beta=beta, weights=weights, particles=particles))


def _pair(modalities: Sequence[Modality], dim: int) -> tuple[Joint, Experts]:
    return Joint(decoders(modalities, dim), dim), Experts(encoders(modalities, dim), mixture_of_products)
