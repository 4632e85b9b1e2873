"""JMVAE: a joint encoder, and two ways of doing without an input at test time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Concatenation, JointEncoder, Surrogate
from pyro_mm.handlers import given, in_rows
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, elbo, kl
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Suzuki, Nakayama, Matsuo", "Joint multimodal learning with deep generative models", 2016,
    "arXiv:1611.01891", "joint, surrogate unimodal inference",
)  # fmt: skip


@page(PAPER)
def jmvae(
    modalities: Sequence[Modality],
    dim: int = 64,
    width: int = 512,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with one joint encoder q(z|x_1..x_M).

    Maximises E_q sum_m log p(x_m|z) - beta KL(q(z|X) || p(z)) (eq. 2).  What is missing enters the encoder as zeros, in
    training too: a row that lacks something counts with the bound of what it has, so that the encoder learns what zeros
    mean.  The paper's rows are complete; `jmvae_zero` counts such rows only.
    """
    model, guide = _joint(modalities, dim, width)
    return Recipe("jmvae", model, guide, elbo(model, guide, beta=beta, weights=weights, analytic_kl=True))


@page(PAPER)
def jmvae_zero(
    modalities: Sequence[Modality],
    dim: int = 64,
    width: int = 512,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """JMVAE used with missing inputs: q(z|x_1) is q(z|x_1, 0), though training saw complete rows (section 3.3).

    Model, guide and bound of `jmvae`, of which complete rows alone count: zeros stand for what is missing in inference
    only, as the paper's name has it.
    """
    model, guide = _joint(modalities, dim, width)
    bound = elbo(in_rows(model, guide.names), guide, beta=beta, weights=weights, analytic_kl=True)
    return Recipe("jmvae_zero", model, guide, bound)


@page(PAPER)
def jmvae_kl(
    modalities: Sequence[Modality],
    dim: int = 64,
    alpha: float = 0.1,
    width: int = 512,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_1..x_M), and surrogates q(z|x_m) trained towards it.

    Maximises ELBO(X; q(z|X)) - alpha sum_m KL(q(z|X) || q(z|x_m)) (eq. 5); with p(z|x_m) in the place of q(z|x_m),
    alpha = 1 would bound the variation of information.  A row that lacks something is inferred by its surrogates: by
    their product where there are several, which then takes the place of q(z|X) in every term.
    """
    model = Joint(decoders(modalities, dim), dim)
    guide = Surrogate(JointEncoder(Concatenation(modalities, dim, width), dim), encoders(modalities, dim))
    joint = elbo(model, guide, beta=beta, weights=weights, analytic_kl=True)
    return Recipe("jmvae_kl", model, guide, joint + alpha * sum(kl(guide, given(guide, m)) for m in guide.names))


def _joint(modalities: Sequence[Modality], dim: int, width: int) -> tuple[Joint, JointEncoder]:
    return Joint(decoders(modalities, dim), dim), JointEncoder(Concatenation(modalities, dim, width), dim)
