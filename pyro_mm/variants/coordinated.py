"""What the coordinated systems share: an encoder for every modality by itself, into one latent space.

No page of its own: AVAE, CADA-VAE, SCAN and the cross-modal VAE are built on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Experts, product_of_posteriors
from pyro_mm.handlers import given
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Objective, Schedule, elbo, total

__all__ = ["each_alone", "one_space"]


def one_space(
    targets: Sequence[Modality], dim: int, sources: Sequence[Modality] | None = None
) -> tuple[Joint, Experts]:
    """p(z) prod_m p(x_m|z), and q(z|x_m) of each source: the pair that likelihoods and generation use.

    None of these systems infers from several modalities at once.  What is known of q(z|x_S) is that each q(z|x_m) holds
    the prior: the guide is p(z) prod_{m in S} q(z|x_m) / p(z), and q(z|x_m) where only m is present.
    """
    model = Joint(decoders(targets, dim), dim)
    return model, Experts(encoders(targets if sources is None else sources, dim), product_of_posteriors)


def each_alone(
    model: Joint, guide: Experts, beta: float | Schedule = 1.0, weights: Mapping[str, float] | None = None
) -> Objective:
    """sum_m ELBO(x_m; q(z|x_m)): a VAE of every modality by itself."""
    return total(
        elbo(given(model, m), given(guide, m), beta=beta, weights=weights, analytic_kl=True) for m in guide.names
    )
