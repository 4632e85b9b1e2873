"""MMVAE: a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import pyro.distributions as dist

from pyro_mm.guides import Experts, mixture_of_experts
from pyro_mm.modality import Modality, decoders, encoders, in_shares
from pyro_mm.models import Joint, LearntScale
from pyro_mm.objectives import Objective, Schedule, elbo, iwae, looser
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Shi, Siddharth, Paige, Torr", "Variational mixture-of-experts autoencoders for multi-modal deep generative models",
    2019, "arXiv:1911.03393", "joint, aggregated inference",
)  # fmt: skip

laplace_mixture = partial(mixture_of_experts, family=dist.Laplace)


@page(PAPER)
def mmvae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|X) = 1/M sum_m q_m(z|x_m).

    Maximises 1/M sum_m E_{q_m} log p(X, z) / q(z|X) (eq. 4): M draws, one from every expert.
    """
    model, guide = _pair(modalities, dim)
    draws = len(modalities)
    return Recipe("mmvae", model, guide, elbo(model, guide, beta=beta, weights=weights, particles=draws))


@page(PAPER)
def mmvae_iwae(
    modalities: Sequence[Modality],
    dim: int = 64,
    k: int = 10,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """MMVAE with the stratified importance-weighted bound: k draws from every expert inside one logarithm (eq. 5)."""
    model, guide = _pair(modalities, dim)
    return Recipe("mmvae", model, guide, iwae(model, guide, k * len(modalities), beta=beta, weights=weights))


@page(PAPER)
def mmvae_dreg(
    modalities: Sequence[Modality],
    dim: int = 64,
    k: int = 10,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """MMVAE as its experiments train it: the looser bound, DReG gradients, Laplace experts, a prior of learnt scale.

    Maximises 1/M sum_m E_{q_m} log 1/k sum_k p(X, z_k) / q(z_k|X) (appendix A).  For k > 1 the published gradient is
    not quite that of this bound: DReG's identity is for weights with the density that the draws come from, q_m, while
    these have the mixture's.  `mmvae_iwae` has neither the looser bound nor this error.  As in the authors' code the
    scales of a posterior have mean 1 over its dimensions (`in_shares`).

    Args:
        k: draws from every expert; 30 for MNIST with SVHN, 50 for birds with captions in the paper.
    """
    prior = LearntScale(dim, dist.Laplace)
    model = Joint(decoders(modalities, dim), prior)
    guide = Experts(encoders(modalities, dim, dist.Laplace, in_shares), laplace_mixture, prior)
    objective: Objective = looser(model, guide, k, doubly=True, beta=beta, weights=weights)
    return Recipe("mmvae", model, guide, objective)


def _pair(modalities: Sequence[Modality], dim: int) -> tuple[Joint, Experts]:
    return Joint(decoders(modalities, dim), dim), Experts(encoders(modalities, dim), mixture_of_experts)
