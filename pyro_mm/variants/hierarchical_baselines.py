"""NEXUS's baselines: its bottom VAEs, and MVAE or MMVAE over their latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt

from pyro_mm.guides import Experts, mixture_of_experts, product_of_experts
from pyro_mm.handlers import Subsets, in_subsets
from pyro_mm.links import Link, links
from pyro_mm.modality import Modality
from pyro_mm.models import Joint
from pyro_mm.networks import Net
from pyro_mm.objectives import Schedule, coded, elbo
from pyro_mm.recipe import Recipe, page
from pyro_mm.sizes import by_modality
from pyro_mm.variants.bottoms import Bottoms, two_floors
from pyro_mm.variants.nexus import GAMMAS, PAPER, TOP


@page(PAPER)
def hierarchical_mvae(
    modalities: Sequence[Modality],
    dim: int = 32,
    codes: Mapping[str, int] | int | None = None,
    beta: float | Schedule | None = None,
    betas: Mapping[str, float] | None = None,
    gammas: Mapping[str, float] | float | None = None,
    optimal: Sequence[str] = ("sound",),
    frozen: Sequence[str] = ("sound",),
    weights: Mapping[str, float] | None = None,
    net: Net | None = None,
) -> Recipe:
    """The paper's MVAE baseline: NEXUS's bottom VAEs, and MVAE over their latents instead of messages.

    Maximises  sum_m ELBO(x_m; q(z_m|x_m)) + sum_S ELBO({z_m}_S; q(z|z_S)),  q(z|z_S) = p(z) prod_{m in S} q_m(z|z_m).
    Of a row that lacks something every S counts with the part that is there, as in `mvae`: a row of one modality out of
    three has 4 times its own term above.  Arguments, and what its likelihoods refer to, as in `nexus`.  Their code
    leaves sound out of the term of all modalities; here it is in.
    """
    bottoms, model, encode = _floors(modalities, dim, codes, beta, betas, gammas, optimal, frozen, weights, net)
    guide = Experts(encode, product_of_experts)
    subsets = Subsets([s for r in range(len(bottoms.names), 0, -1) for s in combinations(bottoms.names, r)])
    above = elbo(in_subsets(model, subsets), in_subsets(guide, subsets), beta=bottoms.beta, analytic_kl=True)
    return two_floors("hierarchical_mvae", bottoms, model, guide, coded(above, bottoms.guide))


@page(PAPER)
def hierarchical_mmvae(
    modalities: Sequence[Modality],
    dim: int = 32,
    codes: Mapping[str, int] | int | None = None,
    beta: float | Schedule | None = None,
    betas: Mapping[str, float] | None = None,
    gammas: Mapping[str, float] | float | None = None,
    optimal: Sequence[str] = ("sound",),
    frozen: Sequence[str] = ("sound",),
    weights: Mapping[str, float] | None = None,
    net: Net | None = None,
) -> Recipe:
    """The paper's MMVAE baseline: NEXUS's bottom VAEs, and MMVAE over their latents instead of messages.

    Maximises  sum_m ELBO(x_m; q(z_m|x_m)) + ELBO({z_m}; 1/M sum_m q_m(z|z_m)), one draw from every expert.  Arguments,
    and what its likelihoods refer to, as in `nexus`.  Their code has KL(q_m || p) of every expert in place of the
    mixture's, and skips the draw from sound's; here it is a bound of the top floor.
    """
    bottoms, model, encode = _floors(modalities, dim, codes, beta, betas, gammas, optimal, frozen, weights, net)
    guide = Experts(encode, mixture_of_experts)
    above = elbo(model, guide, beta=bottoms.beta, particles=len(bottoms.names))
    return two_floors("hierarchical_mmvae", bottoms, model, guide, coded(above, bottoms.guide))


def _floors(
    modalities: Sequence[Modality],
    dim: int,
    codes: Mapping[str, int] | int | None,
    beta: float | Schedule | None,
    betas: Mapping[str, float] | None,
    gammas: Mapping[str, float] | float | None,
    optimal: Sequence[str],
    frozen: Sequence[str],
    weights: Mapping[str, float] | None,
    net: Net | None,
) -> tuple[Bottoms, Joint, dict[str, Link]]:
    """The bottom VAEs, the model above them, and one encoder z_m -> z for each."""
    bottoms, top = Bottoms(modalities, dim, codes, beta, betas, frozen, weights), net or TOP
    scales = {m: sqrt(0.5 / g) for m, g in by_modality(modalities, gammas, GAMMAS, 1.0).items()}
    model = Joint(links(dim, bottoms.sizes, top, scales, optimal), dim)
    return bottoms, model, {m: Link(size, dim, top) for m, size in bottoms.sizes.items()}
