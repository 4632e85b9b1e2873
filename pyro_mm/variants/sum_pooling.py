"""A permutation-invariant encoder that pools by a sum, trained by masking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb

from pyro_mm.guides import JointEncoder, SumPooling
from pyro_mm.handlers import Program, RandomSubsets, Subsets, in_subsets
from pyro_mm.modality import Modality, decoders, names_of
from pyro_mm.models import Joint
from pyro_mm.objectives import Objective, Schedule, elbo, kl, nll
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Hirt, Campolo, Leong, Ortega", "Learning multi-modal generative models with permutation-invariant encoders and "
    "tighter variational objectives", 2024, "arXiv:2309.00380", "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def sum_pooling(
    modalities: Sequence[Modality],
    dim: int = 64,
    width: int = 512,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
    k: int | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) = N from rho(sum_{m in S} chi(h_m(x_m))), one network for every S.

    Maximises `masked_bound`, the mean over all subsets, or with k over that many random ones (the paper's is one), an
    unbiased estimate that costs less of many modalities.  The bound on log p(x_S) is one; that on log p(x_rest|x_S) has
    q(z|x_S) for p(z|x_S), and with it the sum is none on log p(X), though at the exact posteriors it equals log p(X).
    """
    model = Joint(decoders(modalities, dim), dim)
    guide = JointEncoder(SumPooling(modalities, dim, width), dim)
    return Recipe("sum_pooling", model, guide, masked_bound(model, guide, names_of(modalities), beta, weights, k))


def masked_bound(
    model: Program,
    guide: Program,
    names: Sequence[str],
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
    k: int | None = None,
) -> Objective:
    """Mean over S of  ELBO(x_S; q(z|x_S)) + E_{q(z|X)} log p(x_rest|z) - beta KL(q(z|X) || q(z|x_S)),  as a loss.

    The size of S is uniform in 0..M, then S of that size (Hirt et al. 2024, eqs. 4 and 5).  S empty and S full are both
    the ELBO of the whole row.  A modality is outside S with probability 1/2: that is the weight of its reconstruction
    from the whole, written as one term.  With k the other S are k random ones, drawn anew at every step.
    """
    count = len(names)
    objective = 2 / (count + 1) * elbo(model, guide, beta=beta, weights=weights, analytic_kl=True)
    if count > 1:
        objective = objective + (count - 1) / (2 * (count + 1)) * nll(model, guide, weights=weights)
    for share, subsets in _partial(names, k):
        seen, whole = in_subsets(guide, subsets), in_subsets(guide, [names] * len(subsets))
        first = elbo(in_subsets(model, subsets), seen, beta=beta, weights=weights, analytic_kl=True)
        objective = objective + share / (count + 1) * (first + beta * kl(whole, seen))
    return objective


def _partial(names: Sequence[str], k: int | None) -> list[tuple[float, Subsets]]:
    """Subsets between nothing and everything, and what each of a group counts: every size counts 1 in all."""
    count = len(names)
    if k is not None and count > 1:
        return [((count - 1) / k, RandomSubsets(names, k, sizes=(1, count - 1)))]
    return [(1 / comb(count, size), Subsets(list(combinations(names, size)))) for size in range(1, count)]
