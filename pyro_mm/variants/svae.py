"""SVAE: a product of unimodal experts, in which surrogate experts stand in for missing modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import SurrogateExperts
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.variants.vaevae import paired_and_unpaired

PAPER = Paper(
    "Kutuzova, Krause, McCloskey, Nielsen, Igel", "Multimodal variational autoencoders for semi-supervised learning: "
    "in defense of product-of-experts", 2021, "arXiv:2101.07240", "joint, surrogate unimodal inference",
)  # fmt: skip


@page(PAPER)
def svae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_1, x_2) = q_1(z|x_1) q_2(z|x_2), q(z|x_1) = q_1(z|x_1) q'_2(z|x_1), normalised.

    No prior is among the factors: the surrogate q'_2 stands in for the missing expert.  Maximises
    `vaevae.paired_and_unpaired`, as VAEVAE does with its joint encoder.

    For three modalities the authors' code has bounds of every pair too, and takes a surrogate from one or the other of
    those present; ours is the geometric mean of these, and the objective that of complete rows and single modalities.
    """
    model = Joint(decoders(modalities, dim), dim)
    others = {m.name: encoders([n for n in modalities if n is not m], dim) for m in modalities}
    guide = SurrogateExperts(encoders(modalities, dim), others)
    return Recipe("svae", model, guide, paired_and_unpaired(model, guide, beta, weights))
