"""One digit in five ways: MNIST digits of a class, each on a coloured texture of its own.

The design of PolyMNIST (Sutter et al. 2021), made from MNIST's files alone: there the backgrounds are crops of five
photographs, here of five drawn textures.  It is therefore *PolyMNIST-like*, and its figures do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_mm.batch import Batch, Rows
from pyro_mm.data.idx_sets import TEST_SEED, VALIDATION_SEED, WHITE, WHOLE
from pyro_mm.data.mnist import mnist_source
from pyro_mm.data.paired import Paired
from pyro_mm.data.seeds import drawn_by
from pyro_mm.data.splits import Splits
from pyro_mm.likelihoods import Categorical, Laplace
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP, Conv

__all__ = ["Coloured", "poly_mnist_like", "textures"]

SIDE, TEXTURE = 28, 128
NAMES = tuple(f"m{i}" for i in range(5))
# Two colours each, in every channel on one side of the middle, so that an inverted digit stands out anywhere.
COLOURS = (
    ((20, 40, 80), (70, 90, 60)),
    ((250, 200, 190), (190, 240, 170)),
    ((30, 200, 60), (80, 250, 20)),
    ((240, 60, 180), (180, 20, 240)),
    ((60, 30, 220), (20, 80, 180)),
)


class Coloured(Dataset[Batch]):
    """Paired grey digits `(1, 28, 28)` as pictures `(3, 28, 28)` in [0, 1]: inverted where the digit is.

    x = (1 - g) b + g (1 - b), g the digit's grey and b a crop of the modality's texture, drawn anew at every fetch from
    torch's global generator, as are the pairs.

    Args:
        pairs: digits by modality, bytes.
        backgrounds: modality -> texture `(3, height, width)` of bytes, at least 28 either way.
    """

    def __init__(self, pairs: Paired, backgrounds: Mapping[str, Tensor]) -> None:
        self.pairs, self.backgrounds = pairs, dict(backgrounds)
        for m in pairs.names:
            if m != pairs.label and (m not in self.backgrounds or min(self.backgrounds[m].shape[1:]) < SIDE):
                raise ValueError(f"modality '{m}' needs a texture of at least {SIDE} x {SIDE}")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: Rows) -> Batch:
        """Fresh pairs and crops of these rows; an int gives a batch of one row."""
        return self._painted(self.pairs[rows])

    def __getitems__(self, rows: list[int]) -> Batch:
        """A whole minibatch at once (DataLoader looks for this name)."""
        return self[rows]

    def only(self, *names: str) -> Coloured:
        """The same rows with these modalities alone."""
        return Coloured(self.pairs.only(*names), self.backgrounds)

    def fixed(self, seed: int) -> Batch:
        """All rows as one Batch, by `seed` alone; torch's global generators are not moved."""
        pairs = self.pairs.fixed(seed)
        with drawn_by(seed):
            return self._painted(pairs)

    def _painted(self, digits: Batch) -> Batch:
        x = {m: v if m == self.pairs.label else self._picture(m, v) for m, v in digits.x.items()}
        return Batch(x, digits.mask)

    def _picture(self, m: str, digit: Tensor) -> Tensor:
        texture = self.backgrounds[m]
        _, height, width = texture.shape
        top = torch.randint(height - SIDE + 1, (len(digit), 1, 1))
        left = torch.randint(width - SIDE + 1, (len(digit), 1, 1))
        place = torch.arange(SIDE)
        crop = texture[:, top + place[:, None], left + place].movedim(0, 1)
        g, b = (v.to(torch.get_default_dtype()) / WHITE for v in (digit, crop))
        return (1 - g) * b + g * (1 - b)


def poly_mnist_like(
    root: str | Path | None = None, download: bool = False, validation: int = 10_000, held: int | None = None
) -> Splits:
    """`m0` to `m4` (3, 28, 28) in [0, 1]: different MNIST digits of one class on five textures; `label` 0..9.

    Every training row has a digit of its own as `m0`; the others of its class, and all crops, are drawn anew at every
    fetch, those of validation and test once.  `.only("m0", ..., "m4")` drops the label, as published.  The density is
    PolyMNIST's usual Laplace of scale 0.75.

    Args:
        root, download, validation: as in `mnist`.
        held: at most this many rows for validation and for testing (all 10,000 test rows: 0.5 GB as numbers).

    Raises:
        FileNotFoundError, ValueError, ImportError, RuntimeError: as in `mnist`.
    """
    source = mnist_source()
    folder = source.folder(root, download)
    train, test = (source.rows(folder, part, WHOLE) for part in ("train", "test"))
    if not 0 < validation < len(train):
        raise ValueError(f"validation must be between 1 and {len(train) - 1} rows, got {validation}")
    if held is not None and held < 1:
        raise ValueError(f"held must be at least 1 row, got {held}")
    cut = len(train) - validation
    parts = {"train": train[:cut], "validation": _some(train[cut:], held), "test": _some(test, held)}
    painted = {split: Coloured(_of_class(rows), textures()) for split, rows in parts.items()}
    pictures = [Modality(m, (3, SIDE, SIDE), Laplace(0.75, bounded=True), Conv((32, 64), 256)) for m in NAMES]
    return Splits(
        "poly_mnist_like",
        (*pictures, Modality("label", (), Categorical(10), MLP((128,)))),
        painted["train"],
        painted["validation"].fixed(VALIDATION_SEED),
        painted["test"].fixed(TEST_SEED),
        "label",
        "MNIST digits on drawn textures, after the design of PolyMNIST; training pairs and crops anew at every fetch",
    )


def textures() -> dict[str, Tensor]:
    """Stripes, checks, a smooth field, rings and dots `(3, 128, 128)` of bytes; the same every time."""
    y, x = np.mgrid[:TEXTURE, :TEXTURE].astype(float)
    shares = {
        "m0": 0.5 + 0.5 * np.sin((x + 0.5 * y) * 0.7),
        "m1": ((x // 7 + y // 7) % 2),
        "m2": _smooth(np.random.RandomState(0)),
        "m3": 0.5 + 0.5 * np.sin(np.hypot((x % 40) - 20, (y % 40) - 20) * 0.9),
        "m4": (np.hypot((x % 10) - 5, (y % 10) - 5) < 3).astype(float),
    }
    return {m: _coloured(share, *COLOURS[i]) for i, (m, share) in enumerate(shares.items())}


def _smooth(source: np.random.RandomState) -> np.ndarray:
    """Noise without its high frequencies, scaled to [0, 1]."""
    waves = np.hypot(*np.meshgrid(np.fft.fftfreq(TEXTURE), np.fft.fftfreq(TEXTURE)))
    field = np.fft.ifft2(np.fft.fft2(source.randn(TEXTURE, TEXTURE)) * np.exp(-((waves * 25) ** 2) / 2)).real
    scaled: np.ndarray = (field - field.min()) / (field.max() - field.min())
    return scaled


def _coloured(share: np.ndarray, low: tuple[int, ...], high: tuple[int, ...]) -> Tensor:
    mixed = np.array(low)[:, None, None] * (1 - share) + np.array(high)[:, None, None] * share
    return torch.from_numpy(mixed.round().astype(np.uint8))


def _some(rows: Batch, held: int | None) -> Batch:
    return rows if held is None else rows[: min(held, len(rows))]


def _of_class(rows: Batch) -> Paired:
    """Every modality has all digits to draw from."""
    return Paired({m: Batch({m: rows.x["image"], "label": rows.x["label"]}) for m in NAMES})
