"""SCAN: symbols associated with the latents of a VAE of images, which was there before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.handlers import frozen, given
from pyro_mm.modality import Modality, names_of
from pyro_mm.objectives import Schedule, elbo, kl, total
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.training.stages import Stage
from pyro_mm.variants.coordinated import one_space

PAPER = Paper(
    "Higgins, Sonnerat, Matthey, Pal, Burgess, Bosnjak, Shanahan, Botvinick, Hassabis, Lerchner", "SCAN: learning "
    "hierarchical compositional visual concepts", 2018, "arXiv:1707.03389",
    "coordinated, distance between inference distributions",
)  # fmt: skip


@page(PAPER)
def scan(
    modalities: Sequence[Modality],
    dim: int = 32,
    alpha: float = 10.0,
    beta: float | Schedule = 1.0,
    vision_beta: float | Schedule = 4.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x) of the first modality, the image, and q(z|y) of every other, the symbols.

    Two stages.  First the image alone: E_{q(z|x)} log p(x|z) - vision_beta KL(q(z|x) || p(z)).  Then, the image's
    networks held still, of every symbol y:  E_{q(z|y)} log p(y|z) - beta KL(q(z|y) || p(z)) - alpha KL(q(z|x) ||
    q(z|y)).  In this direction q(z|y) is drawn to the moments of q(z|x) over the images that y describes: narrow in
    what y says, the prior in the rest.  That is p(z|y) only where x leaves nothing of z for y to tell.  Concepts
    recombine by `guides.conjunction`, `in_common` and `ignore`.

    Each stage's ELBO bounds log p of its own modality at beta 1; likelihoods are those of p(z) prod_m p(x_m|z).

    Args:
        alpha: the paper's lambda.
        vision_beta: the paper has 53 beside the squared error in the features of a denoising autoencoder, which is left
            out here: it is no density of x, and its scale is not that of a likelihood.

    Raises:
        ValueError: fewer than two modalities.
    """
    image, *symbols = names_of(modalities)
    if not symbols:
        raise ValueError(f"scan associates symbols with an image, the first modality; there is only '{image}'")
    model, guide = one_space(modalities, dim)
    q = {m: given(guide, m) for m in guide.names}
    vision = elbo(given(model, image), q[image], beta=vision_beta, weights=weights, analytic_kl=True)
    named = (elbo(given(model, y), q[y], beta=beta, weights=weights, analytic_kl=True) for y in symbols)
    grounded = total(named) + alpha * total(kl(frozen(q[image]), q[y]) for y in symbols)
    moving = [part[y] for y in symbols for part in (model.decoders, guide.encoders)]
    stages = [Stage(vision, 1, name=image), Stage(grounded, 1, moving, name="symbols")]
    return Recipe("scan", model, guide, vision + grounded, stages)
