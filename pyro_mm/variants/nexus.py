"""NEXUS: a VAE for every modality, and one multimodal VAE over their latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

from torch import nn

from pyro_mm.guides import BottomUp, Messages, perceptual_dropout
from pyro_mm.links import Link, links
from pyro_mm.modality import Modality, decoders, encoders, names_of
from pyro_mm.models import Hierarchical, Joint
from pyro_mm.networks import MLP, Net
from pyro_mm.objectives import Schedule, coded, elbo
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.sizes import by_modality
from pyro_mm.variants.bottoms import CODES, Bottoms, label_weights, two_floors, warmed

PAPER = Paper(
    "Vasco, Yin, Melo, Paiva", "Leveraging hierarchy in multimodal generative models for effective cross-modality "
    "inference", 2022, "doi:10.1016/j.neunet.2021.11.019", "joint, modality-specific latents",
)  # fmt: skip

GAMMAS = {"trajectory": 50.0, "label": 50.0}
TOP = MLP((512, 512), nn.LeakyReLU, norm=nn.BatchNorm1d)


@page(PAPER)
def nexus(
    modalities: Sequence[Modality],
    dim: int = 32,
    codes: Mapping[str, int] | int | None = None,
    dropout: float = 0.2,
    beta: float | Schedule | None = None,
    betas: Mapping[str, float] | None = None,
    gammas: Mapping[str, float] | float | None = None,
    optimal: Sequence[str] = ("sound",),
    frozen: Sequence[str] = ("sound",),
    weights: Mapping[str, float] | None = None,
    width: int = 512,
    net: Net | None = None,
) -> Recipe:
    """z_m ~ N(0, I), x_m ~ p(x_m|z_m) below; z ~ N(0, I), z_m ~ N(f_m(z), s_m^2) above, the draws of z_m its data.

    Maximises  sum_m ELBO(x_m; q(z_m|x_m)) + ELBO({z_m}; q(z|messages)), with forced perceptual dropout of messages
    above; nothing of the second part reaches the bottom (section 3).  s_m^2 = 1 / (2 gamma_m): the paper's weights are
    variances here, and part of the model; s of the sound is the batch's own.  Not a bound on one joint model: z_m has
    the prior N(0, I) below and p(z_m|z) above.  Likelihoods are those of the hierarchy z -> z_m -> x_m that the paper
    generates from, with the same modules; it generates at the mean of p(z_m|z), so `Recipe.means` are all z_m.

    Args:
        dim, codes: sizes of z and, by modality or for all, of z_m (64, 16, 128, 5; else `dim`).
        dropout: 0.2 on MHD, 0.1 on an image and its label.
        beta: weight of every KL; by default from 0 to 1 over 20 epochs.  `betas` multiply it by modality (sound: 10).
        optimal: modalities whose s_m is the batch's own.
        frozen: modalities whose own VAE is trained first, in a stage of its own, and then held still.
        weights: of the likelihoods; by default 50 for labels.  Other lambda_m are variances of the likelihoods.
        net: of the networks of the top.
    """
    bottoms, top = Bottoms(modalities, dim, codes, beta, betas, frozen, weights), net or TOP
    scales = {m: sqrt(0.5 / g) for m, g in by_modality(modalities, gammas, GAMMAS, 1.0).items()}
    model = Joint(links(dim, bottoms.sizes, top, scales, optimal), dim)
    guide = perceptual_dropout(Messages(bottoms.sizes, dim, width, top), dropout)
    objective = coded(elbo(model, guide, beta=bottoms.beta, analytic_kl=True), bottoms.guide)
    return two_floors("nexus", bottoms, model, guide, objective)


@page(PAPER)
def nexus_elbo(
    modalities: Sequence[Modality],
    dim: int = 32,
    codes: Mapping[str, int] | int | None = None,
    dropout: float = 0.2,
    beta: float | Schedule | None = None,
    weights: Mapping[str, float] | None = None,
    width: int = 512,
    net: Net | None = None,
) -> Recipe:
    """NEXUS's networks as one hierarchical model with one bound: z -> z_m -> x_m, q(z_m|x_m) and q(z|{z_m}).

    Maximises E_q [log p(z) + sum_m log p(z_m|z) p(x_m|z_m) - log q(z|{z_m}) - sum_m log q(z_m|x_m)], a lower bound of
    log p(X) for beta = 1 and weights of 1: what `nexus` has two priors for has one here, and gradients pass through.
    The scales of p(z_m|z) are learnt, one per dimension.  Ours, not the paper's; arguments as in `nexus`.
    """
    top = net or TOP
    sizes = by_modality(modalities, codes, CODES, dim)
    below = {m: Link(dim, size, top, scale=1.0, learnt=True) for m, size in sizes.items()}
    model = Hierarchical(decoders(modalities, sizes), below, dim)
    guide = BottomUp(encoders(modalities, sizes), perceptual_dropout(Messages(sizes, dim, width, top), dropout))
    objective = elbo(model, guide, beta=warmed(beta), weights=label_weights(modalities, weights))
    return Recipe("nexus_elbo", model, guide, objective, means=tuple(f"z_{m}" for m in names_of(modalities)))
