"""One modality given others, by way of z: what an encoder says is the prior."""

from __future__ import annotations

from typing import Any

import pyro
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.models.joint import observe

__all__ = ["Directed"]


class Directed(nn.Module):
    """z ~ q(z | y);  x ~ p(x | z):  p(x | y) = integral q(z | y) p(x | z) dz, y given.

    A model without any density of y: of the log-likelihoods it has `log_conditional(of=x, given=y)`.  Rows with nothing
    of y are not scored.

    Args:
        target: name of x.
        decoder: z -> p(x | z).
        condition: a guide that sees y, with `posterior(batch)`.
    """

    condition: Any

    def __init__(self, target: str, decoder: nn.Module, condition: nn.Module) -> None:
        super().__init__()
        self.target, self.decoder, self.condition = target, decoder, condition

    @property
    def names(self) -> tuple[str, ...]:
        """The modality it generates."""
        return (self.target,)

    @property
    def conditioned_on(self) -> tuple[str, ...]:
        """The modalities it is given."""
        return tuple(self.condition.names)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", self.condition.posterior(batch))
            seen = batch.mask[self.target] & batch.present(self.conditioned_on)
            observe(self.target, self.decoder, z, batch, mask=seen)
