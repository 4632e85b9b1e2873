"""MMVAE+ and CMVAE: mixtures of experts with private latents, cross-reconstruction from auxiliary priors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import pyro.distributions as dist
from torch import nn

from pyro_mm.guides import Experts, PrivateExperts, mixture_of_experts
from pyro_mm.modality import Modality, decoders, encoders, in_shares
from pyro_mm.models import Clusters, LearntScale, Private, StandardLaplace, WithPriors
from pyro_mm.objectives import Objective, Schedule, looser
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.sizes import by_modality

PLUS = Paper(
    "Palumbo, Daunhawer, Vogt", "MMVAE+: enhancing the generative quality of multimodal VAEs without compromises", 2023,
    "ICLR 2023", "joint, modality-specific latents",
)  # fmt: skip
CLUSTERED = Paper(
    "Palumbo, Manduchi, Laguna, Chopard, Vogt", "Deep generative clustering with multimodal diffusion variational "
    "autoencoders", 2024, "ICLR 2024", "joint, modality-specific latents",
)  # fmt: skip

laplace_mixture = partial(mixture_of_experts, family=dist.Laplace)


@page(PLUS)
def mmvaeplus(
    modalities: Sequence[Modality],
    dim: int = 32,
    private: Mapping[str, int] | int | None = None,
    k: int = 1,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(w_m) p(x_m|z, w_m), Laplace, with q(z|X) = 1/M sum_m q_m(z|x_m) and q(w_m|x_m).

    Maximises  1/M sum_m E log 1/k sum_k p(x_m|z, w_m) prod_{n != m} p(x_n|z, w~_n) R_m^beta,
    R_m = p(z) p(w_m) / (q(z|X) q(w_m|x_m)),  with z ~ q_m(z|x_m), w_m ~ q(w_m|x_m), and for the others w~_n ~ r_n(w_n),
    auxiliary priors of learnt scale (eq. 6), p(z) and p(w_m) standard ones.  With r_n = p(w_n) it would be a bound on
    log p(X), for any k; as it is it is none: each term may exceed the log-likelihood under its own priors by up to
    log M.  Likelihoods are those of the model with p(w_n), from which it also generates.  As in the authors' code the
    scales of a posterior have mean 1 over its dimensions (`in_shares`).

    Args:
        dim: of z; private: of w_m, one size for all or by modality (default: `dim`).
        k: draws inside the logarithm (1 or 10 in the paper), with plain gradients.
        beta: weight of the KLs (2.5 on PolyMNIST).
    """
    model, guide, objective = _plus(modalities, dim, private, k, beta, weights, StandardLaplace(dim))
    return Recipe("mmvaeplus", model, guide, objective)


@page(CLUSTERED)
def cmvae(
    modalities: Sequence[Modality],
    dim: int = 32,
    private: Mapping[str, int] | int | None = None,
    clusters: int = 40,
    k: int = 1,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """MMVAE+ with p(z) = sum_c p(c) N(z; mu_c, I): the objective of `mmvaeplus`, the cluster c summed out.

    The paper's bound has q(c|z); with the exact p(c|z) in its place, which is its optimum, it is this one.  z has
    normal experts; p(c|z) is `model.prior.responsibilities(z)`.

    Args:
        clusters: how many to start from (40); those that are not used get a share near 0.
        dim, private, k, beta: as in `mmvaeplus`.
    """
    model, guide, objective = _plus(modalities, dim, private, k, beta, weights, Clusters(dim, clusters))
    return Recipe("cmvae", model, guide, objective)


def _plus(
    modalities: Sequence[Modality],
    dim: int,
    private: Mapping[str, int] | int | None,
    k: int,
    beta: float | Schedule,
    weights: Mapping[str, float] | None,
    prior: nn.Module,
) -> tuple[Private, PrivateExperts, Objective]:
    own = by_modality(modalities, private, {}, dim)
    model = Private(
        decoders(modalities, {m: dim + size for m, size in own.items()}),
        {m: StandardLaplace(size) for m, size in own.items()},
        prior,
    )
    laplace = isinstance(prior, StandardLaplace)
    family, fuse = (dist.Laplace, laplace_mixture) if laplace else (dist.Normal, mixture_of_experts)
    experts = Experts(encoders(modalities, dim, family, in_shares if laplace else None), fuse, prior)
    guide = PrivateExperts(experts, encoders(modalities, own, dist.Laplace, in_shares))
    auxiliary = {m: LearntScale(size, dist.Laplace) for m, size in own.items()}
    models = {m: WithPriors(model, {n: r for n, r in auxiliary.items() if n != m}) for m in own}
    return model, guide, looser(model, guide, k, list(own), models=models, beta=beta, weights=weights)
