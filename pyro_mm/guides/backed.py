"""A guide for a model whose prior is not the one that the guide falls back on."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import MixtureOf
from pyro_mm.handlers import Program, Verb

__all__ = ["backed"]


class Backed(Verb):
    """See `backed`."""

    prior: Any

    def __init__(self, program: Program, prior: nn.Module) -> None:
        super().__init__(program)
        self.prior = prior

    def forward(self, batch: Batch) -> Any:
        with _WhereNothing(batch.present(self.names or batch.names), self.prior()):
            return self.program(batch)


def backed(guide: Program, prior: nn.Module) -> Backed:
    """The guide, with z ~ p(z) of this prior in rows in which it sees nothing.

    A prior of any kind may so be put into the model (a flow, a mixture) under a guide made for N(0, I).
    """
    return Backed(guide, prior)


class _WhereNothing(Messenger):
    """z of rows without `some` comes from `p`."""

    def __init__(self, some: Tensor, p: TorchDistribution) -> None:
        super().__init__()
        self.some, self.p = some, p

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "z" and not msg["is_observed"]:
            p = self.p if self.p.has_rsample else _Drawn(self.p)
            msg["fn"] = MixtureOf([msg["fn"], p], torch.stack([self.some, ~self.some], -1))


class _Drawn(TorchDistribution):
    """A distribution without a pathwise derivative, drawn as if it had one.

    In rows with nothing present log q(z) and log p(z) are the same whatever z is, so that there is none to miss.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, of: TorchDistribution) -> None:
        self.of = of
        super().__init__(of.batch_shape, of.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.of.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Drawn:
        return _Drawn(self.of.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.of.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.of.log_prob(value)
