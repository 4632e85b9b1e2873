"""M2VAE: the joint log-likelihood taken apart into conditionals, one modality at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb

from pyro_mm.guides import Concatenation, JointEncoder, Surrogate
from pyro_mm.handlers import Program, in_subsets
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Objective, Schedule, kl, nll, total
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Korthals", "M2VAE: derivation of a multi-modal variational autoencoder objective from the marginal joint "
    "log-likelihood", 2019, "arXiv:1903.07303", "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def m2vae(
    modalities: Sequence[Modality],
    dim: int = 64,
    width: int = 512,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) from a joint encoder for complete rows, and unimodal encoders for others.

    From log p(x_S) = 1/|S| sum_{m in S} [log p(x_m|x_rest) + log p(x_rest)], applied again and again: maximises
    `nested_bound`, with q(z|nothing) = p(z).  Of two modalities: half of  E_q log p(a, b|z) - KL(q || q_a)
    - KL(q || q_b),  which JMVAE-kl has too, and half of both unimodal ELBOs.  A row that lacks something has the
    objective of what is there.

    Every nested KL has q(z|x_rest) for the p(z|x_rest) of a bound on log p(x_m|x_rest), so that the sum is no bound on
    log p(X), though at the exact posteriors it equals log p(X).  Of three or more modalities the paper has an encoder
    for every subset; here those between one and all are the product of unimodal ones (`Surrogate`).
    """
    model = Joint(decoders(modalities, dim), dim)
    guide = Surrogate(JointEncoder(Concatenation(modalities, dim, width), dim), encoders(modalities, dim))
    return Recipe("m2vae", model, guide, nested_bound(model, guide, guide.names, beta, weights))


def nested_bound(
    model: Program,
    guide: Program,
    names: Sequence[str],
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Objective:
    """sum over non-empty S of 1 / (|S| C(M, |S|)) times, as a loss,

    E_{q(z|x_S)} log p(x_S|z) - beta sum_{m in S} KL(q(z|x_S) || q(z|x_{S without m})).

    |S| C(M, |S|) is in how many ways the recursion gets from all modalities to S and on.
    """
    levels = []
    for size in range(1, len(names) + 1):
        groups = list(combinations(names, size))
        pairs = [(s, [n for n in s if n != m]) for s in groups for m in s]
        nested = kl(in_subsets(guide, [s for s, _ in pairs]), in_subsets(guide, [rest for _, rest in pairs]))
        bound = nll(in_subsets(model, groups), in_subsets(guide, groups), weights=weights) + beta * nested
        levels.append(1 / (size * comb(len(names), size)) * bound)
    return total(levels)
