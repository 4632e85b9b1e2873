"""mcVAE: every channel's posterior must explain all channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, mixture_of_experts
from pyro_mm.handlers import given
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, elbo, total
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Antelmi, Ayache, Robert, Lorenzi", "Sparse multi-channel variational autoencoder for the joint analysis of "
    "heterogeneous data", 2019, "ICML 2019", "coordinated, cross-modal generation loss",
)  # fmt: skip


@page(PAPER)
def mcvae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_m) for every m; from several, their equal mixture.

    Maximises  1/M sum_m [E_{q(z|x_m)} sum_n log p(x_n|z) - beta KL(q(z|x_m) || p(z))],  with beta 1 a mean of bounds on
    log p(X) where the row is complete.  Of one that lacks something the terms of what it has keep the weight 1/M.  The
    paper's code drops the 1/M, which changes nothing but the scale; its version for incomplete rows divides the
    likelihoods alone by the number of sources, and so has beta = M of the bound above.  Several channels
    are used by averaging what each reconstructs: the guide is a mixture.  The sparse prior of the paper is left out.
    """
    model = Joint(decoders(modalities, dim), dim)
    guide = Experts(encoders(modalities, dim), mixture_of_experts)
    views = [elbo(model, given(guide, m), beta=beta, weights=weights, analytic_kl=True) for m in guide.names]
    return Recipe("mcvae", model, guide, total(views) / len(views))
