"""MUSE: NEXUS's hierarchy with a product of experts above, and posteriors of subsets drawn towards the joint one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt

from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.handlers import given
from pyro_mm.links import Link, links
from pyro_mm.modality import Modality
from pyro_mm.models import Joint
from pyro_mm.networks import Net
from pyro_mm.objectives import Schedule, coded, elbo, symmetric_kl, total
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.sizes import by_modality
from pyro_mm.variants.bottoms import Bottoms, two_floors
from pyro_mm.variants.nexus import TOP

PAPER = Paper(
    "Vasco, Yin, Melo, Paiva", "How to sense the world: leveraging hierarchy in multimodal perception for robust "
    "reinforcement learning agents", 2021, "arXiv:2110.03608", "joint, modality-specific latents",
)  # fmt: skip

CODES = {"image": 50, "label": 4}
GAMMA = 10.0


@page(PAPER)
def muse(
    modalities: Sequence[Modality],
    dim: int = 10,
    codes: Mapping[str, int] | int | None = None,
    alpha: float = 1.0,
    beta: float | Schedule = 1.0,
    gammas: Mapping[str, float] | float | None = GAMMA,
    weights: Mapping[str, float] | None = None,
    net: Net | None = None,
) -> Recipe:
    """z_m ~ N(0, I), x_m ~ p(x_m|z_m) below; z ~ N(0, I), z_m ~ N(f_m(z), 1 / (2 gamma_m)) above.

    Maximises  sum_m ELBO(x_m; q(z_m|x_m)) + ELBO({z_m}; q(z|z_1..z_M))
    - alpha / |S| sum_S [KL(q(z|all) || q(z|z_S)) + KL(q(z|z_S) || q(z|all))]  over the proper subsets S (of two
    modalities: each alone), q(z|z_S) = p(z) prod_{m in S} q_m(z|z_m); z_m carry no gradient upwards.  Not a bound on
    one joint model: likelihoods are those of the hierarchy, as in `nexus`.  The paper's own "log-likelihoods" are
    negative squared errors, and no densities.

    Args:
        dim, codes: sizes of z and of z_m (50 for images, 4 for labels; else `dim`).
        alpha: weight of the symmetric divergences.
        gammas: of p(z_m|z), whose variance is 1 / (2 gamma).
        weights: of the likelihoods; by default 50 for labels.
        net: of the networks of the top.
    """
    chosen = by_modality(modalities, codes, CODES, dim)
    bottoms = Bottoms(modalities, dim, chosen, beta, None, (), weights)
    scales = {m: sqrt(0.5 / g) for m, g in by_modality(modalities, gammas, {}, GAMMA).items()}
    model = Joint(links(dim, bottoms.sizes, net or TOP, scales), dim)
    guide = Experts({m: Link(size, dim, net or TOP) for m, size in bottoms.sizes.items()}, product_of_experts)
    proper = [s for r in range(1, len(bottoms.names)) for s in combinations(bottoms.names, r)]
    above = elbo(model, guide, beta=beta, analytic_kl=True)
    if proper:
        pairs = [(guide, given(guide, *s)) for s in proper]
        above = above + alpha / len(proper) * total(symmetric_kl(a, b) for a, b in pairs)
    return two_floors("muse", bottoms, model, guide, coded(above, bottoms.guide))
