"""The shared-latent model that most of the field uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.models.priors import as_prior
from pyro_mm.models.views import decoded

__all__ = ["Joint", "observe", "presence"]


class Joint(nn.Module):
    """z ~ p(z);  x_m ~ p(x_m | z) for every modality m:  p(z) prod_m p(x_m | z).

    Args:
        decoders: name -> network z -> p(x_m | z).
        prior: a module that returns p(z), or a dimension for N(0, I).
    """

    no_likelihood: str | None = None
    """Why the pair has no likelihood, for systems that score reconstructions in some other way."""

    def __init__(self, decoders: Mapping[str, nn.Module], prior: int | nn.Module) -> None:
        super().__init__()
        self.decoders = nn.ModuleDict(decoders)
        self.prior = as_prior(prior)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it generates."""
        return tuple(self.decoders)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", self.prior())
            for m, decode in self.decoders.items():
                observe(m, decode, z, batch)


def observe(m: str, decode: nn.Module, z: Tensor, batch: Batch, mask: Tensor | None = None) -> None:
    """x_m ~ p(x_m | z), observed where `mask` (default: the modality's presence) is True.

    A modality the batch has never heard of, or hides in every row, is scored nowhere.

    Raises:
        ValueError: naming the modality and both shapes when data and decoder disagree.
    """
    seen = presence(batch, m) if mask is None else mask
    with poutine.mask(mask=seen):
        fitted: Any = getattr(decode, "fitted", None)  # a variance that is the batch's own (`OptimalLink`)
        px = decoded(m, decode, z, batch) if mask is None and fitted is None else decode(z)
        x = batch.x.get(m)
        if x is not None and x.shape[1:] != px.event_shape:
            raise ValueError(
                f"modality '{m}': data have event shape {tuple(x.shape[1:])}, the decoder gives {tuple(px.event_shape)}"
            )
        px = px if x is None or fitted is None else fitted(px, x, seen)
        pyro.sample(m, px, obs=x)


def presence(batch: Batch, m: str) -> Tensor:
    """The modality's mask; False everywhere for one that the batch has never heard of."""
    known = batch.mask.get(m)
    return torch.zeros(len(batch), dtype=torch.bool, device=batch.device) if known is None else known
