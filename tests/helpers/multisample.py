"""Log-weights by hand, for bounds of many draws."""

from __future__ import annotations

import torch
from torch import Tensor

D = torch.float64


def lme(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - torch.tensor(float(len(log_w)), dtype=D).log()


def agree(one: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
    """Both estimators have the same mean: rms z-score over parameters below 1.3, no single one above 4.5."""
    z = torch.cat(
        [
            ((one[n].mean(0) - other[n].mean(0)) / ((one[n].var(0) + other[n].var(0)) / len(one[n])).sqrt()).flatten()
            for n in one
        ]
    )
    assert z.abs().max().item() < 4.5, z
    return z
