"""Guides that climb a hierarchy: every modality's own latent first, the shared one from these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.models.hierarchical import Chain, branch_sites, chain

__all__ = ["BottomUp", "Unimodal", "where_seen"]


class BottomUp(nn.Module):
    """z_m ~ q(z_m | x_m) for every modality that is present, then z ~ q(z | {z_m}).

    The guide of NEXUS (Vasco et al. 2022).  z depends on the data through the draws of z_m alone, so that a closed-form
    KL is not valid for z_m: its prior p(z_m | z) needs z first.

    Args:
        encoders: name -> x_m -> q(z_m | x_m); of a longer branch several from the bottom up, x_m -> z_m -> z_m_2 ...
        top: a guide over these latents as if they were data, with `posterior(codes) -> q(z | codes)`: `Messages`,
            `Experts` of links, `perceptual_dropout` of either.
    """

    top: Any

    def __init__(self, encoders: Mapping[str, Chain], top: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({m: chain(c) for m, c in encoders.items()})
        self.top = top

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return tuple(self.encoders)

    def latent_sites(self, names: Sequence[str]) -> tuple[str, ...]:
        """The latents it infers from these modalities."""
        return (*(s for m in names for s in reversed(branch_sites(m, len(self.encoders[m])))), "z")  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            codes = {m: self._climb(m, own, batch) for m, own in self.encoders.items() if m in batch.x}
            pyro.sample("z", self.top.posterior(Batch._view(codes, {m: batch.mask[m] for m in codes}, batch.hidden)))

    def _climb(self, m: str, own: Any, batch: Batch) -> Tensor:
        """The highest latent of a branch."""
        value = batch.x[m]
        with poutine.mask(mask=batch.mask[m]):
            for site, encode in zip(reversed(branch_sites(m, len(own))), own, strict=True):
                value = pyro.sample(site, encode(value))
        return where_seen(value, batch.mask[m])


def where_seen(code: Tensor, mask: Tensor) -> Tensor:
    """The latent `(..., N, D)`, zero where its modality is missing: statistics of a batch must not know it either."""
    return torch.where(mask.unsqueeze(-1), code, 0.0)


class Unimodal(nn.Module):
    """z_m ~ q(z_m | x_m) for every modality by itself: the guide of `Independent`.

    Args:
        encoders: name -> network x_m -> q(z_m | x_m).
    """

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return tuple(self.encoders)

    @property
    def printed_each(self) -> str:
        """One of its posteriors, as objectives print it."""
        return "q(z_m | x_m)"

    def latent_sites(self, names: Sequence[str]) -> tuple[str, ...]:
        """The latents it infers from these modalities."""
        return tuple(f"z_{m}" for m in names)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            for m, encode in self.encoders.items():
                if m in batch.x and m not in batch.hidden:
                    with poutine.mask(mask=batch.mask[m]):
                        pyro.sample(f"z_{m}", encode(batch.x[m]))
