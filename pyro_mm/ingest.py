"""From whatever a person has (arrays, lists, frames, None, NaN) to the checked tensors of a `Batch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch, as_tensor
from pyro_mm.modality import Modality

__all__ = ["ingest"]


def ingest(
    data: Mapping[str, Any],
    modalities: Sequence[Modality] | None,
    dtype: torch.dtype,
    masks: Mapping[str, Tensor] | None = None,
) -> Batch:
    """The work of `Batch.of`, see there; a row is missing where its mask `(N,)` is False, too."""
    known = {m.name: m for m in modalities} if modalities is not None else {}
    if known and (extra := set(data) - set(known)):
        raise ValueError(f"data hold {sorted(extra)}, but the modalities are {list(known)}")
    names = list(known) or list(data)
    given = {m: _read(m, data[m]) for m in names if data.get(m) is not None}
    if not given:
        raise ValueError("every modality is missing: at least one needs values")
    rows = {m: len(v) for m, v in given.items()}
    if len(set(rows.values())) > 1:
        raise ValueError(f"modalities have different numbers of rows: {rows}")
    n = next(iter(rows.values()))
    x, mask = {}, {}
    for m in names:
        x[m], mask[m] = _column(m, given.get(m), known.get(m), n, dtype, (masks or {}).get(m))
    batch = Batch(x, mask)
    # Where nothing is present the batch knows no value but 0; the likelihood's own lies inside its support.
    filled = {m: x[m] if m in known and not bool(mask[m].any()) else v for m, v in batch.x.items()}
    return Batch._view(filled, batch.mask)


def _read(name: str, value: Any) -> Tensor:
    try:
        tensor = as_tensor(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"modality '{name}' cannot be read as an array of numbers: {error}") from error
    if tensor.dim() == 0:
        raise ValueError(f"modality '{name}' is a single number; rows come first: shape (N, ...)")
    return tensor


def _column(
    name: str, value: Tensor | None, modality: Modality | None, n: int, dtype: torch.dtype, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Checked values and presence of one modality."""
    if modality is not None and value is not None and value.dim() == 1 and bool(torch.isnan(value).all()):
        value = None  # a list of None says nothing about the event shape
    if value is None:
        if modality is None:
            raise ValueError(f"modality '{name}' is None: pass `modalities` so that its shape is known")
        fill = modality.likelihood.fill(modality.shape)
        fill = fill.to(dtype) if fill.is_floating_point() else fill
        return fill.expand(n, *modality.shape).clone(), torch.zeros(n, dtype=torch.bool)
    if modality is not None:
        value = _shaped(value, modality)
    seen = torch.ones(n, dtype=torch.bool, device=value.device) if mask is None else mask.to(value.device)
    if value.is_floating_point():
        if mask is not None:  # whatever is under the mask, NaN in part included
            value = torch.where(seen.view(-1, *[1] * (value.dim() - 1)), value, torch.nan)
        seen = _present(name, value)
        value = value.to(dtype)
    elif value.dtype is torch.bool or modality is None:
        value = value.to(dtype) if value.dtype in (torch.bool, torch.uint8) else value
    if modality is not None:
        value = modality.likelihood.cast(value, dtype)
        fill = modality.likelihood.fill(modality.shape).to(value)
        value = torch.where(seen.view(-1, *[1] * (value.dim() - 1)), value, fill)
        modality.likelihood.check(value[seen], name)
    return value, seen


def _shaped(value: Tensor, modality: Modality) -> Tensor:
    """`value` as `(N, *shape)`; a flat or channel-less layout of the same size is reshaped."""
    want = tuple(modality.shape)
    if tuple(value.shape[1:]) == want:
        return value
    squeezed = tuple(s for s in value.shape[1:] if s != 1)
    flat = (int(torch.Size(want).numel()),)
    if squeezed in (tuple(s for s in want if s != 1), flat):
        return value.reshape(len(value), *want)
    raise ValueError(f"modality '{modality.name}' has event shape {tuple(value.shape[1:])}, expected {want}")


def _present(name: str, value: Tensor) -> Tensor:
    """Rows without NaN; a partly-NaN row is refused because a modality is present or missing as a whole."""
    nan = torch.isnan(value).unsqueeze(-1).flatten(1)
    some, every = nan.any(-1), nan.all(-1)
    if bool((some & ~every).any()):
        rows = (some & ~every).nonzero().flatten()
        raise ValueError(
            f"modality '{name}' is partly NaN in {len(rows)} rows (first: {rows[:5].tolist()}); a modality is "
            "present or missing as a whole: split it into several modalities, or fill those values"
        )
    return ~every
