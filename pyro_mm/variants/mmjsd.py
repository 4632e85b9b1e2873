"""mmJSD: a mixture of experts against a prior that is a geometric mean of the experts and p(z)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, geometric_mean, mixture_of_experts, mixture_with_prior
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, componentwise_kl, nll
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Sutter, Daunhawer, Vogt", "Multimodal generative learning utilizing Jensen-Shannon-divergence", 2020,
    "arXiv:2006.08242", "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def mmjsd(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|X) = 1/M sum_m q_m(z|x_m).

    Maximises  E_q log p(X|z) - beta 1/(M + 1) [sum_m KL(q_m || f) + KL(p || f)],  f = [p prod_m q_m]^(1/(M + 1)),
    normalised: the Jensen-Shannon divergence with a geometric mean, f a "dynamic prior" (sections 3.2 and 3.3, equal
    weights).  In a row that lacks something it is that of what is there.  E_q is over the experts; the authors' code
    draws from experts and prior.

    Not a bound on log p(X): f depends on the data.  Where all experts agree the divergence is far less than
    KL(q || p(z)), and the objective exceeds log p(X).  Likelihoods are those of the model with p(z).  The published
    likelihoods average over K and data in the wrong layout.
    """
    model = Joint(decoders(modalities, dim), dim)
    experts, rules = encoders(modalities, dim), (mixture_of_experts, mixture_with_prior, geometric_mean)
    guide, members, dynamic = (Experts(experts, rule) for rule in rules)
    dynamic.symbol, members.printed_members = "f", (*(f"q(z | {m})" for m in experts), "p(z)")
    objective = nll(model, guide, weights=weights) + beta * componentwise_kl(members, dynamic)
    return Recipe("mmjsd", model, guide, objective)
