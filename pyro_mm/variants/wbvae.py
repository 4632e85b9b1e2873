"""WB-VAE and MWB-VAE: the Wasserstein barycentre of the experts, and a mixture of those of every subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, OverSubsets, barycentre
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, componentwise_elbo, elbo
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Qiu, Zhu, Kumar, Chen, Yang, Sun, Razi, Wang, Sotiras", "Multimodal variational autoencoder: a barycentric view",
    2025, "arXiv:2412.20487", "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def wbvae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) = N(mean_{m in S} mu_m, (mean_{m in S} sigma_m)^2), a barycentre.

    Maximises E_q log p(X|z) - beta KL(q(z|X) || p(z)), a bound on log p(X).  Of diagonal Gaussians
    q_m = N(mu_m, sigma_m^2) the 2-Wasserstein barycentre with equal weights averages means and standard deviations:
    more experts make it no narrower, unlike a product.
    """
    model = Joint(decoders(modalities, dim), dim)
    guide = Experts(encoders(modalities, dim), barycentre)
    return Recipe("wbvae", model, guide, elbo(model, guide, beta=beta, weights=weights, analytic_kl=True))


@page(PAPER)
def mwbvae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|X) the mean over non-empty S of the barycentres of q_m, m in S.

    Maximises E_q log p(X|z) - beta mean_S KL(q_S || p(z)), as MoPoE does with products in their place: a bound on
    log p(X).
    """
    model = Joint(decoders(modalities, dim), dim)
    guide = Experts(encoders(modalities, dim), OverSubsets(barycentre))
    return Recipe("mwbvae", model, guide, componentwise_elbo(model, guide, beta=beta, weights=weights))
