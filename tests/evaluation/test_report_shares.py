"""The experts' shares of a product, by their precisions."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mm.evaluation.report import report
from pyro_mm.guides import Experts, mixture_of_experts, product_of_experts, product_of_posteriors
from pyro_mm.handlers import given
from pyro_mm.models import LearntScale
from tests.helpers.estimates import guide
from tests.helpers.reports import LG, TEST, Scaled


@pytest.mark.parametrize("rule", [product_of_experts, product_of_posteriors])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_shares_are_those_of_the_precisions(rule: Any, sigma: float) -> None:
    encoders = {m: Scaled(e, f) for (m, e), f in zip(LG.unimodal_posteriors().items(), (1.0, 0.7, 1.1), strict=True)}
    prior = LearntScale(2, dist.Normal).double()
    with torch.no_grad():
        prior.raw[0] = sigma - 1  # softmax of equal entries: scales of 1
    q = Experts(encoders, rule, prior)
    found = report(LG.model(), q, TEST, 2, seed=0).experts
    assert not isinstance(found, str) and list(found) == ["z"]
    shares = found["z"]
    some = TEST[TEST.present()]
    seen = torch.stack([some.mask[m] for m in "abc"], -1).double().unsqueeze(-1)
    own = torch.stack([encoders[m](some.x[m]).base_dist.scale.detach() ** -2 for m in "abc"], -2)
    base = prior().base_dist.scale.detach() ** -2
    if rule is product_of_posteriors:
        own = (own - base).clamp(min=0.0)
    total = base + (seen * own).sum(-2)
    parts = torch.cat([seen * own, base.expand(len(some), 1, 2)], -2) / total.unsqueeze(-2)
    torch.testing.assert_close(shares.stacked, parts.mean(0))
    torch.testing.assert_close(shares.stacked.sum(0), torch.ones(2).double())
    for i, m in enumerate("abc"):
        torch.testing.assert_close(shares.share[i], parts[some.mask[m], i].mean(0))
        assert shares.mean()[m] == pytest.approx(parts[some.mask[m], i].mean().item())
    assert shares.names == ("a", "b", "c", "prior")


def test_a_users_own_product_counts_and_other_rules_do_not() -> None:
    def mine(loc: Tensor, scale: Tensor, mask: Tensor) -> dist.TorchDistribution:
        precision = 1 + torch.where(mask.unsqueeze(-1), scale**-2, 0.0).sum(-2)
        return dist.Normal(torch.zeros_like(precision), precision**-0.5).to_event(1)

    experts = LG.unimodal_posteriors()
    wrapped = Experts(experts, mine)
    own = report(LG.model(), lambda batch: wrapped(batch), TEST, 2, seed=0).experts
    library = report(LG.model(), Experts(experts, product_of_experts), TEST, 2, seed=0).experts
    assert not isinstance(own, str) and not isinstance(library, str)
    torch.testing.assert_close(own["z"].share, library["z"].share)
    mixture = report(LG.model(), Experts(experts, mixture_of_experts), TEST, 2, seed=0).experts
    assert mixture == "not a product of experts: no experts' precisions add up to that of 'z' (Mixture)"
    joint = report(LG.model(), guide("mean-field", LG), TEST, 2, seed=0)
    assert joint.experts == "not a product of experts: the guide has no encoders"
    assert "experts: not a product of experts" in repr(joint)


def test_a_guide_that_is_shown_less_has_fewer_experts() -> None:
    q = guide("poe", LG)
    shown = report(LG.model(), given(q, "a"), LG.sample(20), 2, seed=0).experts
    assert not isinstance(shown, str)
    scale = q.encoders["a"].log_scale.exp().detach()
    torch.testing.assert_close(shown["z"].stacked[0], scale**-2 / (1 + scale**-2))
    assert shown["z"].stacked[1:3].abs().max() == 0 and shown["z"].share[1:3].isnan().all()
