"""A global workspace as the guide: modalities write to shared slots, and z is read from these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro_mm.guides import Messages, Workspace
from pyro_mm.guides.messages import Sender
from pyro_mm.modality import Modality, decoders, names_of
from pyro_mm.models import Joint
from pyro_mm.networks import MLP, Net
from pyro_mm.objectives import Schedule
from pyro_mm.recipe import Paper, Recipe, page
from pyro_mm.variants.set_attention import whole_and_random

PAPER = Paper(
    "Goyal, Didolkar, Lamb, Badola, Ke, Rahaman, Binas, Blundell, Mozer, Bengio", "Coordination among neural modules "
    "through a shared global workspace", 2022, "arXiv:2103.01197", "integration of modules",
)  # fmt: skip


@page(PAPER)
def global_workspace(
    modalities: Sequence[Modality],
    dim: int = 64,
    width: int = 256,
    slots: int = 4,
    top: int | None = 2,
    rounds: int = 2,
    heads: int = 4,
    k: int = 1,
    beta: float | Schedule = 1.0,
    weights: Mapping[str, float] | None = None,
    net: Net | None = None,
) -> Recipe:
    """p(z) prod_m p(x_m|z) with q(z|x_S) read from slots for which the modalities of S compete (`Workspace`).

    Maximises  ELBO(X) + sum over k random subsets S of ELBO(x_S; q(z|x_S)), |S| uniform in 1..M: each a bound.
    Of a row that lacks something X and every S count with the part that is there.  The survey names the workspace as a
    way to integrate modules and gives no objective; this one is ours.

    Args:
        width, slots, top, rounds, heads: of the workspace; net: of the network that reads it.
    """
    model = Joint(decoders(modalities, dim), dim)
    senders = {m.name: Sender(m, width) for m in modalities}
    space = Workspace(width, slots, top, rounds, heads)
    guide = Messages(senders, dim, width, net or MLP((width,)), space)
    objective = whole_and_random(model, guide, names_of(modalities), k, beta, weights)
    return Recipe("global_workspace", model, guide, objective)
