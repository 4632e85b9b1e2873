"""Two unrelated models of one name: the multimodal hierarchical VAE of 2020 and that of 2023."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from pyro_mm.guides import Evidences, Messages, PrivateExperts, TopDown, perceptual_dropout
from pyro_mm.guides.messages import Sender
from pyro_mm.handlers import given
from pyro_mm.links import Link
from pyro_mm.modality import Modality, decoders, encoders, names_of
from pyro_mm.models import Hierarchical
from pyro_mm.networks import MLP, Net
from pyro_mm.objectives import Schedule, elbo, total
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.sizes import by_modality
from pyro_mm.variants.bottoms import CODES

FIRST = Paper(
    "Vasco, Melo, Paiva", "MHVAE: a human-inspired deep hierarchical generative model for multimodal representation "
    "learning", 2020, "arXiv:2006.02991", "joint, modality-specific latents",
)  # fmt: skip
SECOND = Paper(
    "Dorent, Haouchine, Kogl, Joutard, Juvekar, Torio, Golby, Ourselin, Frisken, Vercauteren, Kapur, Wells",
    "Unified brain MR-ultrasound synthesis using multi-modal hierarchical representations", 2023,
    "arXiv:2309.08747", "joint, aggregated inference",
)  # fmt: skip


@page(FIRST)
def mhvae_2020(
    modalities: Sequence[Modality],
    dim: int = 32,
    codes: Mapping[str, int] | int | None = None,
    dropout: float = 0.2,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
    width: int = 512,
    net: Net | None = None,
) -> Recipe:
    """z ~ N(0, I), z_m ~ p(z_m|z), x_m ~ p(x_m|z_m) with q(z|h) prod_m q(z_m|x_m), h the features of x_m that are left.

    Maximises E_q sum_m log p(x_m|z_m) - beta [sum_m KL(q(z_m|x_m) || p(z_m|z)) + KL(q(z|h) || p(z))], a bound of
    log p(X): representation dropout takes some features h_m from the mean h in training.  All posteriors are mean-field
    and given the data, not draws of one another, so each KL has a closed form.  The paper's objective was not to be had
    in print here beyond its description; this is the bound of the model and the guide that it describes.

    Args:
        dim, codes: sizes of z and of z_m (64, 16, 128, 5 by name; else `dim`).
        dropout: of representations.
        width: of h.
        net: of p(z_m|z) and q(z|h).
    """
    sizes, small = by_modality(modalities, codes, CODES, dim), net or MLP((256,))
    model = Hierarchical(decoders(modalities, sizes), {m: Link(dim, s, small) for m, s in sizes.items()}, dim)
    shared = Messages({m.name: Sender(m, width) for m in modalities}, dim, width, small)
    guide = PrivateExperts(perceptual_dropout(shared, dropout), encoders(modalities, sizes), letter="z")
    objective = elbo(model, guide, beta=beta, weights=weights, analytic_kl=True)
    return Recipe("mhvae_2020", model, guide, objective, means=tuple(f"z_{m}" for m in sizes))


@page(SECOND)
def mhvae_2023(
    modalities: Sequence[Modality],
    dim: int = 32,
    levels: Sequence[int] = (32, 32),
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
    width: int = 256,
    net: Net | None = None,
) -> Recipe:
    """z ~ N(0, I), z_l ~ p(z_l|z_{>l}), x_m ~ p(x_m|z_1): levels that all modalities share.

    q(z_l|z_{>l}, x_S) = p(z_l|z_{>l}) prod_{m in S} q_m(z_l|x_m, z_{>l}).  Maximises the mean over non-empty S of
    E_{q(z|x_S)} sum_m log p(x_m|z_1) - beta KL(q(z|x_S) || p(z)), every modality from every subset (eq. 7).
    In a row that lacks something, subsets of which nothing is there count 0, and the mean is still over all.

    Args:
        dim, levels: sizes of the top latent and of those below it.
        width: of the features of x_m.
        net: of p(z_l|z_{>l}).
    """
    names, sizes = names_of(modalities), [dim, *levels]
    trunk = [Link(sizes[: i + 1], size, net) for i, size in enumerate(levels)]
    model = Hierarchical(decoders(modalities, sizes[-1]), {}, dim, trunk)
    guide = TopDown(model, {m.name: Evidences(m, sizes, width) for m in modalities})
    every = [s for r in range(len(names), 0, -1) for s in combinations(names, r)]
    terms = [elbo(model, given(guide, *s), beta=beta, weights=weights, analytic_kl=True) for s in every]
    return Recipe("mhvae_2023", model, guide, total(terms) / len(every))
