"""TELBO: three evidence bounds, of everything together and of every modality by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Concatenation, JointEncoder, Surrogate
from pyro_mm.handlers import frozen, given, in_rows
from pyro_mm.modality import Modality, decoders, encoders, names_of
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, elbo, total
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.variants.bottoms import label_weights

PAPER = Paper(
    "Vedantam, Fischer, Huang, Murphy", "Generative models of visually grounded imagination", 2018,
    "arXiv:1705.10762", "joint, surrogate unimodal inference",
)  # fmt: skip


@page(PAPER)
def telbo(
    modalities: Sequence[Modality],
    dim: int = 64,
    stop: Sequence[str] = (),
    width: int = 512,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_1..x_M) for complete rows and q(z|x_m) for each modality.

    Maximises  ELBO(X; q(z|X)) + sum_m ELBO(x_m; q(z|x_m))  (two modalities there).  The first term counts
    complete rows only.  Each term is a bound where beta and the weights are 1; the sum is one of the sum of their
    log-likelihoods.  Of three or more modalities, a row that has several but not all is inferred by the product of
    their surrogates: ours.  MultiVae's TELBO puts log s^2 of the joint encoder into the KLs of the unimodal ones, which
    then shrink their variances without end; here each KL is its own.

    Args:
        stop: modalities whose decoder the bound of that modality alone does not train, as the paper suggests for the
            attributes: q(z|x_m) then fits a p(x_m|z) that complete rows have learnt.
        weights: of the likelihoods, in all bounds; by default 50 for labels, as in the authors' code.

    Raises:
        ValueError: `stop` names no modality.
    """
    names = names_of(modalities)
    if unknown := [m for m in stop if m not in names]:
        raise ValueError(f"stop: unknown modality {unknown}; there are {list(names)}")
    model = Joint(decoders(modalities, dim), dim)
    guide = Surrogate(JointEncoder(Concatenation(modalities, dim, width), dim), encoders(modalities, dim))
    chosen = label_weights(modalities, weights)
    joint = elbo(in_rows(model, names), guide, beta=beta, weights=chosen, analytic_kl=True)
    alone = {m: given(frozen(model) if m in stop else model, m) for m in names}
    each = [elbo(alone[m], given(guide, m), beta=beta, weights=chosen, analytic_kl=True) for m in names]
    return Recipe("telbo", model, guide, joint + total(each))
