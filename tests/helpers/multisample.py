"""Log-weights by hand, for bounds of many draws."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from tests.helpers.oracle import LG

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


def off_centre(rows: int) -> tuple[nn.Module, Batch, Tensor, Tensor]:
    """A model, one datum many times, and means and log-scales of two components on both sides of its posterior."""
    lg = LG({"a": 2, "b": 2})
    one = lg.data(1)
    mean, covariance = lg.posterior(one)
    loc = torch.stack([mean[0] - 0.4, mean[0] + 0.5])
    return lg.model(), one[[0] * rows], loc, covariance[0].diagonal().sqrt().log().expand(2, 2)
