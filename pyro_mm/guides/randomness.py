"""Guides with randomness of their own: drop-out of modalities, and noise that no sample site shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.handlers import Program, Subsets, Verb

__all__ = ["RandomViews", "SemiImplicit", "random_views", "semi_implicit"]


class SemiImplicit(Verb):
    """See `semi_implicit`."""

    def __init__(self, program: Program, replays: int) -> None:
        super().__init__(program)
        self.replays = replays

    def forward(self, batch: Batch) -> Any:
        return self.program(batch)


def semi_implicit(guide: Program, replays: int) -> SemiImplicit:
    """A guide with randomness psi that no site shows, to be scored by the mean density over J more runs.

    q_J(z) = 1/(J+1) sum_{j=0..J} q(z | x, psi_j), psi_0 what z was drawn with (Sobolev & Vetrov 2019).  A likelihood is
    right with any J, 0 included; more runs lower its variance.  Where psi has few values, `random_views` is exact.
    The guide has to draw psi anew for every row; in a likelihood it is run on a row of its own for every draw of z.
    """
    if replays < 0:
        raise ValueError(f"replays must be at least 0, got {replays}")
    return SemiImplicit(guide, replays)


class RandomViews(Verb):
    """See `random_views`."""

    weights: Tensor

    def __init__(self, program: Program, subsets: Subsets, weights: Sequence[float] | None) -> None:
        super().__init__(program)
        self.subsets = subsets
        given_weights = torch.ones(len(subsets)) if weights is None else torch.as_tensor(weights, dtype=torch.float)
        if (
            given_weights.shape != (len(subsets),)
            or bool((given_weights < 0).any())
            or not bool(given_weights.sum() > 0)
        ):
            raise ValueError(f"{len(subsets)} subsets need as many weights, none negative and not all 0; got {weights}")
        self.register_buffer("weights", given_weights / given_weights.sum(), persistent=False)

    def forward(self, batch: Batch) -> Any:
        drawn = torch.multinomial(self.weights, len(batch), replacement=True)
        keep = {m: chosen.to(drawn.device)[drawn] for m, chosen in self.subsets.choice(batch.names).items()}
        return self.program(batch.masked(keep))

    def mixture_views(self, batch: Batch) -> Iterator[tuple[float, Program, Batch]]:
        """(probability, guide, what it sees) of every subset: the guide is the mixture of these."""
        for share, group in zip(self.weights.tolist(), self.subsets.groups, strict=True):
            if share > 0:
                yield share, self.program, batch.only(*group)


def random_views(
    guide: Program, subsets: Subsets | Sequence[Sequence[str]], weights: Sequence[float] | None = None
) -> RandomViews:
    """A guide that sees a random subset of the modalities in every row, drawn anew at every call.

    q(z | x) = sum_S w_S q(z | x_S).  In training every run has its own subsets, so that the guide learns to do without
    the others (drop-out of modalities); likelihoods use the mixture's density, summed over the subsets.

    Args:
        weights: w_S, in the order of the subsets; default: equal.
    """
    return RandomViews(guide, subsets if isinstance(subsets, Subsets) else Subsets(subsets), weights)
