"""The VAE of one modality (the first of those given): the baseline for log p(x)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import single
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, elbo
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper("Kingma, Welling", "Auto-encoding variational Bayes", 2014, "arXiv:1312.6114", "baseline")


@page(PAPER)
def vae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) p(x | z) with q(z | x), for the first modality; the others are ignored.

    Maximises E_q log p(x|z) - beta KL(q(z|x) || p(z)) (eq. 10), the KL in closed form.
    """
    first = modalities[:1]
    model = Joint(decoders(first, dim), dim)
    guide = single(encoders(first, dim))
    return Recipe("vae", model, guide, elbo(model, guide, beta=beta, weights=weights, analytic_kl=True))
