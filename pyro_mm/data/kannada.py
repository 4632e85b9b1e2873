"""Kannada-MNIST (Prabhu 2019, arXiv:1908.01242): Kannada digits in MNIST's format, and Dig-MNIST by other writers.

Its authors state no licence and ask to be cited.  In every file the classes 0, 1, ..., 9 follow one another.
"""

from __future__ import annotations

from pathlib import Path

from pyro_mm.data.fetch import fetched
from pyro_mm.data.idx_sets import WHOLE, IdxSet, binary_splits
from pyro_mm.data.splits import Splits

__all__ = ["kannada_mnist", "kannada_source"]

URL = "https://raw.githubusercontent.com/vinayprabhu/Kannada_MNIST/master/data/output_tensors/MNIST_format"
INSIDE = "kannada_mnist"
MOST = 20_000_000  # bytes of one archive
FILES: dict[str, tuple[str, tuple[int, ...], str | None]] = {
    "train image": ("X_kannada_MNIST_train-idx3-ubyte", (60_000, 28, 28), "952059e05e76523646984ca71b9cbe8b"),
    "train label": ("y_kannada_MNIST_train-idx1-ubyte", (60_000,), "a395b97e009ab02c96245a2a165061b0"),
    "test image": ("X_kannada_MNIST_test-idx3-ubyte", (10_000, 28, 28), "cb8898db66a2b6e0dc8af63118457448"),
    "test label": ("y_kannada_MNIST_test-idx1-ubyte", (10_000,), "b40e448690d43ee27200192f4e306776"),
}
OTHER_WRITERS: dict[str, tuple[str, tuple[int, ...], str | None]] = {
    "test image": ("X_dig_MNIST-idx3-ubyte", (10_240, 28, 28), "59dee27cdb07e75bfa58a2bcf92f807b"),
    "test label": ("y_dig_MNIST-idx1-ubyte", (10_240,), "0b79103935d117c7701a21b0bc02b43e"),
}


def kannada_mnist(
    root: str | Path | None = None, download: bool = False, validation: int = 10_000, dig: bool = False
) -> Splits:
    """Binarised Kannada-MNIST with its labels: `image` (1, 28, 28) of 0 and 1, `label` 0..9.

    Arguments and errors as in `mnist`; the folder below a shared root is `kannada_mnist`.

    Args:
        dig: test on Dig-MNIST, 10,240 digits by writers and a pen that training never saw.
    """
    source = kannada_source(dig)
    return binary_splits(source, "kannada_mnist", WHOLE, source.folder(root, download), validation)


def kannada_source(dig: bool = False) -> IdxSet:
    """The files, with Dig-MNIST's in place of the test set if `dig`."""
    files = {**FILES, **OTHER_WRITERS} if dig else FILES

    def fetch(base: Path) -> None:
        for stem, *_ in files.values():
            if not (base / INSIDE / stem).is_file():
                fetched(f"{URL}/{stem}.gz", base / INSIDE / f"{stem}.gz", MOST)

    return IdxSet("Kannada-MNIST", files, fetch, "12 MB", INSIDE)
