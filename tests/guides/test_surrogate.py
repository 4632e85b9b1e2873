"""Views of the same rows: a joint encoder sees each complete row once, and every view has the posterior of its own."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import nn

from pyro_mm import likelihoods, networks
from pyro_mm.batch import Batch
from pyro_mm.distributions import MaskedFlow
from pyro_mm.guides import Concatenation, FlowSurrogate, JointEncoder, Surrogate
from pyro_mm.modality import Modality, encoders
from pyro_mm.subsets import Subsets

SIZES = {"a": 4, "b": 3, "c": 2}
GROUPS = [g for size in (1, 2, 3) for g in combinations(SIZES, size)]
N = 8


def parts():
    torch.manual_seed(0)
    made = [Modality(m, (d,), likelihoods.Normal(), networks.MLP((8,))) for m, d in SIZES.items()]
    return JointEncoder(Concatenation(made, 2, 8), 2), encoders(made, 2)


def guide(kind: str) -> nn.Module:
    joint, experts = parts()
    if kind == "surrogate":
        return Surrogate(joint, experts).double()
    return FlowSurrogate(joint, experts, {m: MaskedFlow(2, 1) for m in SIZES}, 2).double()


def rows() -> Batch:
    """In every pattern of presence."""
    torch.manual_seed(1)
    seen = torch.tensor([[n >> i & 1 for n in range(N)] for i in range(3)], dtype=torch.bool)
    return Batch({m: torch.randn(N, d).double() for m, d in SIZES.items()}, dict(zip(SIZES, seen, strict=True)))


def views(batch: Batch, groups: list[tuple[str, ...]]) -> Batch:
    subsets = Subsets(groups)
    return batch.visible(subsets.choice(batch.names), subsets.known)


@pytest.mark.parametrize("kind", ["surrogate", "flows"])
@pytest.mark.parametrize("groups", [GROUPS, [g for g in GROUPS if len(g) < 3], [tuple(SIZES)]])
def test_every_view_has_the_posterior_of_its_own(kind, groups):
    q, batch = guide(kind), rows()
    z = torch.randn(len(groups), N, 2).double()
    found = q.posterior(views(batch, groups)).log_prob(z)
    for s, group in enumerate(groups):
        alone = q.posterior(Batch(batch.x, {m: v & (m in group) for m, v in batch.mask.items()}))
        torch.testing.assert_close(found[s], alone.log_prob(z[s]))


@pytest.mark.parametrize("kind", ["surrogate", "flows"])
def test_the_joint_encoder_sees_a_row_once_and_only_where_it_may_be_complete(kind):
    q, batch, seen = guide(kind), rows(), []
    q.joint.net.out.register_forward_hook(lambda _module, _inputs, out: seen.append(out.shape[:-1]))
    q.posterior(views(batch, GROUPS))
    assert seen == [(N,)]
    q.posterior(views(batch, [g for g in GROUPS if len(g) < 3]))
    assert seen == [(N,)]
