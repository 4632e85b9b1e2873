"""The conditional VAE: p(x | y) without any model of y."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Concatenation, JointEncoder
from pyro_mm.handlers import in_rows
from pyro_mm.modality import Modality
from pyro_mm.models import Conditional
from pyro_mm.objectives import Schedule, elbo
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Sohn, Lee, Yan", "Learning structured output representation using deep conditional generative models", 2015,
    "NeurIPS 2015", "baseline",
)  # fmt: skip


@page(PAPER)
def cvae(
    modalities: Sequence[Modality],
    dim: int = 64,
    width: int = 512,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) p(x | z, y) with q(z | x, y): x the first modality, y all others.

    Maximises E_q log p(x|z,y) - beta KL(q(z|x,y) || p(z)), a bound on log p(x|y).  There is no joint and no marginal:
    `log_marginal` raises `NoLikelihood`, `log_conditional(of=x, given=y)` is what the model has.  Complete rows count.
    """
    model = Conditional(modalities[0], tuple(modalities[1:]), dim)
    guide = JointEncoder(Concatenation(modalities, dim, width), model.prior)
    paired = in_rows(model, guide.names)
    return Recipe("cvae", model, guide, elbo(paired, guide, beta=beta, weights=weights, analytic_kl=True))
