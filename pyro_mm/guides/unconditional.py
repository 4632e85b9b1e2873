"""The guide that looks at nothing: what a divergence to the prior is taken from."""

from __future__ import annotations

from typing import Any

import pyro
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.models.priors import as_prior

__all__ = ["Prior", "prior"]


class Prior(nn.Module):
    """z ~ p(z), whatever the row holds.

    Args:
        p: a prior module, or a dimension for N(0, I).
    """

    unconditional = True

    def __init__(self, p: int | nn.Module) -> None:
        super().__init__()
        self.p = as_prior(p)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.p())


def prior(model: Any) -> Prior:
    """p(z) of a model as a guide: `kl(guide, prior(model))` is KL(q(z | x) || p(z)).

    Raises:
        TypeError: the model has no module `prior`.
    """
    found = getattr(model, "prior", None)
    if not isinstance(found, nn.Module):
        raise TypeError(f"{type(model).__name__} has no module `prior` that gives p(z)")
    return Prior(found)
