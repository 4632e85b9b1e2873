"""CoDE-VAE: experts whose errors are correlated, and subsets with learnt weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from pyro_mm.guides import CorrelatedExperts, Experts, OverSubsets
from pyro_mm.modality import Modality, decoders, encoders, names_of
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, Shares, entropy, shared_elbo
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Mancisidor, Jenssen, Yu, Kampffmeyer", "Aggregation of dependent expert distributions in multimodal variational "
    "autoencoders", 2025, "arXiv:2505.01134", "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def codevae(
    modalities: Sequence[Modality],
    dim: int = 64,
    rho: float = 0.5,
    confidence: float = 1000.0,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) the consensus of dependent experts (`CorrelatedExperts`), mixed by pi_S.

    Maximises  sum_S pi_S [E_{q(z|x_S)} log p(X|z) - beta KL(q(z|x_S) || p(z))] + confidence H(pi)  over all non-empty
    S, pi learnt.  Nothing is drawn at random but z.  In a row that lacks something the sum is over the subsets that are
    there whole, pi renormalised; likelihoods and generation draw from sum_S pi_S q(z|x_S).

    The first sum is a bound on log p(X); with the entropy it is none, by up to confidence log(2^M - 1).  The published
    likelihoods average over K and data in the wrong layout, with K = 12.

    Args:
        rho: correlation of the experts' errors, 0.5 by default in the authors' code; 0 is the product without the
            prior.
        confidence: weight of the entropy.  The code has 1000, which keeps pi nearly uniform; at 1 pi chooses the
            subset that reconstructs best.
    """
    names = names_of(modalities)
    shares = Shares([s for r in range(1, len(names) + 1) for s in combinations(names, r)])
    model, experts, rule = Joint(decoders(modalities, dim), dim), encoders(modalities, dim), CorrelatedExperts(rho)
    guide = Experts(experts, OverSubsets(rule, shares))
    bound = shared_elbo(model, Experts(experts, rule), shares, beta=beta, weights=weights, analytic_kl=True)
    return Recipe("codevae", model, guide, bound + confidence * entropy(shares))
