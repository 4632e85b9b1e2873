"""DMVAE: what modalities share and what is private to each, apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, PrivateExperts, product_of_experts, shared_given
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Private
from pyro_mm.objectives import Schedule, elbo, total
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.sizes import by_modality

PAPER = Paper(
    "Lee, Pavlovic", "Private-shared disentangled multimodal VAE for learning of latent representations", 2021,
    "arXiv:2012.13024", "joint, modality-specific latents",
)  # fmt: skip


@page(PAPER)
def dmvae(
    modalities: Sequence[Modality],
    dim: int = 10,
    private: Mapping[str, int] | int | None = None,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(w_m) p(x_m|z, w_m) with q(z|x_S) = p(z) prod_{m in S} q_m(z|x_m) and q(w_m|x_m).

    Maximises ELBO(X; q(z|X)) + sum_k ELBO(X; q(z|x_k)): every term reconstructs all modalities, z from all or from one
    of them, each with the private latent of its own data (eq. 5).  Every term is a bound on log p(X).  Of a row that
    has one modality the two terms are the same, and both count.  What is generated from another modality draws its
    private latent from the prior.

    Args:
        dim: of z; private: of w_m, one size for all or by modality (default: half of `dim`, at least 1).
    """
    own = by_modality(modalities, private, {}, max(1, dim // 2))
    model = Private(decoders(modalities, {m: dim + size for m, size in own.items()}), own, dim)
    guide = PrivateExperts(Experts(encoders(modalities, dim), product_of_experts), encoders(modalities, own))
    views = [guide, *(shared_given(guide, m) for m in own)]
    objective = total(elbo(model, q, beta=beta, weights=weights, analytic_kl=True) for q in views)
    return Recipe("dmvae", model, guide, objective)
