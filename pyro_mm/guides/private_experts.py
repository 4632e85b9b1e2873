"""Guides for models with private latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
from pyro import poutine
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.handlers import Given, Program

__all__ = ["PrivateExperts", "shared_given"]


class PrivateExperts(nn.Module):
    """z ~ q(z | x_S);  w_m ~ q(w_m | x_m) for every present modality.

    Args:
        shared: a guide of z with `posterior(batch)`: `Experts`, `Surrogate`, `JointEncoder`, `Messages`.
        private: name -> network x_m -> q(w_m | x_m).
        letter: of the private sites: `w` for `Private`, `z` for the branches of a `Hierarchical` model.
    """

    shared: Any

    def __init__(self, shared: nn.Module, private: Mapping[str, nn.Module], letter: str = "w") -> None:
        super().__init__()
        self.shared, self.letter = shared, letter
        self.private = nn.ModuleDict(private)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        shared = tuple(self.shared.names)
        return (*shared, *(m for m in self.private if m not in shared))

    def latent_sites(self, names: Sequence[str]) -> tuple[str, ...]:
        """The latents it infers from these modalities."""
        return ("z", *(f"{self.letter}_{m}" for m in names if m in self.private))

    def forward(self, batch: Batch) -> None:
        self.infer(batch, batch)

    def infer(self, shared: Batch, private: Batch) -> None:
        """z from one view of the rows, the private latents from another."""
        with pyro.plate("data", len(shared), dim=-1):
            pyro.sample("z", self.shared.posterior(shared))
            for m, encode in self.private.items():
                if m in private.x:
                    with poutine.mask(mask=private.mask[m]):
                        pyro.sample(f"{self.letter}_{m}", encode(private.x[m]))


class SharedGiven(Given):
    """See `shared_given`."""

    program: Any

    def __init__(self, program: Program, shown: tuple[str, ...]) -> None:
        super().__init__(program, shown)
        if not isinstance(program, PrivateExperts):
            raise TypeError(f"shared_given() is for a PrivateExperts guide, got {type(program).__name__}")

    def printed_factors(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """Latents and what they are inferred from, as objectives print them."""
        z, *own = self.program.latent_sites(self.program.names)
        return ((z,), self.shown), (tuple(own), tuple(self.program.private))

    def forward(self, batch: Batch) -> None:
        self.program.infer(batch.only(*self.shown), batch)


def shared_given(guide: PrivateExperts, *names: str) -> SharedGiven:
    """The guide whose shared latent sees only these modalities, while every private latent sees its own.

    z ~ q(z | x_S),  w_m ~ q(w_m | x_m) for all m: how DMVAE trains cross-generation (Lee & Pavlovic 2021).
    """
    if not names:
        raise ValueError("shared_given(guide) needs at least one modality")
    return SharedGiven(guide, names)
