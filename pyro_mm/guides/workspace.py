"""A global workspace: a few slots that the modalities compete to write to, and that all of them hear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_mm.guides.set_attention import MaskedAttention

__all__ = ["Workspace"]


class Workspace(nn.Module):
    """c = read(W), W slots that the messages h_m of the present modalities have written to (Goyal et al. 2022).

    In each round  W <- attention(Q = W; K, V = h), in which only the `top` highest-scoring modalities share a slot
    (competition), and between rounds  h_m <- h_m + attention(Q = h_m; K, V = W)  (broadcast).  W starts from learnt
    slots; c is one affine map of all slots.  It does not depend on the order of the modalities.  A way to combine
    `Messages`.

    Args:
        width: of messages and slots.
        slots: how many.
        top: how many modalities write to one slot in each head; None is all.  With 1 the choice has no gradient.
        rounds: of writing; at least 1.
        heads: of every attention; a divisor of the width.

    Raises:
        ValueError: fewer than 1 slot or round; heads or `top` that do not fit.
    """

    def __init__(self, width: int, slots: int = 4, top: int | None = 2, rounds: int = 2, heads: int = 4) -> None:
        super().__init__()
        if slots < 1 or rounds < 1:
            raise ValueError(f"a workspace has at least 1 slot and 1 round, got {slots} and {rounds}")
        self.slots = nn.Parameter(torch.randn(slots, width))
        self.write = MaskedAttention(width, heads, top)
        self.broadcast = MaskedAttention(width, heads) if rounds > 1 else None
        self.tokens, self.space = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read = nn.Linear(slots * width, width)
        self.rounds = rounds

    def forward(self, messages: Tensor, mask: Tensor) -> Tensor:
        """`(..., M, W)` and presence `(..., M)` to `(..., W)`."""
        h = torch.where(mask.unsqueeze(-1), messages, 0.0)
        space = self.slots.expand(*h.shape[:-2], *self.slots.shape)
        open_slots = mask.new_ones(space.shape[:-1])
        for turn in range(self.rounds):
            if turn and self.broadcast is not None:
                h = h + self.broadcast(self.tokens(h), self.space(space), open_slots)
            space = self.write(self.space(space), self.tokens(h), mask)
        out: Tensor = self.read(space.flatten(-2))
        return out
