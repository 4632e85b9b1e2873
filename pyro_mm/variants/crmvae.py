"""CRMVAE: a product of experts whose members must each reconstruct their own modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, prior, product_without_prior
from pyro_mm.handlers import given
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, kl, nll, total
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Suzuki, Matsuo", "Mitigating the limitations of multimodal VAEs with coordination-based approach", 2022,
    "https://openreview.net/forum?id=Rn8u4MYgeNJ", "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def crmvae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) = prod_{m in S} q_m(z|x_m), normalised, no prior among the factors.

    Maximises, in the weights of MultiVae's implementation,
    1/(2(M + 1)) sum_m [E_{q(z|X)} log p(x_m|z) + E_{q_m} log p(x_m|z)]
    - beta/(M + 1) [KL(q(z|X) || p(z)) + sum_m KL(q(z|X) || q_m)]:  q_m are coordinated with the joint posterior, which
    they make up, and nothing is left out at random.  beta is 0.1 in its experiments.

    Not a bound on log p(X), nor is M + 1 times it: the likelihoods of q_m are not paid for by a divergence of q_m.
    Likelihoods are those of the model.  In a row that lacks something its terms are left out, the weights stay.
    """
    model, count = Joint(decoders(modalities, dim), dim), len(modalities) + 1
    guide = Experts(encoders(modalities, dim), product_without_prior)
    single = {m: given(guide, m) for m in guide.names}
    own = total(nll(given(model, m), q, weights=weights) for m, q in single.items())
    divergence = kl(guide, prior(model)) + total(kl(guide, q) for q in single.values())
    objective = 1 / (2 * count) * (nll(model, guide, weights=weights) + own) + beta * (1 / count * divergence)
    return Recipe("crmvae", model, guide, objective)
