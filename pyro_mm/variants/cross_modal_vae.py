"""The cross-modal VAE: every modality generates every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.handlers import given
from pyro_mm.modality import Modality, names_of
from pyro_mm.objectives import Schedule, elbo, total
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.variants.coordinated import one_space

PAPER = Paper(
    "Spurr, Song, Park, Hilliges", "Cross-modal deep variational hand pose estimation", 2018,
    "arXiv:1803.11404", "coordinated, cross-modal generation loss",
)  # fmt: skip


@page(PAPER)
def cross_modal_vae(
    modalities: Sequence[Modality],
    dim: int = 64,
    pairs: Sequence[Sequence[str]] | None = None,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_j p(x_j|z) with q(z|x_i) for every i.

    Maximises  sum_{(i, j)} [E_{q(z|x_i)} log p(x_j|z) - beta KL(q(z|x_i) || p(z))]  over pairs of a source i and a
    target j.  With beta 1 each term bounds the marginal log p(x_j), whatever i it is inferred from, so that on average
    it stays below log p(x_j|x_i) by their mutual information at least; no term bounds a joint density.  Likelihoods are
    those of p(z) prod_j p(x_j|z).

    Args:
        pairs: (source, target) by name; by default all M^2 of them.

    Raises:
        ValueError: a pair is no pair, or names an unknown modality.
    """
    names = names_of(modalities)
    chosen = [(i, j) for i in names for j in names] if pairs is None else [tuple(p) for p in pairs]
    if not chosen or any(len(p) != 2 or not set(p) <= set(names) for p in chosen):
        raise ValueError(f"pairs (source, target) of {list(names)} are needed, got {pairs}")
    sources, targets = ([m for m in modalities if m.name in {p[side] for p in chosen}] for side in (0, 1))
    model, guide = one_space(targets, dim, sources)
    terms = (elbo(given(model, j), given(guide, i), beta=beta, weights=weights, analytic_kl=True) for i, j in chosen)
    return Recipe("cross_modal_vae", model, guide, total(terms))
