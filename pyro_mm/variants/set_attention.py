"""Set attention: one permutation-invariant network of whatever modalities there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Messages, SetAttention
from pyro_mm.guides.messages import Sender
from pyro_mm.handlers import Program, RandomSubsets, in_subsets
from pyro_mm.modality import Modality, decoders, names_of
from pyro_mm.models import Joint
from pyro_mm.networks import MLP, Net
from pyro_mm.objectives import Objective, Schedule, elbo
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.variants.sum_pooling import PAPER, masked_bound

SMVAE = Paper(
    "Zhou, Duan, Chen, Chang, Lin", "Generalizing multimodal variational methods to sets", 2022, "arXiv:2212.09918",
    "joint, aggregated inference",
)  # fmt: skip


@page(PAPER)
def set_attention(
    modalities: Sequence[Modality],
    dim: int = 64,
    width: int = 256,
    heads: int = 4,
    layers: int = 2,
    k: int | None = None,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
    net: Net | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) from self-attention among the messages of S, summed ("SelfAttention").

    Maximises `sum_pooling.masked_bound`, the mean over subsets S of  ELBO(x_S; q(z|x_S)) + E_{q(z|X)} log p(x_rest|z) -
    beta KL(q(z|X) || q(z|x_S)), which is no bound on log p(X) unless q(z|x_S) is the posterior.

    Args:
        width, heads, layers: of the attention; net: of the network that reads the sum.
        k: so many random S at every step instead of all of them: an unbiased estimate.
    """
    model, guide = _pair(modalities, dim, width, heads, layers, net)
    return Recipe("set_attention", model, guide, masked_bound(model, guide, names_of(modalities), beta, weights, k))


@page(SMVAE)
def smvae(
    modalities: Sequence[Modality],
    dim: int = 64,
    width: int = 256,
    heads: int = 4,
    layers: int = 2,
    k: int = 1,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
    net: Net | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) from set attention, trained by evidence bounds alone.

    Maximises `whole_and_random`, ELBO(X) + sum over k random subsets S of ELBO(x_S; q(z|x_S)): each a bound.  Of a row
    that lacks something X and every S count with the part that is there.  Of the paper the abstract alone was at hand:
    set attention for the joint posterior, and its evidence bound.  Random subsets are MVAE's way of missing modalities.
    Arguments as in `set_attention`.
    """
    model, guide = _pair(modalities, dim, width, heads, layers, net)
    return Recipe("smvae", model, guide, whole_and_random(model, guide, names_of(modalities), k, beta, weights))


def whole_and_random(
    model: Program,
    guide: Program,
    names: Sequence[str],
    k: int,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Objective:
    """ELBO(X) + sum over k random subsets S of ELBO(x_S; q(z|x_S)), |S| uniform in 1..M, as a loss.

    Of a row that lacks something each counts with the part that is there, one with nothing left not at all.
    """
    subsets = RandomSubsets(names, k, [names], sizes=(1, len(names)))
    return elbo(in_subsets(model, subsets), in_subsets(guide, subsets), beta=beta, weights=weights, analytic_kl=True)


def _pair(
    modalities: Sequence[Modality], dim: int, width: int, heads: int, layers: int, net: Net | None
) -> tuple[Joint, Messages]:
    senders = {m.name: Sender(m, width) for m in modalities}
    guide = Messages(senders, dim, width, net or MLP((width,)), SetAttention(width, heads, layers))
    return Joint(decoders(modalities, dim), dim), guide
