"""MVTCAE: a product of experts drawn towards the prior and towards every expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, prior, product_without_prior
from pyro_mm.handlers import given
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, kl, nll, total
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Hwang, Kim, Hong, Kim", "Multi-view representation learning via total correlation objective", 2021,
    "NeurIPS 2021", "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def mvtcae(
    modalities: Sequence[Modality],
    dim: int = 64,
    alpha: float = 5 / 6,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) = prod_{m in S} q_m(z|x_m), normalised, no prior among the factors.

    Maximises  (M - alpha)/M E_q log p(X|z) - beta [(1 - alpha) KL(q(z|X) || p(z)) + alpha/M sum_m KL(q(z|X) || q_m)]:
    a bound on the reduction in total correlation of the views, alpha weighing their conditional bottlenecks.  The
    experiments have alpha 5/6 and beta 2.5.

    It bounds log p(X) for alpha = 0 only, where it is the ELBO: q_m is no prior of the model, and KL(q(z|X) || q_m) of
    experts that agree is the same however far they are from p(z).  Nor is it one over (M - alpha)/M, which its scale
    would ask for.  Likelihoods are those of the model.  The published ones average over K and data in the wrong layout.
    In a row that lacks something the divergences are those to the experts that are there.

    Raises:
        ValueError: `alpha` is outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"mvtcae: alpha weighs two bounds and must be in [0, 1], got {alpha}")
    model, count = Joint(decoders(modalities, dim), dim), len(modalities)
    guide = Experts(encoders(modalities, dim), product_without_prior)
    towards = total(kl(guide, given(guide, m)) for m in guide.names)
    divergence = (1 - alpha) * kl(guide, prior(model)) + alpha / count * towards
    objective = (count - alpha) / count * nll(model, guide, weights=weights) + beta * divergence
    return Recipe("mvtcae", model, guide, objective)
