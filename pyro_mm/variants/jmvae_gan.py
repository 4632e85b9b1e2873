"""JMVAE-GAN: JMVAE-kl whose image decoder learns from a discriminator as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from pyro_mm.handlers import given
from pyro_mm.modality import Modality, names_of
from pyro_mm.objectives import Discriminator, Schedule, adversarial, discrimination, nll
from pyro_mm.recipe import Recipe, page
from pyro_mm.training.stages import Stage, in_turn
from pyro_mm.variants.jmvae import PAPER, jmvae_kl


@page(PAPER)
def jmvae_gan(
    modalities: Sequence[Modality],
    dim: int = 128,
    image: str | None = None,
    alpha: float = 0.1,
    gamma: float = 1.0,
    width: int = 512,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
    lr: float | None = None,
    beta1: float = 0.5,
    spectral: bool = True,
) -> Recipe:
    """p(z) prod_m p(x_m|z) and guides of JMVAE-kl; the means of one decoder, G, made real by a discriminator D.

    At every minibatch three steps (section 3.4 and the authors' code), each of what it names:
    (1) all but G and D:  beta KL(q(z|X) || p(z)) - E_q sum_m log p(x_m|z) + alpha sum_m KL(q(z|X) || q(z|x_m));
    (2) G:  -gamma E_q log p(x|z) - log D(G(z_p)) - log D(G(z_q)),  z_p ~ p(z), z_q ~ q(z|X);
    (3) D:  -log D(x) - log(1 - D(G(z_p))) - log(1 - D(G(z_q))).

    The authors' code draws z_p from a uniform distribution on (-1, 1), though p(z) is N(0, I); here it is p(z).  Ours
    has a spectral norm in D unless `spectral=False`.  `log_marginal` raises `NoLikelihood`: what sharpens G is no
    likelihood.  For log p of the same networks train `jmvae_kl`.

    Args:
        image: whose decoder G is; default the first modality.
        beta: the paper warms up over 20 epochs, `Warmup(20)`.
        weights: of likelihoods in step 1.
        lr, beta1: of all three Adams, and how fast they forget first moments.  The paper has 1e-4; without, `fit`'s.

    Raises:
        ValueError: `image` is no modality.
    """
    names = names_of(modalities)
    if (name := image or names[0]) not in names:
        raise ValueError(f"jmvae_gan sharpens one of {list(names)}; there is no '{name}'")
    base: Any = jmvae_kl(modalities, dim, alpha, width, beta, weights)
    model, guide, joint = base.model, base.guide, base.objective
    critic = Discriminator(modalities[names.index(name)], spectral)
    sharpened = gamma * nll(given(model, name), guide) + adversarial(model, guide, name, critic)
    told = discrimination(model, guide, name, critic)
    others = [part for m, part in model.decoders.items() if m != name]
    stage = in_turn(
        1,
        Stage(joint, 1, [*others, guide], "joint"),
        Stage(sharpened, 1, model.decoders[name], "generator"),
        Stage(told, 1, critic, "discriminator"),
        lr=lr,
        optimiser=partial(torch.optim.Adam, betas=(beta1, 0.999)),
    )
    modules = {"model": model, "guide": guide, "discriminator": critic}
    return Recipe("jmvae_gan", model, guide, joint + sharpened + told, [stage], modules)
