"""Attention among the messages of the present modalities: a permutation-invariant network of any set of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["MaskedAttention", "SetAttention"]


class MaskedAttention(nn.Module):
    """Softmax attention of queries over the present tokens, in several heads; 0 plus a bias where none is present.

    Args:
        width: W of queries, tokens and results.
        heads: a divisor of W.
        top: how many tokens of the highest scores share the attention of a query in each head; None is all.

    Raises:
        ValueError: the heads do not divide W, or `top` is less than 1.
    """

    def __init__(self, width: int, heads: int = 4, top: int | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        if top is not None and top < 1:
            raise ValueError(f"at least 1 token must win, got top={top}")
        self.heads, self.top = heads, top
        self.queries, self.values = nn.Linear(width, width), nn.Linear(width, width)
        self.keys = nn.Linear(width, width, bias=False)  # a bias would be common to all scores, and cancel
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """`(..., Q, W)`, `(..., T, W)` and presence `(..., T)` to `(..., Q, W)`."""
        # What is absent is zero before any product, so that no value of it, however wild, reaches a gradient.
        inside = torch.where(mask.unsqueeze(-1), tokens, 0.0)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for part in (self.queries(queries), self.keys(inside), self.values(inside))
        )
        seen = mask[..., None, None, :]
        score = torch.where(seen, q @ k.mT / q.shape[-1] ** 0.5, -torch.inf)
        if self.top is not None and self.top < score.shape[-1]:
            least = score.topk(self.top, -1).values[..., -1:]
            score = torch.where(score >= least, score, -torch.inf)
        share = torch.where(seen.any(-1, keepdim=True), score, 0.0).softmax(-1)
        share = torch.where(seen, share, 0.0)
        out: Tensor = self.out((share @ v).transpose(-3, -2).flatten(-2))
        return out


class SetAttention(nn.Module):
    """c = sum_{m in S} chi(h_m), h the messages after layers of self-attention among the present ones.

    A layer is  h <- h + attention(h, h);  h <- h + MLP(h),  with layer norms before both (a set transformer without
    positions, Lee et al. 2019), so c does not depend on the order of the modalities (Hirt et al. 2024, section 4).  A
    way to combine `Messages`.

    Args:
        width: W of the messages.
        heads: of every attention; a divisor of W.
        layers: how many, at least 1.

    Raises:
        ValueError: the heads do not divide W, or there is no layer.
    """

    def __init__(self, width: int, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"set attention takes at least 1 layer, got {layers}")
        self.layers = nn.ModuleList([Layer(width, heads) for _ in range(layers)])
        self.chi = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, messages: Tensor, mask: Tensor) -> Tensor:
        """`(..., M, W)` and presence `(..., M)` to `(..., W)`."""
        h = torch.where(mask.unsqueeze(-1), messages, 0.0)
        for layer in self.layers:
            h = layer(h, mask)
        return torch.where(mask.unsqueeze(-1), self.chi(h), 0.0).sum(-2)


class Layer(nn.Module):
    """One layer of self-attention and of a network for every token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = MaskedAttention(width, heads)
        self.net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        tokens = self.before(h)
        h = h + self.attention(tokens, tokens, mask)
        out: Tensor = h + self.net(self.after(h))
        return out
