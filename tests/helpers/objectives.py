"""The linear-Gaussian oracle, its model and a guide with untrained encoders, to check objectives on."""

from __future__ import annotations

import torch
from torch import nn

from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.modality import encoders
from tests.helpers.oracle import LG


def pair(fuse=product_of_experts, dims: dict[str, int] | None = None) -> tuple[LG, nn.Module, Experts]:
    lg = LG(dims or {"a": 4, "b": 3, "c": 2})
    torch.manual_seed(4)
    return lg, lg.model(), Experts(encoders(lg.modalities(), 2), fuse).double()
