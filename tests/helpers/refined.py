"""Proposals refined to the rows of a linear-Gaussian system, as the estimators refine them."""

from __future__ import annotations

from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.effort import Effort, fit
from pyro_mm.evaluation.marginal import Marginal
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.evaluation.refine import Refined, Refiner
from pyro_mm.handlers import Program
from tests.helpers.estimates import truth

LG = truth()


def refined(
    model: Program, guide: Program, batch: Batch, refiner: Refiner, before: list[Refined] | None = None
) -> Refined:
    with evaluating(model, guide, seed=0):
        return fit(Marginal(model, guide, "", Effort()), batch, refiner, before or [])[0]


def covariance(q: Refined) -> Tensor:
    return q.root @ q.root.mT
