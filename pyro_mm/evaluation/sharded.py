"""Estimators on rows in shards: over several processes, or over data that do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.ranks import Ranks, derived_seed
from pyro_mm.training.source import Rows

__all__ = ["sharded"]

Result = TypeVar("Result", Evidence, Tensor)


def sharded(
    estimate: Callable[..., Result],
    data: Any,
    *,
    seed: int = 0,
    rows: int = 1024,
    device: torch.device | str | None = None,
) -> Result:
    """`estimate(block, seed=...)` on every block of so many rows, the blocks dealt out to the processes there are.

        sharded(partial(log_marginal, model, guide, k=1000), test, seed=0)

    Every process gets the whole result, in the order of the rows.  A block's seed depends on `seed` and its number
    alone, so that the result is the same for any number of processes: bit for bit on equal hardware.  Where all rows
    are one block it is that of `estimate(data, seed=seed)`.

    Args:
        estimate: any estimator of one value per datum, `(batch, seed=) -> Evidence` or tensor `(N, ...)`, such as
            `log_marginal` or `log_conditional` with its other arguments given.
        data: a Batch, or a map-style data set whose `__getitems__` gives a Batch: one block at a time is read.
        rows: of a block; other numbers mean other random draws.
        device: where blocks are put first: the model's.  Results come back to the CPU.

    Raises:
        ValueError: no rows, or `rows` below 1.
        RuntimeError: another process failed; the message has its error.
    """
    n = len(data)
    if n < 1 or rows < 1:
        raise ValueError(f"sharded needs rows: {n} rows in blocks of {rows}")
    ranks, source = Ranks.now(), Rows(data, rows)
    own: dict[int, Result] = {}
    failure: Exception | None = None
    try:
        for i in range(ranks.rank, ceil(n / rows), ranks.world):
            block = source.take(torch.arange(i * rows, min((i + 1) * rows, n)))
            block = block if device is None else block.to(device)
            own[i] = _on_cpu(estimate(block, seed=derived_seed(seed, "block", i) if i else seed), len(block))
    except Exception as error:  # the others would wait for this one
        failure = error
    told = ranks.gathered(f"{type(failure).__name__}: {failure}" if failure is not None else "")
    if failure is not None:
        raise failure
    if failed := [f"process {r}: {text}" for r, text in enumerate(told) if text]:
        raise RuntimeError(f"sharded stopped because of {'; '.join(failed)}")
    found = {i: part for some in ranks.gathered(own) for i, part in some.items()}
    return _joined([found[i] for i in sorted(found)])


def _on_cpu(part: Result, n: int) -> Result:
    if not isinstance(part, Evidence | Tensor) or len(part) != n:
        what = f"{len(part)} values" if isinstance(part, Evidence | Tensor) else f"a {type(part).__name__}"
        raise TypeError(f"sharded needs an Evidence or a tensor of one value per datum; got {what} for {n} rows")
    if isinstance(part, Tensor):
        return part.cpu()
    tensors: dict[str, Any] = {name: v.cpu() for name, v in vars(part).items() if isinstance(v, Tensor)}
    return replace(part, **tensors)


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    # A block names the modalities that some of its rows have: the longest name is that of the most.
    quantity = max((p.quantity for p in parts), key=len)
    return replace(Evidence.join(parts), quantity=quantity)
