"""Fashion-MNIST (Xiao et al. 2017, MIT) and Kuzushiji-MNIST (Clanuwat et al. 2018, CC BY-SA 4.0), in MNIST's format.

torchvision checks its own downloads by md5; files from a folder are checked by shape and by ten classes of equal size.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pyro_mm.data.idx_sets import WHOLE, IdxSet, binary_splits, grey_splits
from pyro_mm.data.mnist import FILES as MNIST
from pyro_mm.data.splits import Splits
from pyro_mm.data.vision import download_mnist

__all__ = ["fashion_mnist", "fashion_mnist_grey", "kmnist"]

FILES: dict[str, tuple[str, tuple[int, ...], str | None]] = {k: (stem, s, None) for k, (stem, s, _) in MNIST.items()}


def fashion_mnist(root: str | Path | None = None, download: bool = False, validation: int = 10_000) -> Splits:
    """Binarised Fashion-MNIST with its labels: `image` (1, 28, 28) of 0 and 1, `label` 0..9 (T-shirt to ankle boot).

    Arguments and errors as in `mnist`; torchvision's folder is `FashionMNIST/raw`.
    """
    source = _source("FashionMNIST", "31 MB")
    return binary_splits(source, "fashion_mnist", WHOLE, source.folder(root, download), validation)


def fashion_mnist_grey(root: str | Path | None = None, download: bool = False, validation: int = 10_000) -> Splits:
    """Grey Fashion-MNIST with its labels: `image` (1, 28, 28) in [0, 1], ContinuousBernoulli, `label` 0..9.

    Arguments and errors as in `fashion_mnist`.
    """
    source = _source("FashionMNIST", "31 MB")
    return grey_splits(source, "fashion_mnist_grey", source.folder(root, download), validation)


def kmnist(root: str | Path | None = None, download: bool = False, validation: int = 10_000) -> Splits:
    """Binarised Kuzushiji-MNIST with its labels: `image` (1, 28, 28) of 0 and 1, `label` 0..9 (ten hiragana).

    Arguments and errors as in `mnist`; torchvision's folder is `KMNIST/raw`.
    """
    source = _source("KMNIST", "21 MB")
    return binary_splits(source, "kmnist", WHOLE, source.folder(root, download), validation)


def _source(title: str, size: str) -> IdxSet:
    return IdxSet(title, FILES, partial(download_mnist, name=title), size, f"{title}/raw")
