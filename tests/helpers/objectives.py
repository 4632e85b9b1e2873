"""The linear-Gaussian oracle, its model and a guide with untrained encoders, to check objectives on."""

from __future__ import annotations

import torch
from torch import nn

from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.guides.fusion import Fusion
from pyro_mm.modality import encoders
from tests.helpers.oracle import DIMS, LG


def pair(
    fuse: Fusion = product_of_experts, dims: dict[str, int] = DIMS, seed: int = 4
) -> tuple[LG, nn.Module, Experts]:
    lg = LG(dims)
    torch.manual_seed(seed)
    return lg, lg.model(), Experts(encoders(lg.modalities(), 2), fuse).double()
