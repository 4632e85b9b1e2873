"""Hierarchies of latents above the data: a top latent, levels that all modalities share, and one branch for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.models.joint import observe, presence
from pyro_mm.models.priors import as_prior

__all__ = ["Hierarchical", "Independent", "branch_sites", "chain", "trunk_sites"]

Chain = nn.Module | Sequence[nn.Module]


class Hierarchical(nn.Module):
    """z ~ p(z);  z_m ~ p(z_m | z);  x_m ~ p(x_m | z_m) for every modality m (Vasco et al. 2022).

    A branch may be longer, z -> z_m_3 -> z_m_2 -> z_m -> x_m; a modality without one is decoded from the shared latent.
    A `trunk` of L links puts levels between z and the branches that all modalities share: z_l ~ p(z_l | z, z_L, ...,
    z_{l+1}) for l = L, ..., 1, and all else depends on z_1 (Dorent et al. 2023 with no branches).  Latents of a branch
    are masked where their modality is missing: they integrate out exactly.

    Args:
        decoders: name -> network that gives p(x_m | the latent above it).
        branches: name -> a link such as `Link`, or several from the top down.
        prior: a module that returns p(z), or a dimension for N(0, I).
        trunk: links from the top down; each is given all shared latents above it, concatenated.
    """

    def __init__(
        self,
        decoders: Mapping[str, nn.Module],
        branches: Mapping[str, Chain],
        prior: int | nn.Module,
        trunk: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        if unknown := set(branches) - set(decoders):
            raise ValueError(f"branches for {sorted(unknown)}, but there are decoders for {list(decoders)} only")
        self.decoders = nn.ModuleDict(decoders)
        self.branches = nn.ModuleDict({m: chain(c) for m, c in branches.items()})
        self.trunk = nn.ModuleList(trunk)
        self.prior = as_prior(prior)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it generates."""
        return tuple(self.decoders)

    def parents_of(self, m: str) -> tuple[str, ...]:
        """The latent that x_m is decoded from."""
        return (f"z_{m}",) if m in self.branches else (("z", *trunk_sites(len(self.trunk)))[-1],)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            shared = [pyro.sample("z", self.prior())]
            for site, link in zip(trunk_sites(len(self.trunk)), self.trunk, strict=True):
                shared.append(pyro.sample(site, link(torch.cat(shared, -1))))
            for m, decode in self.decoders.items():
                observe(m, decode, self._descend(m, shared[-1], batch), batch)

    def _descend(self, m: str, above: Tensor, batch: Batch) -> Tensor:
        """The lowest latent of a branch."""
        if m not in self.branches:
            return above
        own: nn.ModuleList = self.branches[m]  # type: ignore[assignment]
        with poutine.mask(mask=presence(batch, m)):
            for site, link in zip(branch_sites(m, len(own)), own, strict=True):
                above = pyro.sample(site, link(above))
        return above


class Independent(nn.Module):
    """z_m ~ p(z_m);  x_m ~ p(x_m | z_m), one VAE per modality side by side: no two modalities depend on each other.

    Args:
        decoders: name -> network z_m -> p(x_m | z_m).
        priors: name -> p(z_m), or its dimension for N(0, I).
        whole: also run what is hidden in every row, for a guide that knows what to make of it; by default it is left
            out, as nothing of it would be scored.
    """

    no_likelihood: str | None = None
    """Why the pair has no likelihood, for systems whose prior is made of the data."""

    def __init__(
        self, decoders: Mapping[str, nn.Module], priors: Mapping[str, int | nn.Module], whole: bool = False
    ) -> None:
        super().__init__()
        self.decoders = nn.ModuleDict(decoders)
        self.priors = nn.ModuleDict({m: as_prior(p) for m, p in priors.items()})
        self.whole = whole

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it generates."""
        return tuple(self.decoders)

    def parents_of(self, m: str) -> tuple[str, ...]:
        """The latent that x_m is decoded from."""
        return (f"z_{m}",)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            for m, decode in self.decoders.items():
                if m in batch.hidden and not self.whole:
                    continue
                with poutine.mask(mask=presence(batch, m)):
                    z = pyro.sample(f"z_{m}", self.priors[m]())
                observe(m, decode, z, batch)


def chain(links: Chain) -> nn.ModuleList:
    """One module, or several, as a list."""
    return nn.ModuleList([links] if isinstance(links, nn.Module) and not isinstance(links, nn.ModuleList) else links)


def branch_sites(m: str, depth: int) -> list[str]:
    """From the top down: `z_m_3`, `z_m_2`, `z_m`."""
    return [f"z_{m}" if level == 1 else f"z_{m}_{level}" for level in range(depth, 0, -1)]


def trunk_sites(depth: int) -> list[str]:
    """From the top down: `z_3`, `z_2`, `z_1`."""
    return [f"z_{level}" for level in range(depth, 0, -1)]
