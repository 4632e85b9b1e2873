"""The guide of a JNF in every pattern of presence."""

from __future__ import annotations

import pytest
import torch

from pyro_mm.batch import Batch
from pyro_mm.guides import FlowSurrogate
from pyro_mm.handlers import given
from pyro_mm.weights import run
from tests.helpers.flows import DIMS, made, rows


def test_every_pattern_has_the_density_that_it_should():
    oracle, guide = made()
    batch = rows(oracle, "abc", "a", "b", "", "ac")
    z = torch.randn(5, 2, dtype=torch.float64)
    own = {m: guide.expert(m, batch.x[m]).log_prob(z) for m in DIMS}
    mixture = torch.stack([own["a"], own["c"]]).logsumexp(0) - torch.tensor(2.0).log()
    expected = [guide.joint.posterior(batch).log_prob(z), own["a"], own["b"], guide.prior().log_prob(z), mixture]
    torch.testing.assert_close(guide.posterior(batch).log_prob(z), torch.stack([e[i] for i, e in enumerate(expected)]))
    stacked = guide.posterior(batch.subsets([("a", "c"), ("b",)])).log_prob(z)
    for i, group in enumerate([("a", "c"), ("b",)]):
        torch.testing.assert_close(stacked[i], guide.posterior(batch.only(*group)).log_prob(z))
    assert run(given(guide, "a"), Batch({"a": batch.x["a"]}))["z"].value.shape == (5, 2)
    with pytest.raises(ValueError, match=r"encoders of \['a', 'b', 'c'\], but flows of \['a'\]"):
        FlowSurrogate(guide.joint, dict(guide.encoders), {"a": guide.flows["a"]}, 2)
