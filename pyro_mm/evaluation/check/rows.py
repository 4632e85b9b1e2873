"""Rows are independent, exchangeable, and may be batched in any way."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mm.evaluation.check.pair import Failure, Pair, Skip, difference, rows_text

__all__ = ["rebatching", "row_independence", "row_order"]


def row_independence(pair: Pair) -> str:
    """Other contents (data, presence and latents) of some rows leave the log-weights of the others alone."""
    if not pair.distinct_rows:
        raise Skip("all rows of the batch are equal")
    values = pair.latents(pair.holed)
    n = len(pair.holed)
    whole = pair.score(pair.holed, values)
    worst = 0.0
    for keep in (torch.arange(n) < n // 2, torch.arange(n) >= n // 2):
        keep = keep.to(whole.device)
        others = torch.arange(n, device=whole.device).flip(0)
        index = torch.where(keep, torch.arange(n, device=whole.device), others)
        changed = pair.score(pair.holed[index], values.rows(index))
        _compare(pair, whole[keep], changed[keep], "other contents of other rows change the log-weights of", keep)
        worst = max(worst, difference(whole[keep], changed[keep]))
    return f"other rows' contents move log-weights by {worst:.1g}"


def row_order(pair: Pair) -> str:
    """Permuting rows and latents together permutes the log-weights."""
    values = pair.latents(pair.holed)
    whole = pair.score(pair.holed, values)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1)).to(whole.device)
    shuffled = pair.score(pair.holed[order], values.rows(order))
    _compare(pair, whole[order], shuffled, "permuting the rows changes the log-weights of")
    return f"permuted rows: largest difference {difference(whole[order], shuffled):.1g}"


def rebatching(pair: Pair) -> str:
    """One batch, two unequal batches and single rows give the same log-weights."""
    values = pair.latents(pair.holed)
    whole = pair.score(pair.holed, values)
    index = torch.arange(len(whole), device=whole.device)
    worst = 0.0
    for size in (len(whole) // 2 + 1, 1):
        parts = [pair.score(pair.holed[i], values.rows(i)) for i in index.split(size)]
        _compare(pair, whole, torch.cat(parts), f"batches of {size} instead of {len(whole)} change the log-weights of")
        worst = max(worst, difference(whole, torch.cat(parts)))
    return f"two batches and single rows: largest difference {worst:.1g}"


def _compare(pair: Pair, a: Tensor, b: Tensor, what: str, keep: Tensor | None = None) -> None:
    gap = difference(a, b)
    if gap > pair.tolerance(a):
        rows = ~torch.isclose(a, b, rtol=0.0, atol=pair.tolerance(a), equal_nan=False)
        if keep is not None:
            rows = torch.zeros_like(keep).masked_scatter(keep, rows)
        raise Failure(f"{what} {rows_text(rows)} by up to {gap:.3g} nats")
