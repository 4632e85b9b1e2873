"""Modalities with a latent each, whose posteriors are one another's prior: the programs of MMVM."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_mm.batch import Batch
from pyro_mm.guides.bottom_up import Unimodal
from pyro_mm.guides.experts import opinions
from pyro_mm.guides.fusion import mixture_of_experts
from pyro_mm.models.joint import presence

__all__ = ["Borrowing", "Peers"]


class Peers(Unimodal):
    """z_m ~ h(z | X) = 1/|S| sum_{n in S} q_n(z | x_n) for every present m: MMVM's prior, which depends on the data.

    Args:
        encoders: name -> network x_m -> q_m, all over latents of one size.
    """

    symbol: str = "h"

    @property
    def printed_each(self) -> str:
        """One of its latents' distributions, as objectives print it."""
        return f"{self.symbol}(z_m | {', '.join(self.names)})"

    @property
    def printed_members(self) -> tuple[str, ...]:
        """The components of h, as objectives print them."""
        return tuple(f"q(z_m | {m})" for m in self.names)

    def forward(self, batch: Batch) -> None:
        h = mixture_of_experts(*opinions(self.encoders, batch))
        with pyro.plate("data", len(batch), dim=-1):
            for m in self.encoders:
                if m in batch.x and m not in batch.hidden:
                    with poutine.mask(mask=presence(batch, m)):
                        pyro.sample(f"z_{m}", h)


class Borrowing(Peers):
    """z_m ~ q_m(z | x_m) where x_m is present; z_m ~ h(z | X), somebody else's, where it is not; N(0, I) with nothing.

    How MMVM imputes a missing modality: its decoder is given a latent of another one.
    """

    symbol = "q"

    def posteriors(self, batch: Batch) -> dict[str, dist.TorchDistribution]:
        """q(z_m | what is present) of every modality, present or not, batch shape `(N,)` or `(S, N)`."""
        loc, scale, mask = opinions(self.encoders, batch)
        out = {}
        for i, m in enumerate(self.encoders):
            own = torch.zeros_like(mask)
            own[..., i] = True
            out[m] = mixture_of_experts(loc, scale, torch.where(mask[..., i : i + 1], own, mask))
        return out

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            for m, q in self.posteriors(batch).items():
                pyro.sample(f"z_{m}", q)
