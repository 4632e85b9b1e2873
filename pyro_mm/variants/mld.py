"""MLD: autoencoders of single modalities, and one diffusion over all their codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from pyro_mm.guides.latent_diffusion import Codes, LatentDiffusion, Learnt, side_by_side
from pyro_mm.modality import Modality, decoders
from pyro_mm.models import DiffusionPrior, Joint
from pyro_mm.models.diffusion_prior import Averaged, Together, Velocity
from pyro_mm.models.standardised import Restored
from pyro_mm.objectives import masked_denoising, nll
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.training.stages import Stage

PAPER = Paper(
    "Bounoua, Franzese, Michiardi", "Multi-modal latent diffusion", 2024, "arXiv:2306.04445",
    "joint, modality-specific latents",
)  # fmt: skip


@page(PAPER)
def mld(
    modalities: Sequence[Modality],
    dim: int | Mapping[str, int] = 32,
    width: int = 512,
    blocks: int = 3,
    share: float = 0.5,
    noise: float = 0.05,
    steps: int = 12,
    sampler: str = "flow",
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z_1..z_M) a diffusion, x_m ~ p(x_m|z_m);  q(z|x_A) = codes of x_A, and the rest by the diffusion given these.

    Two stages.  First an autoencoder of each modality by itself: sum_m E_{N(z_m; e_m(x_m), noise^2)} log p(x_m|z_m).
    Then, these held still and codes brought to mean 0 and variance 1, `masked_denoising`: the velocity of a diffusion
    that is told an angle for every modality, 0 for those that are given.

    The paper's autoencoders are deterministic, so it has no density of x; `log_marginal` raises `NoLikelihood`.  Ours
    have a little noise, so that z has densities.  A diffusion is told the paper's time by an angle (`Diffused`).

    Args:
        dim: of every modality's code, or of each.
        width, blocks: of the velocity's network.
        share: of the rows in which some modalities are given; the paper's d.
        steps, sampler: of draws, as in `Diffused`.
    """
    sizes = side_by_side(modalities, dim)
    codes = Codes(modalities, sizes, noise)
    velocity = Averaged(Velocity(sum(sizes.values()), width, blocks, angles=len(sizes)))
    starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    plain = decoders(modalities, sizes)
    restored = {m: Restored(plain[m], codes.scalers[m], starts[m], d) for m, d in sizes.items()}
    flow: dict[str, Any] = {"steps": steps, "sampler": sampler}
    prior = DiffusionPrior(sum(sizes.values()), net=Together(velocity, len(sizes)), **flow)
    model = Joint(restored, prior)
    model.no_likelihood = "MLD's autoencoders are trained to rebuild x, not to give it a density"
    guide = LatentDiffusion(codes, velocity, **flow)
    first = nll(model, codes, weights=weights)
    second = masked_denoising(Learnt(codes), velocity, sizes, share)
    stages = [
        Stage(first, 1, [*(r.decoder for r in restored.values()), codes], name="autoencoders"),
        Stage(second, 1, [velocity, codes.scalers], name="diffusion"),
    ]
    return Recipe("mld", model, guide, first + second, stages)
