"""MEME: each modality is the label of the other, and each one's encoder the other's prior."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from pyro_mm.guides import Experts, mixture_of_experts, single
from pyro_mm.handlers import in_rows
from pyro_mm.modality import Modality, decoders, encoders, names_of
from pyro_mm.models import Joint, VampPrior
from pyro_mm.objectives import elbo, mutual, total
from pyro_mm.recipe import Paper, Recipe, page

PAPER = Paper(
    "Joy, Shi, Torr, Rainforth, Schmon, Siddharth", "Learning multimodal VAEs through mutual supervision", 2022,
    "arXiv:2106.12570", "joint, surrogate unimodal inference",
)  # fmt: skip


@page(PAPER)
def meme(
    modalities: Sequence[Modality],
    dim: int = 64,
    samples: int = 10,
    weight: float = 10.0,
    pseudo: int = 128,
) -> Recipe:
    """p(s|t) = integral q(z|t) p(s|z) dz and p(t|s) = integral q(z|s) p(t|z) dz: no prior of z is common to both.

    Maximises, for s and t and the other way round, `mutual(s, t)` of rows with both, and of rows that lack t
    E_{q(z|s)} [log p(s|z) + log p_t(z) - log q(z|s)],  p_t(z) = 1/N sum_i q(z|u_i) over learnt pseudo-samples of t.
    The second is a bound of log p(s) under that prior; the first, as the authors' code has it, is none (`mutual`).

    So there is no joint log p(s, t): `log_marginal` raises `NoLikelihood`.  What the model has is log p(s|t), from
    `log_conditional` of `models.Directed("s", recipe.model.decoders["s"], q_t)`, where
    q_t = guides.single({"t": recipe.guide.encoders["t"]}).

    The recipe's guide, from which it generates, is q(z|s) where s is seen, the mixture of the two with both, and with
    nothing the mixture of all pseudo-samples.  Of three or more modalities (ours) all ordered pairs add up.

    Args:
        samples: draws for q(t|s) besides z; weight: c of log q(t|s); pseudo: N.

    Raises:
        ValueError: there is one modality only.
    """
    names = names_of(modalities)
    if len(names) < 2:
        raise ValueError(f"meme makes modalities supervise each other; there is only '{names[0]}'")
    encode = encoders(modalities, dim)
    whole = VampPrior(encode, mixture_of_experts, pseudo)
    model = Joint(decoders(modalities, dim), whole)
    model.no_likelihood = "MEME models each modality given another, whose encoder is the prior of z; no prior is common"
    guide = Experts(encode, mixture_of_experts, whole)
    q = {m: single({m: encode[m]}) for m in names}
    pairs = list(permutations(names, 2))
    both = [mutual(model, q[s], q[t], s, t, samples=samples, weight=weight) for s, t in pairs]
    directed = [Joint({s: model.decoders[s]}, whole.inputs[t]) for s, t in pairs]
    alone = [elbo(in_rows(p, [s], [t]), q[s]) for p, (s, t) in zip(directed, pairs, strict=True)]
    return Recipe("meme", model, guide, total(both) + total(alone))
