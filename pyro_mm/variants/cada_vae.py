"""CADA-VAE: cross-alignment and distribution alignment of two VAEs over features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations

from pyro_mm.handlers import given
from pyro_mm.modality import Modality
from pyro_mm.objectives import Schedule, Warmup, nll, total, wasserstein
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.variants.coordinated import each_alone, one_space

PAPER = Paper(
    "Schönfeld, Ebrahimi, Sinha, Darrell, Akata", "Generalized zero- and few-shot learning via aligned variational "
    "autoencoders", 2019, "arXiv:1812.01784", "coordinated, distance between inference distributions",
)  # fmt: skip


@page(PAPER)
def cada_vae(
    modalities: Sequence[Modality],
    dim: int = 64,
    beta: float | Schedule | None = None,
    cross: float | Schedule | None = None,
    distance: float | Schedule | None = None,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) p(x_m|z) with q(z|x_m) for every m, each also decoded into the others, and their posteriors near each other.

    Maximises  sum_m [E_{q(z|x_m)} log p(x_m|z) - beta KL(q(z|x_m) || p(z))] + cross sum_{m != n} E_{q(z|x_m)}
    log p(x_n|z) - distance sum_{m<n} W_2(q(z|x_m), q(z|x_n)).  The published reconstruction is the L1
    distance, which modalities with the likelihood `Laplace(1.0)` have up to D log 2; a label has its cross-entropy.
    Neither an L1 distance of decoded features nor W_2 is a density of x, and the weights go far from a bound's:
    `log_marginal` raises `NoLikelihood`.

    The paper sums W_2 over ordered pairs; its code, whose weights these are, takes each pair once.  That code draws
    z = mu + sigma^2 e, one e for all dimensions of a row; here z = mu + sigma e, as its KL and W_2 assume.

    Args:
        beta, cross, distance: the weights; by default as published, from 0 to 0.25 over epochs 0 to 93, to 2.37 over
            epochs 21 to 75 and to 8.13 over epochs 6 to 22.
    """
    beta = Warmup(93, 0.0, 0.25) if beta is None else beta
    cross = Warmup(54, 0.0, 2.37, after=21) if cross is None else cross
    distance = Warmup(16, 0.0, 8.13, after=6) if distance is None else distance
    model, guide = one_space(modalities, dim)
    model.no_likelihood = (
        "CADA-VAE is trained by distances, of reconstructions (L1) and between posteriors (W_2), and bounds no log p(x)"
    )
    q = {m: given(guide, m) for m in guide.names}
    objective = each_alone(model, guide, beta, weights)
    if len(q) > 1:
        crossed = (nll(given(model, n), q[m], weights=weights) for m, n in permutations(q, 2))
        apart = (wasserstein(q[m], q[n]) for m, n in combinations(q, 2))
        objective = objective + cross * total(crossed) + distance * total(apart)
    return Recipe("cada_vae", model, guide, objective)
