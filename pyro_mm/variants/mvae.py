"""MVAE: a product of experts, trained on subsets of the modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.handlers import RandomSubsets, Subsets, in_subsets
from pyro_mm.modality import Modality, decoders, encoders, names_of
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, elbo
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Wu, Goodman", "Multimodal generative models for scalable weakly-supervised learning", 2018,
    "arXiv:1802.05335", "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def mvae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) = p(z) prod_{m in S} q_m(z|x_m), over every non-empty subset S.

    Maximises sum_S ELBO(x_S; q(z|x_S)) (section 2.2, with all subsets): a term reconstructs only what it has seen.  Of
    a row that lacks something every S counts with the part that is there, so that a part counts once for every S it is
    left of: a row of one modality out of three has 4 times the paper's single term.
    """
    names = names_of(modalities)
    every = [s for r in range(len(names), 0, -1) for s in combinations(names, r)]
    return _over(Subsets(every), modalities, dim, beta, weights)


@page(PAPER)
def mvae_sampled(
    modalities: Sequence[Modality],
    dim: int = 64,
    k: int = 1,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """MVAE for many modalities: ELBO(X) + sum_m ELBO(x_m) + k subsets drawn anew at every step (eq. 5).

    k = 0 leaves the random subsets out, as the paper's experiment on six views of an image does.
    """
    names = names_of(modalities)
    always = [names, *((m,) for m in names)]
    return _over(RandomSubsets(names, k, always) if k else Subsets(always), modalities, dim, beta, weights)


def _over(
    subsets: Subsets,
    modalities: Sequence[Modality],
    dim: int,
    beta: float | Schedule,
    weights: Mapping[str, float] | None,
) -> Recipe:
    model = Joint(decoders(modalities, dim), dim)
    guide = Experts(encoders(modalities, dim), product_of_experts)
    pair = in_subsets(model, subsets), in_subsets(guide, subsets)
    return Recipe("mvae", model, guide, elbo(*pair, beta=beta, weights=weights, analytic_kl=True))
