"""Spoil values on purpose: noise, dead pixels, something in the way, or another row's modality.

Each function returns a new `Batch` in which one modality is spoilt in every row that has it.  Values keep to what they
were: whole numbers (binary pixels, counts) are rounded after the noise and stay within the range of the modality, those
in [0, 1] stay inside it, so that the likelihood of a spoilt row is always defined.  Draws depend on function, modality,
seed and the number of rows alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.input_noise import noise_like
from pyro_mm.modality import Modality

__all__ = ["KINDS", "corrupted", "gaussian_noise", "occluded", "salt_and_pepper", "swapped", "with_noise"]


def corrupted(batch: Batch, name: str, kind: str, level: float, seed: int = 0) -> Batch:
    """One of `KINDS` at a level: `gaussian` (sd), `salt_and_pepper`, `occlusion` and `swap` (shares).

    Raises:
        ValueError: unknown kind or modality, a level out of range, or noise on class labels.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown corruption '{kind}'; there are {', '.join(KINDS)}")
    return KINDS[kind](batch, name, level, seed)


def gaussian_noise(batch: Batch, name: str, sd: float, seed: int = 0) -> Batch:
    """x + sd times standard normal noise, element by element.

    On values of 0 and 1 it flips an element with probability 1 - Phi(1 / (2 sd)); counts are rounded.

    Raises:
        ValueError: a negative `sd`, an unknown modality, or class labels.
    """
    x = _values(batch, name)
    if not sd >= 0:
        raise ValueError(f"'{name}': the noise's standard deviation must not be negative, got {sd}")
    noise = torch.randn(x.shape, generator=_source("gaussian", name, seed), dtype=torch.float32).to(x)
    return _put(batch, name, _kept(x + sd * noise, x))


def salt_and_pepper(batch: Batch, name: str, share: float, seed: int = 0) -> Batch:
    """This share of the elements, each by its own chance, becomes the least or the largest value of the modality.

    Raises:
        ValueError: a share outside [0, 1], an unknown modality, or class labels.
    """
    x = _values(batch, name)
    _share(share, name)
    low, high = _range(x, batch.mask[name])
    source = _source("salt", name, seed)
    hit = torch.rand(x.shape, generator=source).to(x.device) < share
    salt = torch.rand(x.shape, generator=source).to(x.device) < 0.5
    return _put(batch, name, torch.where(hit, torch.where(salt, high, low), x))


def occluded(batch: Batch, name: str, share: float, seed: int = 0) -> Batch:
    """A block that covers this share of the picture (of a vector: of its length) gets the modality's least value.

    It has the picture's own proportions and lies anywhere in it, with equal chances.

    Raises:
        ValueError: a share outside [0, 1], an unknown modality, or values without axes.
    """
    x = _values(batch, name)
    _share(share, name)
    axes = x.dim() - 1
    if axes == 0:
        raise ValueError(f"'{name}' has one number per row: nothing of it can be hidden and the rest seen")
    low, _ = _range(x, batch.mask[name])
    source = _source("occlusion", name, seed)
    used = min(axes, 2)
    inside = torch.ones_like(x, dtype=torch.bool)
    for axis in range(x.dim() - used, x.dim()):
        length = x.shape[axis]
        long = round(length * share ** (1 / used))
        start = (torch.rand(len(x), generator=source) * (length - long + 1)).floor().long().to(x.device)
        place = torch.arange(length, device=x.device)
        within = (place >= start[:, None]) & (place < start[:, None] + long)
        inside &= within.reshape(len(x), *[1] * (axis - 1), length, *[1] * (x.dim() - axis - 1))
    return _put(batch, name, torch.where(inside, low, x))


def swapped(batch: Batch, name: str, share: float = 1.0, seed: int = 0, label: str | None = None) -> Batch:
    """In this share of rows the modality is another row's: it is in conflict with the rest of its row.

    Args:
        label: a class label; with it the other row is always of another class, and rows without a label stay.

    Raises:
        ValueError: a share outside [0, 1], an unknown modality, or fewer than two rows (classes) to swap between.
    """
    _known(batch, name if label is None else label)
    _known(batch, name)
    _share(share, name)
    source = _source("swap", name, seed)
    able = batch.mask[name] if label is None else batch.mask[name] & batch.mask[label]
    pool = able.nonzero().flatten().cpu()
    rows = pool[torch.rand(len(pool), generator=source) < share]
    other = torch.arange(len(batch))
    classes = None if label is None else batch.x[label].cpu()
    for row in rows.tolist():
        others = pool[pool != row] if classes is None else pool[classes[pool] != classes[row]]
        if not len(others):
            raise ValueError(f"'{name}' cannot be swapped: there is no other {'row' if label is None else 'class'}")
        other[row] = others[int(torch.randint(len(others), (), generator=source))]
    return _put(batch, name, batch.x[name][other.to(batch.device)])


def with_noise(modality: Modality, batch: Batch, level: float) -> Modality:
    """The modality with noise on what its encoders see in training, of the kind and size that suit its values in these
    rows (`input_noise.noise_like`); the rows stay as they are.

    Raises:
        ValueError: naming the modality, for one that is unknown, labels and tokens, values that are all alike, or a
            level not above 0.
    """
    name, x = modality.name, _values(batch, modality.name)
    try:
        return replace(modality, noise=noise_like(modality.likelihood.features(x[batch.mask[name]]), level))
    except ValueError as error:
        raise ValueError(f"noise for '{name}': {error}") from error


KINDS = {"gaussian": gaussian_noise, "salt_and_pepper": salt_and_pepper, "occlusion": occluded, "swap": swapped}


def _kept(spoilt: Tensor, x: Tensor) -> Tensor:
    if bool((x == x.round()).all()):
        return spoilt.round().clamp(min(float(x.min()), 0.0), max(float(x.max()), 1.0)) if x.numel() else spoilt
    return spoilt.clamp(0, 1) if bool(((x >= 0) & (x <= 1)).all()) else spoilt


def _range(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    seen = x[mask]
    return (seen.min(), seen.max()) if seen.numel() else (x.new_zeros(()), x.new_zeros(()))


def _values(batch: Batch, name: str) -> Tensor:
    _known(batch, name)
    x = batch.x[name]
    if not x.is_floating_point():
        raise ValueError(f"'{name}' holds labels or tokens ({x.dtype}): noise means nothing to them; swap them instead")
    return x


def _share(share: float, name: str) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"'{name}': the share must be between 0 and 1, got {share}")


def _known(batch: Batch, name: str) -> None:
    if name not in batch.x:
        raise ValueError(f"unknown modality '{name}'; this batch has {list(batch.names)}")


def _source(draw: str, name: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{draw}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4]))


def _put(batch: Batch, name: str, value: Tensor) -> Batch:
    return Batch({**batch.x, name: value}, batch.mask)
