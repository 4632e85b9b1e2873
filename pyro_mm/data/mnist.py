"""MNIST from torchvision's download or from a folder, with exact checks of what was read.

Training pixels are binarised anew at every fetch, validation and test pixels once, by fixed seeds.  The last rows of
the original training set are the validation set; the original test set is the test set.
"""

from __future__ import annotations

from pathlib import Path

from pyro_mm.data.fetch import cache_folder
from pyro_mm.data.idx_sets import WHOLE, Crops, IdxSet, binary_splits, grey_splits
from pyro_mm.data.splits import Splits
from pyro_mm.data.vision import download_mnist

__all__ = ["cache_folder", "mnist", "mnist_grey", "mnist_halves", "mnist_quadrants", "mnist_source"]

# File, shape, and md5 of its data (decompressed, without the 4 + 4 * axes bytes of header).
FILES: dict[str, tuple[str, tuple[int, ...], str | None]] = {
    "train image": ("train-images-idx3-ubyte", (60_000, 28, 28), "6510e85a72c3e9475c492d559d3770d2"),
    "train label": ("train-labels-idx1-ubyte", (60_000,), "e86ee40d66677c011a9abda399ec8c4d"),
    "test image": ("t10k-images-idx3-ubyte", (10_000, 28, 28), "240610fa99e73bfa49df8e7fc24d3206"),
    "test label": ("t10k-labels-idx1-ubyte", (10_000,), "073c3904dfbd3e141ff8aa01cfde6b15"),
}
TOP, BOTTOM, LEFT, RIGHT = slice(0, 14), slice(14, 28), slice(0, 14), slice(14, 28)
EVERY = slice(0, 28)


def mnist(root: str | Path | None = None, download: bool = False, validation: int = 10_000) -> Splits:
    """Binarised MNIST with its labels: `image` (1, 28, 28) of 0 and 1, `label` 0..9.

    Args:
        root: a folder with torchvision's layout (`root/MNIST/raw/...`), or with the four idx files themselves,
            gzipped or not.
        download: let torchvision fetch what is missing, into `root` or else `cache_folder()`.
        validation: how many of the last of the 60,000 training rows are for validation.

    Raises:
        FileNotFoundError: no files where `root` says, naming the places looked at, or neither argument is given.
        ValueError: a file is truncated, corrupt or not the original one, naming it.
        ImportError, RuntimeError: only when downloading; the message names the cure.
    """
    return _binary("mnist", WHOLE, root, download, validation)


def mnist_halves(root: str | Path | None = None, download: bool = False, validation: int = 10_000) -> Splits:
    """Binarised MNIST cut in two, with its labels: `top` and `bottom` (1, 14, 28) of 0 and 1, `label` 0..9.

    Arguments and errors as in `mnist`; `.only("top", "bottom")` drops the label.
    """
    return _binary("mnist_halves", {"top": (TOP, EVERY), "bottom": (BOTTOM, EVERY)}, root, download, validation)


def mnist_quadrants(root: str | Path | None = None, download: bool = False, validation: int = 10_000) -> Splits:
    """Binarised MNIST cut in four, with its labels: `top_left` to `bottom_right` (1, 14, 14) of 0 and 1, `label` 0..9.

    Arguments and errors as in `mnist`; `.only(...)` drops what is not wanted.
    """
    crops = {
        "top_left": (TOP, LEFT),
        "top_right": (TOP, RIGHT),
        "bottom_left": (BOTTOM, LEFT),
        "bottom_right": (BOTTOM, RIGHT),
    }
    return _binary("mnist_quadrants", crops, root, download, validation)


def mnist_grey(root: str | Path | None = None, download: bool = False, validation: int = 10_000) -> Splits:
    """Grey MNIST with its labels: `image` (1, 28, 28) in [0, 1] with a ContinuousBernoulli density, `label` 0..9.

    Its log-likelihoods are of densities and do not compare with those of binarised pixels.  Arguments and errors as
    in `mnist`.
    """
    source = mnist_source()
    return grey_splits(source, "mnist_grey", source.folder(root, download), validation)


def _binary(name: str, crops: Crops, root: str | Path | None, download: bool, validation: int) -> Splits:
    source = mnist_source()
    return binary_splits(source, name, crops, source.folder(root, download), validation)


def mnist_source() -> IdxSet:
    """MNIST's files, where they may lie, and how they are fetched."""
    return IdxSet("MNIST", FILES, download_mnist, "11 MB", "MNIST/raw")
