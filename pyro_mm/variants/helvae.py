"""HELVAE: Hoelder pooling of the experts, half way between their product and their mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, hoelder_pooling
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, elbo
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Vo, Valera", "Hellinger multimodal variational autoencoders", 2026, "arXiv:2601.06572",
    "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def helvae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) the Gaussian of the moments of [sum_{m in S} q_m(z|x_m)^(1/2)]^2, normalised.

    Maximises E_q log p(X|z) - beta KL(q(z|X) || p(z)), a bound on log p(X).  The pool minimises the mean squared
    Hellinger distance to the experts; its mean and variances are exact here, over all dimensions together, equal
    weights, no prior among the experts.
    """
    model = Joint(decoders(modalities, dim), dim)
    guide = Experts(encoders(modalities, dim), hoelder_pooling)
    return Recipe("helvae", model, guide, elbo(model, guide, beta=beta, weights=weights, analytic_kl=True))
