"""Grey pixels as probabilities of binary ones: drawn anew at every fetch, or once and for all.

Re-drawing is what published MNIST likelihoods are trained with ("dynamic binarisation"); a test set must be drawn once,
or two evaluations of one model would differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_mm.batch import Batch, Rows, as_names

__all__ = ["Binarised", "binarised_once"]


class Binarised(Dataset[Batch]):
    """Rows of `batch` in which the modalities `names` are Bernoulli draws with probability value / `levels`.

    Every fetch draws again, from torch's global generator, so that `torch.manual_seed` repeats a run.  Masks and the
    other modalities are the batch's own.  Use it as `DataLoader(dataset, collate_fn=Batch.collate)`.

    Args:
        batch: grey values in 0..`levels`, `(N, *event)`; integers (uint8) are fine and save memory.
        names: the modalities to binarise; one name or several.
        levels: the value that stands for probability 1: 255 for bytes, 16 for scikit-learn's digits, 1 for shares.

    Raises:
        ValueError: naming the modality, for an unknown name or a present value outside 0..`levels`.
    """

    def __init__(self, batch: Batch, names: str | Sequence[str], levels: float = 1) -> None:
        self.pixels = as_names(names)
        self.batch, self.levels = batch, levels
        _check(batch, self.pixels, levels)

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, rows: Rows) -> Batch:
        """Fresh draws of these rows; an int gives a batch of one row."""
        return _binary(self.batch[rows], self.pixels, self.levels, torch.rand)

    def __getitems__(self, rows: list[int]) -> Batch:
        """A whole minibatch at once (DataLoader looks for this name)."""
        return self[rows]

    def __repr__(self) -> str:
        return f"Binarised({', '.join(self.pixels)} of {self.batch!r})"


def binarised_once(batch: Batch, names: str | Sequence[str], seed: int, levels: float = 1) -> Batch:
    """`batch` with the modalities `names` drawn from Bernoulli(value / `levels`) by `seed` alone.

    Arguments and errors as in `Binarised`; torch's global generator is neither read nor moved.
    """
    pixels = as_names(names)
    _check(batch, pixels, levels)
    source = torch.Generator().manual_seed(seed)

    def uniform(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.rand(shape, dtype=dtype, generator=source).to(device)

    return _binary(batch, pixels, levels, uniform)


def _binary(batch: Batch, names: Sequence[str], levels: float, uniform: Callable[..., Tensor]) -> Batch:
    x = dict(batch.x)
    for m in names:
        grey = x[m]
        # float32 in every default dtype, so that a seed gives the same picture in each.
        u = uniform(grey.shape, dtype=torch.float32, device=grey.device)
        dtype = grey.dtype if grey.is_floating_point() else torch.get_default_dtype()
        x[m] = (u < grey.to(torch.float32) / levels).to(dtype)
    return Batch(x, batch.mask)


def _check(batch: Batch, names: Sequence[str], levels: float) -> None:
    if not levels > 0:
        raise ValueError(f"levels must be positive, got {levels}")
    for m in names:
        if m not in batch.x:
            raise ValueError(f"unknown modality '{m}'; this batch has {list(batch.names)}")
        grey = batch.x[m]
        if len(grey) and (grey.min() < 0 or grey.max() > levels):
            raise ValueError(
                f"modality '{m}' must hold grey values from 0 to {levels:g} (`levels`); "
                f"it has {grey.min().item():g} to {grey.max().item():g}"
            )
