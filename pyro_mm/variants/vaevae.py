"""VAEVAE: a joint encoder held near its unimodal surrogates, which alone answer to the prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro_mm.guides import Concatenation, JointEncoder, Surrogate
from pyro_mm.handlers import Program, given, in_rows
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Objective, Schedule, elbo, kl, nll, total
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Wu, Goodman", "Multimodal generative models for compositional representation learning", 2019,
    "arXiv:1912.05075", "joint, surrogate unimodal inference",
)  # fmt: skip


@page(PAPER)
def vaevae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    width: int = 512,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_1..x_M) from a joint encoder and q(z|x_m) from one of each modality.

    Maximises `paired_and_unpaired`: rows may lack modalities, and then train by what they have.
    """
    model = Joint(decoders(modalities, dim), dim)
    guide = Surrogate(JointEncoder(Concatenation(modalities, dim, width), dim), encoders(modalities, dim))
    return Recipe("vaevae", model, guide, paired_and_unpaired(model, guide, beta, weights))


def paired_and_unpaired(
    model: Program, guide: Any, beta: float | Schedule, weights: Mapping[str, float] | None
) -> Objective:
    """sum_m [E_{q(z|X)} sum_{n != m} lambda_n log p(x_n|z) - beta KL(q(z|X) || q(z|x_m))]  of complete rows, plus
    sum_m ELBO(x_m; q(z|x_m))  of whatever each row has.

    Of two modalities, as published, the first part is  E_{q(z|X)} sum_m lambda_m log p(x_m|z) - beta sum_m KL.  With
    beta = lambda_m = 1 and q(z|x_m) = p(z|x_m) it bounds sum_m log p(x_n, n != m | x_m), and all together M log p(X).
    Elsewhere it is no bound: q(z|x_m) may be nearer to q(z|X) than the posterior is.  The prior enters by the second
    part alone.
    """
    pairs = in_rows(guide, guide.names)
    first = (len(guide.names) - 1) * nll(model, pairs, weights=weights)
    near = beta * total(kl(pairs, given(guide, m)) for m in guide.names)
    alone = [elbo(given(model, m), given(guide, m), beta=beta, weights=weights, analytic_kl=True) for m in guide.names]
    return first + near + total(alone)
