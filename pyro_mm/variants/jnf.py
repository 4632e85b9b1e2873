"""JNF: a joint VAE first, and flows for single modalities fitted to it afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.distributions import MaskedFlow
from pyro_mm.evaluation.flow_product import product_of_flows
from pyro_mm.guides import Concatenation, FlowSurrogate, JointEncoder
from pyro_mm.handlers import frozen, given, in_rows
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Schedule, elbo, kl, total
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.training.stages import Stage

PAPER = Paper(
    "Senellart, Allassonniere", "Bridging the inference gap in multimodal variational autoencoders", 2025,
    "arXiv:2502.03952", "joint, surrogate unimodal inference",
)  # fmt: skip


@page(PAPER)
def jnf(
    modalities: Sequence[Modality],
    dim: int = 64,
    width: int = 512,
    blocks: int = 2,
    hidden: Sequence[int] = (128, 128, 128),
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_1..x_M) for complete rows and a flow q_m(z|x_m) for each modality.

    Stage 1 maximises ELBO(X; q(z|X)).  Stage 2 keeps model and joint encoder still and minimises
    sum_m KL(q(z|X) || q_m(z|x_m)),  which is  -sum_m E_{q(z|X)} log q_m(z|x_m)  up to a constant.  Both count complete
    rows only.  Each q_m is a masked autoregressive flow on top of a Gaussian encoder, as in the authors' code.

    Several modalities, short of all: what is generated comes from  p(z)^(1-|S|) prod_{m in S} q_m(z|x_m)  by HMC, the
    recipe's `sampler` (`evaluation.product_of_flows`).  The guide has the mixture of the q_m there, whose density is
    known: likelihoods are the model's with either.

    Args:
        width: of the joint encoder; blocks, hidden: of the flows.
    """
    model = Joint(decoders(modalities, dim), dim)
    joint = JointEncoder(Concatenation(modalities, dim, width), dim)
    flows = {m.name: MaskedFlow(dim, blocks, tuple(hidden)) for m in modalities}
    guide = FlowSurrogate(joint, encoders(modalities, dim), flows, dim)
    first = elbo(in_rows(model, guide.names), joint, beta=beta, weights=weights, analytic_kl=True)
    target = in_rows(frozen(joint), guide.names)
    second = total(kl(target, given(guide, m), analytic=False) for m in guide.names)
    stages = [
        Stage(first, 1, [model, joint], name="joint VAE"),
        Stage(second, 1, [guide.encoders, guide.flows], name="flows"),
    ]
    return Recipe("jnf", model, guide, first + second, stages, sampler=product_of_flows(guide))
