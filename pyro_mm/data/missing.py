"""Hide values on purpose: completely at random, by something observed, or by the hidden value itself.

Each function returns a new `Batch` (or `Binarised`) in which more is missing; what is hidden is overwritten, so that
it cannot leak, and the caller's data are untouched.  Draws depend on the function, the modality's name, the row and
the seed alone.  With `keep_one` (the default) no row loses everything: of a row that would, one of the modalities it
had is kept, drawn uniformly among those this call would have hidden.  The shares then hold before that rescue, and
`mcar` says by how much it lowers them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.data.binarise import Binarised

__all__ = ["Shares", "few_labels", "mar", "mcar", "mnar"]

D = TypeVar("D", Batch, Binarised)
Shares = Sequence[float] | Tensor | Callable[[Tensor], Tensor]
"""How likely a row is hidden: one probability per class, or a function of values `(N, *event)` -> `(N,)`."""


def mcar(data: D, share: float | Mapping[str, float], seed: int = 0, keep_one: bool = True) -> D:
    """Missing completely at random: each row loses modality m with probability `share[m]`, independently.

    With `keep_one` and M modalities complete before, the expected share is share[m] - prod_j share[j] / M.

    Args:
        share: one probability for every modality, or one per named modality (0 for the others).
        keep_one: see the module; False lets rows lose everything (such a row adds 0 to every objective).

    Raises:
        ValueError: a probability outside [0, 1], or an unknown modality.
    """
    batch = _batch(data)
    shares = dict(share) if isinstance(share, Mapping) else dict.fromkeys(batch.names, share)
    _known(batch, *shares)
    lost = {}
    for m, p in shares.items():
        chance = _probability(torch.tensor(p, dtype=torch.float64), m)
        lost[m] = _uniform(batch, f"mcar/{m}", seed) < chance.to(batch.device)
    return _without(data, lost, seed, keep_one)


def few_labels(data: D, count: int, label: str = "label", seed: int = 0) -> D:
    """Weak supervision: `count` rows keep their class label, as many of every class as can be; the others lose it.

    Rows are chosen within a class by the seed, and a larger count keeps all that a smaller one keeps.  A row that had
    nothing but its label may end with nothing.

    Raises:
        ValueError: an unknown modality, values that are no classes, or a count that is not between the number of
            classes and that of labelled rows.
    """
    batch = _batch(data)
    _known(batch, label)
    values, seen = batch.x[label], batch.mask[label]
    if values.dim() != 1 or values.is_floating_point():
        raise ValueError(f"'{label}' holds no class labels (N,): shape {tuple(values.shape)} of {values.dtype}")
    classes = values[seen].unique()
    if not len(classes) <= count <= int(seen.sum()):
        raise ValueError(f"between {len(classes)} and {int(seen.sum())} rows can keep '{label}', not {count}")
    score = _uniform(batch, f"labels/{label}", seed)
    # A row's place within its class, then the class: the first of every class, the second of every class, ...
    place = torch.full((len(batch),), len(batch), dtype=torch.long, device=batch.device)
    for c in classes:
        rows = (seen & (values == c)).nonzero().flatten()
        place[rows[score[rows].argsort()]] = torch.arange(len(rows), device=batch.device)
    rank = torch.searchsorted(classes, values)
    order = torch.argsort(place * (len(classes) + 1) + torch.where(seen, rank, 0), stable=True)
    lost = torch.ones_like(seen)
    lost[order[:count]] = False
    return _without(data, {label: lost}, seed, False)


def mar(data: D, name: str, by: str, share: Shares, seed: int = 0, keep_one: bool = True) -> D:
    """Missing at random: a row loses `name` with a probability that depends on its value of `by`, which is observed.

    Args:
        by: a modality that is present in every row (`Binarised` pixels count as grey values).
        share: per class of `by` (a label), or a function of by's values `(N, *event)` -> `(N,)`.
        keep_one: see the module; as `by` stays present, it changes nothing.

    Raises:
        ValueError: `by` is missing in some row or is `name` itself (that is `mnar`), an unknown modality,
            probabilities outside [0, 1] or of another shape, or a class without one.
    """
    batch = _batch(data)
    _known(batch, name, by)
    if by == name:
        raise ValueError(f"'{name}' cannot be missing at random by its own value: that is mnar")
    if absent := int((~batch.mask[by]).sum()):
        raise ValueError(f"'{by}' must be observed in every row to decide what is missing; {absent} rows lack it")
    return _by(data, name, batch.x[by], by, share, f"mar/{name}", seed, keep_one)


def mnar(data: D, name: str, share: Shares, seed: int = 0, cause: Tensor | None = None, keep_one: bool = True) -> D:
    """Missing not at random: a row loses `name` with a probability that depends on the very value it loses.

    A model that ignores why something is missing is biased on such data.

    Args:
        share: per class, or a function of the values `(N, *event)` -> `(N,)`.
        cause: what stands for the value, such as the class `(N,)` behind an image (MultiVae's per-class
            `missing_probabilities` for MHD); default: the modality's own values.
        keep_one: see the module; False hides `name` even where it is all a row has.

    Raises:
        ValueError: an unknown modality, probabilities outside [0, 1] or of another shape, a class without one, or
            `cause` of another length.
    """
    batch = _batch(data)
    _known(batch, name)
    values = batch.x[name] if cause is None else cause
    if len(values) != len(batch):
        raise ValueError(f"cause of '{name}' has {len(values)} rows, the batch {len(batch)}")
    return _by(data, name, values, name if cause is None else "cause", share, f"mnar/{name}", seed, keep_one)


def _by(data: D, name: str, values: Tensor, source: str, share: Shares, draw: str, seed: int, keep_one: bool) -> D:
    """Hide `name` with the probability that `share` gives its row; rows that lack it already are not looked at."""
    batch = _batch(data)
    seen = batch.mask[name]
    chance = torch.zeros(len(batch), dtype=torch.float64, device=batch.device)
    known = values[seen.to(values.device)]
    given = share(known) if callable(share) else _of_class(torch.as_tensor(share), known, source)
    if given.shape != (len(known),):
        raise ValueError(f"shares of '{name}' have shape {tuple(given.shape)}, expected ({len(known)},)")
    chance[seen] = given.to(chance)
    return _without(data, {name: _uniform(batch, draw, seed) < _probability(chance, name)}, seed, keep_one)


def _of_class(share: Tensor, values: Tensor, source: str) -> Tensor:
    """The probability of each row's class."""
    if values.dim() != 1 or values.is_floating_point():
        raise ValueError(
            f"probabilities per class need integer labels (N,); '{source}' has shape {tuple(values.shape)} of "
            f"{values.dtype}: pass a function of the values instead"
        )
    if len(values) and not (values.min() >= 0 and values.max() < len(share)):
        raise ValueError(
            f"'{source}' has classes {values.min().item()} to {values.max().item()}, "
            f"but there are {len(share)} probabilities"
        )
    return share.to(values.device)[values]


def _probability(chance: Tensor, name: str) -> Tensor:
    """`chance`, checked."""
    if not bool(((chance >= 0) & (chance <= 1)).all()):
        raise ValueError(f"shares of '{name}' must be probabilities in [0, 1]")
    return chance


def _uniform(batch: Batch, draw: str, seed: int) -> Tensor:
    """Uniform numbers `(N,)` of this seed; different draws (function and modality) never share theirs."""
    digest = hashlib.sha256(f"{seed}/{draw}".encode()).digest()
    source = torch.Generator().manual_seed(int.from_bytes(digest[:4]))
    return torch.rand(len(batch), generator=source, dtype=torch.float64).to(batch.device)


def _without(data: D, lost: Mapping[str, Tensor], seed: int, keep_one: bool) -> D:
    """`data` without the rows marked in `lost`."""
    batch = _batch(data)
    mask = dict(batch.mask)
    for m, gone in lost.items():
        mask[m] = mask[m] & ~gone
    if keep_one and lost:
        had = {m: batch.mask[m] & gone for m, gone in lost.items()}
        empty = batch.present() & ~torch.stack(list(mask.values())).any(0)
        # The largest of independent uniforms: each modality that the row had is as likely as any other.
        score = torch.stack([torch.where(h, _uniform(batch, f"keep/{m}", seed), -1.0) for m, h in had.items()])
        kept = score.argmax(0)
        for i, m in enumerate(had):
            mask[m] = mask[m] | (empty & (kept == i))
    hidden = Batch(batch.x, mask)
    same: Any = Binarised(hidden, data.pixels, data.levels) if isinstance(data, Binarised) else hidden
    return same


def _batch(data: Batch | Binarised) -> Batch:
    batch = data.batch if isinstance(data, Binarised) else data
    if not isinstance(batch, Batch):
        raise TypeError(
            f"rows can be hidden in a Batch or a Binarised, not in a {type(data).__name__}: it draws its rows itself; "
            "take Splits.train_batch(), or hide rows in its parts"
        )
    if any(mask.dim() != 1 for mask in batch.mask.values()):
        raise ValueError("missingness is drawn per row: masks must be (N,), not the stacked views of Batch.subsets")
    return batch


def _known(batch: Batch, *names: str) -> None:
    if unknown := [m for m in names if m not in batch.mask]:
        raise ValueError(f"unknown modality {unknown}; this batch has {list(batch.names)}")
