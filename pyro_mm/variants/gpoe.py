"""gPoE: a product of experts in which every expert has a weight of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, WeightedProduct
from pyro_mm.modality import Modality, decoders, encoders, names_of
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, elbo
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Lawry Aguila, Chapman, Altmann", "Multi-modal variational autoencoders for normative modelling across multiple "
    "imaging modalities", 2023, "arXiv:2303.12706", "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def gpoe(
    modalities: Sequence[Modality],
    dim: int = 64,
    experts: Mapping[str, float | Sequence[float]] | None = None,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) = prod_{m in S} q_m(z|x_m)^w_m, normalised, no prior among the factors.

    Maximises E_q log p(X|z) - beta KL(q(z|X) || p(z)), a bound on log p(X) whatever w (pool: Cao & Fleet 2014).
    w is learnt for every modality and dimension, from 1/M; in the authors' code it is clamped to [0, 1] after every
    step, here it is a sigmoid.  What is missing is no factor; the others keep their weights.

    Args:
        experts: given weights w in place of learnt ones, by modality: a number, or one for every dimension; 1 for all
            is the product of the experts without the prior, 1/M their geometric mean.

    Raises:
        ValueError: `experts` does not name exactly the modalities, or has a negative weight.
    """
    names = names_of(modalities)
    if experts is not None and set(experts) != set(names):
        raise ValueError(f"experts: weights of {sorted(experts)} are given, the modalities are {sorted(names)}")
    given = None if experts is None else [experts[m] for m in names]
    model = Joint(decoders(modalities, dim), dim)
    guide = Experts(encoders(modalities, dim), WeightedProduct(len(names), dim, given))
    return Recipe("gpoe", model, guide, elbo(model, guide, beta=beta, weights=weights, analytic_kl=True))
