"""AVAE: a VAE for every modality, their posteriors drawn together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from pyro_mm.guides import Experts
from pyro_mm.handlers import Program, given
from pyro_mm.modality import Modality
from pyro_mm.models import Joint
from pyro_mm.objectives import Objective, Schedule, symmetric_kl, total, wasserstein
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.training.stages import Stage
from pyro_mm.variants.coordinated import each_alone, one_space

PAPER = Paper(
    "Yin, Melo, Billard, Paiva", "Associate latent encodings in learning from demonstrations", 2017,
    "AAAI 2017", "coordinated, distance between inference distributions",
)  # fmt: skip


@page(PAPER)
def avae(
    modalities: Sequence[Modality],
    dim: int = 64,
    alpha: float | Schedule = 1.0,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) p(x_m|z) with q(z|x_m) for every m, and q(z|x_m) near q(z|x_n); AVAE in style.

    Maximises  sum_m ELBO(x_m; q(z|x_m)) - alpha sum_{m<n} [KL(q(z|x_m) || q(z|x_n)) + KL(q(z|x_n) || q(z|x_m))], all at
    once.  The paper's own distance and weight could not be looked up; this is the symmetric one.  The ELBOs bound
    log p(x_m), and no term ties two modalities together but the distance: log p(x_m) is that of modality m's VAE, and
    what is reported for several at once is that of p(z) prod_m p(x_m|z), in which their latents are one.

    Args:
        alpha: weight of the distance.
    """
    model, guide = one_space(modalities, dim)
    return Recipe("avae", model, guide, _whole(model, guide, symmetric_kl, alpha, beta, weights))


@page(PAPER)
def avae_wasserstein(
    modalities: Sequence[Modality],
    dim: int = 64,
    alpha: float | Schedule = 1.0,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """AVAE with W_2^2(q(z|x_m), q(z|x_n)) for a distance: the same pair and likelihoods as `avae`."""
    model, guide = one_space(modalities, dim)
    return Recipe("avae", model, guide, _whole(model, guide, squared_wasserstein, alpha, beta, weights))


@page(PAPER)
def avae_staged(
    modalities: Sequence[Modality],
    dim: int = 64,
    alpha: float | Schedule = 1.0,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """AVAE in two stages: every VAE alone, then all of them with the distance, as `avae`.

    Latents learnt alone agree at best up to rotations and signs, so the second stage moves encoders and decoders too.
    """
    model, guide = one_space(modalities, dim)
    whole = _whole(model, guide, symmetric_kl, alpha, beta, weights)
    first = Stage(each_alone(model, guide, beta, weights), 1, name="each alone")
    return Recipe("avae", model, guide, whole, [first, Stage(whole, 1, name="associated")])


def squared_wasserstein(q: Program, p: Program) -> Objective:
    """W_2^2 between two guides."""
    return wasserstein(q, p, power=2)


def _whole(
    model: Joint,
    guide: Experts,
    distance: Callable[[Program, Program], Objective],
    alpha: float | Schedule,
    beta: float | Schedule,
    weights: Mapping[str, float] | None,
) -> Objective:
    """Every VAE alone, and the distances between their posteriors; of one modality there are none."""
    alone = each_alone(model, guide, beta, weights)
    pairs = list(combinations(guide.names, 2))
    if not pairs:
        return alone
    return alone + alpha * total(distance(given(guide, m), given(guide, n)) for m, n in pairs)
