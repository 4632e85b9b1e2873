"""The guide of a JNF whose encoders are exact posteriors of a linear-Gaussian model."""

from __future__ import annotations

import torch

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.distributions import MaskedFlow
from pyro_mm.guides import FlowSurrogate, JointEncoder

DIMS = {"a": 3, "b": 2, "c": 2}


def made(latent: int = 2, flat: bool = False) -> tuple[LinearGaussian, FlowSurrogate]:
    """Exact encoders below flows; `flat` flows are the identity."""
    torch.manual_seed(0)
    oracle = LinearGaussian.random(DIMS, latent, seed=1)
    flows = {m: MaskedFlow(latent, 2, (8,)).double() for m in DIMS}
    if flat:
        for flow in flows.values():
            for p in flow.parameters():
                torch.nn.init.zeros_(p)
    joint = JointEncoder(oracle.joint_posterior_net(), latent)
    return oracle, FlowSurrogate(joint, oracle.unimodal_posteriors(), flows, latent).double()


def rows(oracle: LinearGaussian, *patterns: str) -> Batch:
    data = oracle.sample(len(patterns), seed=2)
    return Batch(data.x, {m: torch.tensor([m in p for p in patterns]) for m in DIMS})
