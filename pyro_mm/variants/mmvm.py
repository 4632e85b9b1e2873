"""MMVM: a latent for every modality, whose prior is the mixture of all modalities' posteriors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Borrowing, Peers, Unimodal
from pyro_mm.modality import Modality, decoders, encoders, names_of
from pyro_mm.models import Independent
from pyro_mm.objectives import Objective, Schedule, componentwise_kl, kl, nll
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Sutter, Meng, Agostini, Chopard, Fortin, Vogt, Shahbaba, Mandt", "Unity by diversity: improved representation "
    "learning for multimodal VAEs", 2024, "arXiv:2403.05300", "joint, aggregated inference",
)  # fmt: skip

REASON = "MMVM's prior is a mixture of its own posteriors, so that it defines no density of the data"


@page(PAPER)
def mmvm(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """z_m ~ h(z|X) = 1/M sum_n q_n(z|x_n), x_m ~ p(x_m|z_m) with q_m(z_m|x_m), no latent in common.

    Maximises  sum_m E_{q_m} log p(x_m|z_m) - beta sum_m KL(q_m || h),  each KL by its definition from a draw: their sum
    is M times the Jensen-Shannon divergence of the posteriors (section 4).  Nothing draws them to a fixed p(z).

    No bound on a log p(X) and no density of X, since h is made of the data: `log_marginal` raises `NoLikelihood`, and
    with nothing present there is N(0, I) for want of anything better.  A missing modality is generated from a latent
    that is another one's: z_m ~ mean of q_n over what is present.
    """
    return _over("mmvm", False, modalities, dim, beta, weights)


@page(PAPER)
def mmvm_pairwise(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """MMVM as the authors' code trains it: KL(q_m || h) replaced by its upper bound 1/M sum_n KL(q_m || q_n).

    In closed form, and larger than the paper's divergence: unbounded as posteriors separate, where KL(q_m || h) is at
    most log M.
    """
    return _over("mmvm_pairwise", True, modalities, dim, beta, weights)


def _over(
    name: str,
    pairwise: bool,
    modalities: Sequence[Modality],
    dim: int,
    beta: float | Schedule,
    weights: Mapping[str, float] | None,
) -> Recipe:
    model = Independent(decoders(modalities, dim), dict.fromkeys(names_of(modalities), dim), whole=True)
    model.no_likelihood = REASON
    experts = encoders(modalities, dim)
    guide, own, peers = Borrowing(experts), Unimodal(experts), Peers(experts)
    divergence: Objective = componentwise_kl(own, peers) if pairwise else kl(own, peers, analytic=False)
    return Recipe(name, model, guide, nll(model, own, weights=weights) + beta * divergence)
