"""What the two-floor systems share: a VAE for every modality below, a multimodal VAE over their latents above.

No page of its own: NEXUS, MUSE and the paper's hierarchical MVAE and MMVAE are built on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_mm.guides import BottomUp, Unimodal
from pyro_mm.handlers import given
from pyro_mm.likelihoods import Categorical
from pyro_mm.modality import Modality, decoders, encoders, names_of
from pyro_mm.models import Hierarchical, Independent, Joint
from pyro_mm.objectives import Objective, Schedule, Warmup, elbo, total
from pyro_mm.objectives.schedules import times
from pyro_mm.recipe import Recipe
from pyro_mm.sizes import by_modality
from pyro_mm.training.stages import Stage

__all__ = ["CODES", "Bottoms", "label_weights", "two_floors", "warmed"]

CODES = {"image": 64, "trajectory": 16, "sound": 128, "label": 5}
BETAS = {"sound": 10.0}
LABEL = 50.0  # weight of a label's cross-entropy
WARMUP = 20.0  # epochs


class Bottoms:
    """z_m ~ N(0, I), x_m ~ p(x_m | z_m) with q(z_m | x_m), for every modality by itself.

    Attributes:
        model, guide: the pair.
        sizes: of z_m.
        beta: weight of the KLs; `None` is the paper's warm-up from 0 over 20 epochs.
        objective: sum_m ELBO(x_m; q(z_m | x_m)) of the modalities that are trained with the rest.
        first: the same of those whose VAE is trained before and then held still, or None.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        dim: int,
        codes: Mapping[str, int] | int | None,
        beta: float | Schedule | None,
        betas: Mapping[str, float] | None,
        frozen: Sequence[str],
        weights: Mapping[str, float] | None,
    ) -> None:
        self.modalities, self.names = tuple(modalities), names_of(modalities)
        self.sizes = by_modality(modalities, codes, CODES, dim)
        self.beta = warmed(beta)
        self.model = Independent(decoders(modalities, self.sizes), self.sizes)
        self.guide = Unimodal(encoders(modalities, self.sizes))
        self.still = [m for m in self.names if m in frozen]
        self.moving = [m for m in self.names if m not in frozen]
        factors = by_modality(modalities, betas, BETAS, 1.0)
        chosen = label_weights(modalities, weights)
        each = {m: self._elbo(m, times(self.beta, factors[m]), chosen) for m in self.names}
        if not self.moving:
            raise ValueError("every modality is frozen: nothing is left to train below")
        self.objective = total(each[m] for m in self.moving)
        self.first = total(each[m] for m in self.still) if self.still else None

    def _elbo(self, m: str, beta: float | Schedule, weights: Mapping[str, float]) -> Objective:
        own = {m: weights[m]} if m in weights else None
        return elbo(given(self.model, m), given(self.guide, m), beta=beta, weights=own, analytic_kl=True)


def two_floors(name: str, bottoms: Bottoms, model: Joint, guide: Any, objective: Objective) -> Recipe:
    """The recipe of `bottoms` and a pair (model, guide) over their latents, trained by `objective` above.

    Its model for likelihoods and generation is the hierarchy z -> z_m -> x_m with the same modules.
    """
    whole = Hierarchical(dict(bottoms.model.decoders.items()), dict(model.decoders.items()), model.prior)
    climbing = BottomUp(dict(bottoms.guide.encoders.items()), guide)
    loss = bottoms.objective + objective
    stages = None
    if bottoms.first is not None:
        own = [(bottoms.model.decoders[m], bottoms.guide.encoders[m]) for m in bottoms.moving]
        moving = [module for pair in own for module in pair] + [model, guide]
        stages = [
            Stage(bottoms.first, 1, name=f"{' and '.join(bottoms.still)} alone"),
            Stage(loss, 1, moving, name="all"),
        ]
        loss = loss + bottoms.first
    means = tuple(f"z_{m}" for m in bottoms.names)
    return Recipe(name, whole, climbing, loss, stages, means=means)


def warmed(beta: float | Schedule | None) -> float | Schedule:
    """The paper's schedule unless another is asked for."""
    return Warmup(WARMUP) if beta is None else beta


def label_weights(modalities: Sequence[Modality], weights: Mapping[str, float] | None) -> dict[str, float]:
    """The paper's weight of labels unless others are asked for."""
    if weights is not None:
        return dict(weights)
    return {m.name: LABEL for m in modalities if isinstance(m.likelihood, Categorical)}
