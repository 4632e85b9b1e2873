"""Models with a shared latent and one private latent per modality."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.models.joint import observe, presence
from pyro_mm.models.priors import as_prior

__all__ = ["Private", "WithPriors", "joined"]


class Private(nn.Module):
    """z ~ p(z);  w_m ~ p(w_m);  x_m ~ p(x_m | z, w_m) for every modality m.

    z is what modalities have in common, w_m what is peculiar to one.  w_m is masked where its modality is missing.  A
    modality without a private latent is decoded from z alone.

    Args:
        decoders: name -> network that gives p(x_m | z, w_m) from the two concatenated.
        private: name -> p(w_m), or its dimension for N(0, I).
        prior: p(z), or its dimension for N(0, I).
    """

    no_likelihood: str | None = None
    """Why the pair has no likelihood, for systems that match latents in some other way."""

    def __init__(
        self,
        decoders: Mapping[str, nn.Module],
        private: Mapping[str, int | nn.Module],
        prior: int | nn.Module,
    ) -> None:
        super().__init__()
        if unknown := set(private) - set(decoders):
            raise ValueError(f"private latents for {sorted(unknown)}, but there are decoders for {list(decoders)} only")
        self.decoders = nn.ModuleDict(decoders)
        self.private = nn.ModuleDict({m: as_prior(p) for m, p in private.items()})
        self.prior = as_prior(prior)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it generates."""
        return tuple(self.decoders)

    def parents_of(self, m: str) -> tuple[str, ...]:
        """The latents that x_m is decoded from."""
        return ("z", f"w_{m}") if m in self.private else ("z",)

    def forward(self, batch: Batch) -> None:
        self.sites(batch, dict(self.private.items()))

    def sites(self, batch: Batch, private: Mapping[str, nn.Module]) -> None:
        """The model with these priors of the private latents in place of its own."""
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", self.prior())
            for m, decode in self.decoders.items():
                if m not in private:
                    observe(m, decode, z, batch)
                    continue
                with poutine.mask(mask=presence(batch, m)):
                    w = pyro.sample(f"w_{m}", private[m]())
                observe(m, decode, joined(z, w), batch)


class WithPriors(nn.Module):
    """A `Private` model in which some private latents have other priors: w_m ~ r_m(w_m).

    Args:
        model: the model; its networks are shared, not copied.
        priors: name -> r_m.
    """

    model: Private

    def __init__(self, model: Private, priors: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model, self.priors = model, nn.ModuleDict(priors)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it generates."""
        return self.model.names

    def forward(self, batch: Batch) -> None:
        self.model.sites(batch, {**self.model.private, **self.priors})


def joined(z: Tensor, w: Tensor) -> Tensor:
    """Two latents side by side, whichever plates each of them stands in."""
    lead = torch.broadcast_shapes(z.shape[:-1], w.shape[:-1])
    return torch.cat([z.expand(*lead, z.shape[-1]), w.expand(*lead, w.shape[-1])], -1)
