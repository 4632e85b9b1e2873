"""Forced perceptual dropout: a guide that learns to do without some of what it could see."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.handlers import Program, Verb

__all__ = ["PerceptualDropout", "kept_sets", "perceptual_dropout"]


class PerceptualDropout(Verb):
    """See `perceptual_dropout`."""

    def __init__(self, program: Program, rate: float) -> None:
        super().__init__(program)
        if not 0 <= rate <= 1:
            raise ValueError(f"the rate of dropout must be in [0, 1], got {rate}")
        self.rate = rate

    def posterior(self, batch: Batch) -> Any:
        """q(z | what is kept)."""
        return self.program.posterior(self.view(batch))  # type: ignore[attr-defined]

    def forward(self, batch: Batch) -> Any:
        return self.program(self.view(batch))

    def view(self, batch: Batch) -> Batch:
        """What the guide sees: in training some rows lose some modalities."""
        if not self.training or not self.rate:
            return batch
        names = [m for m in self.names or batch.names if m in batch.mask]
        masks = torch.stack(torch.broadcast_tensors(*(batch.mask[m] for m in names)))
        kept = dict(zip(names, dropped(masks, self.rate), strict=True))
        return Batch._view(batch.x, {m: kept.get(m, v) for m, v in batch.mask.items()}, batch.hidden)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def perceptual_dropout(guide: Program, rate: float) -> PerceptualDropout:
    """With probability `rate` a row loses a uniform number, 1 to M - 1, of its M modalities, any ones (Vasco et al.
    2022, section 3.3).

    Drawn anew at every call, for every row by itself, in training mode only.  M counts what is present in the row; one
    that has a single modality keeps it.  Round the top of a hierarchy (`BottomUp(encoders, perceptual_dropout(top,
    rate))`) the dropped modality's own latent is still inferred and its data are still reconstructed.
    """
    return PerceptualDropout(guide, rate)


def dropped(masks: Tensor, rate: float) -> Tensor:
    """Masks `(M, ..., N)` with what is dropped taken away.

    Random keys rank the present modalities; those of the lowest ranks go, so that every set of one size is as likely.
    """
    present = masks.sum(0)
    least = (torch.rand(present.shape, device=masks.device) * (present - 1)).floor().long() + 1  # 1 .. M-1
    hit = (torch.rand(present.shape, device=masks.device) < rate) & (present > 1)
    lost = torch.where(hit, least, 0)
    keys = torch.where(masks, torch.rand(masks.shape, device=masks.device), 2.0)
    rank = keys.argsort(0).argsort(0)
    return masks & (rank >= lost)


def kept_sets(names: Sequence[str], rate: float) -> dict[tuple[str, ...], float]:
    """The law of what is left of `names`: P(S) = rate / ((M - 1) C(M, |S|)) for 1 <= |S| < M, and 1 - rate for all."""
    m = len(names)
    if m < 2:
        return {tuple(names): 1.0}
    law = {s: rate / ((m - 1) * comb(m, r)) for r in range(1, m) for s in combinations(names, r)}
    return {**law, tuple(names): 1 - rate}
