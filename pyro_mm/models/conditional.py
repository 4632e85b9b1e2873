"""The conditional VAE: a model of one modality given others, which it does not generate."""

from __future__ import annotations

import pyro
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.modality import Modality
from pyro_mm.models.joint import observe
from pyro_mm.models.priors import as_prior

__all__ = ["Conditional"]


class Conditional(nn.Module):
    """z ~ p(z);  x ~ p(x | z, y), y given:  p(x | y) = integral p(z) p(x | z, y) dz  (Sohn et al. 2015).

    y is never a sample site, so the model has p(x | y) but no joint, no p(x) and no p(y); the evaluation functions
    raise `NoLikelihood` for those.  Rows that lack y are not scored.

    Args:
        target: the modality that is generated.
        given: the modalities it is conditioned on.
        dim: latent dimensions, or a prior module.
    """

    def __init__(self, target: Modality, given: tuple[Modality, ...], dim: int | nn.Module, width: int = 64) -> None:
        super().__init__()
        self.target, self.conditioned_on = target.name, tuple(m.name for m in given)
        self.prior = as_prior(dim)
        self.condition = nn.ModuleDict({m.name: Features(m, width) for m in given})
        self.decoder = target.decoder(self.prior().event_shape[0] + width * len(given))

    @property
    def names(self) -> tuple[str, ...]:
        """The modality it generates."""
        return (self.target,)

    def parents_of(self, m: str) -> tuple[str, ...]:
        """The latent, and what is given, that x depends on."""
        return ("z", *self.conditioned_on)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", self.prior())
            mask = batch.mask[self.target]
            parts = [z]
            for m, embed in self.condition.items():
                y = embed(batch.x[m], batch.mask[m])
                parts.append(y.expand(*z.shape[:-1], y.shape[-1]))
                mask = mask & batch.mask[m]
            joined = torch.cat(parts, -1)
            observe(self.target, self.decoder, joined, batch, mask=mask)


class Features(nn.Module):
    """A modality's encoder network as a plain feature map x `(..., *shape)` -> `(..., width)`."""

    def __init__(self, modality: Modality, width: int) -> None:
        super().__init__()
        self.modality = modality
        self.net = modality.net.encoder(modality.likelihood.feature_shape(modality.shape), width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Features `(..., width)` of x, of zeros where the mask is False."""
        return self.modality.apply_net(self.net, x, mask)
