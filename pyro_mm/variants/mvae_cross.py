"""MVAE by cross-reconstruction: every subset of the modalities must give back all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.handlers import in_subsets
from pyro_mm.modality import Modality, decoders, encoders, names_of
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, elbo
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "mnishant2", "Generative multimodal learning for reconstructing missing modality", 2020,
    "https://github.com/mnishant2/MVAE_missing_modality_PGM", "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def mvae_cross(
    modalities: Sequence[Modality],
    dim: int = 512,
    unseen: Sequence[str] | None = None,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) = p(z) prod_{m in S} q_m(z|x_m): from every S, everything.

    Maximises sum_S [E_{q(z|x_S)} sum_m log p(x_m|z) - beta KL(q(z|x_S) || p(z))] over non-empty subsets S of what the
    guide can see.  With beta 1 every term is a bound on log p(X), unlike MVAE's, which bound log p(x_S).  In a row that
    lacks something several S show the same, whose term then counts as often.

    Args:
        unseen: modalities that are decoded only, since no encoder sees them; by default `label`, if there is one, as
            published.  `()` makes the label a modality like the others.

    Raises:
        ValueError: `unseen` names an unknown modality, or leaves none to see.
    """
    names = names_of(modalities)
    hidden = [m for m in names if m == "label" and len(names) > 1] if unseen is None else list(unseen)
    if unknown := set(hidden) - set(names):
        raise ValueError(f"unseen: unknown modality {sorted(unknown)}; there are {list(names)}")
    seen = [m for m in names if m not in hidden]
    if not seen:
        raise ValueError("unseen: at least one modality must be seen by the guide")
    subsets = [s for r in range(len(seen), 0, -1) for s in combinations(seen, r)]
    model = Joint(decoders(modalities, dim), dim)
    guide = Experts(encoders([m for m in modalities if m.name in seen], dim), product_of_experts)
    pair = in_subsets(model, subsets, whole=True), in_subsets(guide, subsets)
    return Recipe("mvae_cross", model, guide, elbo(*pair, beta=beta, weights=weights, analytic_kl=True))
