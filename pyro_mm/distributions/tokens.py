"""A distribution over variable-length token sequences."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints

__all__ = ["TokenSequence"]


class TokenSequence(TorchDistribution):
    """p(x) = prod_{t <= end} Cat(x_t | logits_t), `end` the first position that holds `pad` (or the last position).

    Padding after the end has probability 1, so the probabilities of all valid sequences sum to 1.  Tokens are
    independent given the logits; dependence between them has to come from the latent.

    Args:
        logits: `(..., T, V)`.
        pad: the token that ends a sequence and fills the rest.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(self, logits: Tensor, pad: int = 0) -> None:
        self.logits, self.pad = logits, pad
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TokenSequence:
        return TokenSequence(self.logits.expand(torch.Size(batch_shape) + self.logits.shape[-2:]), self.pad)

    def _live(self, x: Tensor) -> Tensor:
        """True up to and including the first padding token."""
        pads = (x == self.pad).long()
        return (pads.cumsum(-1) - pads) == 0

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        draw = Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
        return torch.where(self._live(draw), draw, self.pad)

    def log_prob(self, value: Tensor) -> Tensor:
        logp = Categorical(logits=self.logits, validate_args=False).log_prob(value)
        return torch.where(self._live(value), logp, 0.0).sum(-1)

    @property
    def mode(self) -> Tensor:
        """The most probable token at each position, cut at the first end."""
        best = self.logits.argmax(-1)
        return torch.where(self._live(best), best, self.pad)
