"""MNIST from torchvision's download or from a folder, with exact checks of what was read.

Training pixels are binarised anew at every fetch, validation and test pixels once, by fixed seeds.  The last rows of
the original training set are the validation set; the original test set is the test set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.data.binarise import Binarised, binarised_once
from pyro_mm.data.idx import read_idx
from pyro_mm.data.splits import Splits
from pyro_mm.data.vision import download_mnist
from pyro_mm.likelihoods import Bernoulli, Categorical, ContinuousBernoulli, Likelihood
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP

__all__ = ["cache_folder", "mnist", "mnist_grey", "mnist_halves", "mnist_quadrants"]

# File, shape, and md5 of its data (decompressed, without the 4 + 4 * axes bytes of header).
FILES = {
    "train image": ("train-images-idx3-ubyte", (60_000, 28, 28), "6510e85a72c3e9475c492d559d3770d2"),
    "train label": ("train-labels-idx1-ubyte", (60_000,), "e86ee40d66677c011a9abda399ec8c4d"),
    "test image": ("t10k-images-idx3-ubyte", (10_000, 28, 28), "240610fa99e73bfa49df8e7fc24d3206"),
    "test label": ("t10k-labels-idx1-ubyte", (10_000,), "073c3904dfbd3e141ff8aa01cfde6b15"),
}
VALIDATION_SEED, TEST_SEED = 1, 2  # of the binarisation; the same in every run, so that likelihoods compare
WHITE = 255
NET = MLP((512, 512))
TOP, BOTTOM, LEFT, RIGHT = slice(0, 14), slice(14, 28), slice(0, 14), slice(14, 28)
Crops = Mapping[str, tuple[slice, slice]]


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
    return _binary("mnist", {"image": (slice(0, 28), slice(0, 28))}, root, download, validation)


def mnist_halves(root: str | Path | None = None, download: bool = False, validation: int = 10_000) -> Splits:
    """Binarised MNIST cut in two, with its labels: `top` and `bottom` (1, 14, 28) of 0 and 1, `label` 0..9.

    Arguments and errors as in `mnist`; `.only("top", "bottom")` drops the label.
    """
    every = slice(0, 28)
    return _binary("mnist_halves", {"top": (TOP, every), "bottom": (BOTTOM, every)}, root, download, validation)


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
    folder = _folder(root, download)
    image = {"image": (slice(0, 28), slice(0, 28))}
    train, held = _cut(_rows(folder, "train", image), validation)
    train, held, test = (_grey(rows) for rows in (train, held, _rows(folder, "test", image)))
    modalities = _modalities(image, ContinuousBernoulli())
    return Splits("mnist_grey", modalities, train, held, test, "label", "MNIST, grey values / 255")


def cache_folder() -> Path:
    """Where downloads go unless `root` says otherwise: `$XDG_CACHE_HOME/pyro_mm`, by default `~/.cache/pyro_mm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_mm"


def _binary(name: str, crops: Crops, root: str | Path | None, download: bool, validation: int) -> Splits:
    folder = _folder(root, download)
    train, held = _cut(_rows(folder, "train", crops), validation)
    pixels = tuple(crops)
    return Splits(
        name,
        _modalities(crops, Bernoulli()),
        Binarised(train, pixels, WHITE),
        binarised_once(held, pixels, VALIDATION_SEED, WHITE),
        binarised_once(_rows(folder, "test", crops), pixels, TEST_SEED, WHITE),
        "label",
        f"MNIST, train pixels binarised anew at every fetch, test pixels once by seed {TEST_SEED}",
    )


def _modalities(crops: Crops, pixel: Likelihood) -> tuple[Modality, ...]:
    shapes = {m: (1, rows.stop - rows.start, columns.stop - columns.start) for m, (rows, columns) in crops.items()}
    return (*(Modality(m, s, pixel, NET) for m, s in shapes.items()), Modality("label", (), Categorical(10), NET))


def _rows(folder: Path, part: str, crops: Crops) -> Batch:
    """Grey bytes of the cropped images `(N, 1, h, w)`, and labels `(N,)`."""
    image, label = (_read(folder, f"{part} {kind}") for kind in ("image", "label"))
    x = {m: image[:, None, rows, columns] for m, (rows, columns) in crops.items()}
    return Batch({**x, "label": label.long()})


def _grey(rows: Batch) -> Batch:
    """Bytes as shares of white, in torch's default dtype."""
    image = rows.x["image"].to(torch.get_default_dtype()) / WHITE
    return Batch({"image": image, "label": rows.x["label"]})


def _cut(every: Batch, validation: int) -> tuple[Batch, Batch]:
    if not 0 < validation < len(every):
        raise ValueError(f"validation must be between 1 and {len(every) - 1} rows, got {validation}")
    return every[: len(every) - validation], every[len(every) - validation :]


def _read(folder: Path, kind: str) -> Tensor:
    stem, shape, md5 = FILES[kind]
    try:
        return read_idx(_found(folder, stem), shape, md5)
    except ValueError as error:
        raise ValueError(f"MNIST: {error}. Delete that file and fetch it again (download=True)") from error


def _found(folder: Path, stem: str) -> Path:
    """The file itself or its archive; where both lie, the unpacked one."""
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"


def _folder(root: str | Path | None, download: bool) -> Path:
    """The folder that holds all four files."""
    if root is None and not download:
        raise FileNotFoundError(
            "MNIST: where is it? Pass root=FOLDER with its four idx files (or with torchvision's MNIST/raw), or "
            f"download=True to have torchvision fetch 11 MB into {cache_folder()}"
        )
    base = cache_folder() if root is None else Path(root).expanduser()
    places = [base / "MNIST" / "raw", base]
    if (folder := _complete(places)) is not None:
        return folder
    if download:
        download_mnist(base)
        if (folder := _complete(places)) is not None:
            return folder
    lacks = {str(p): [s for s, *_ in FILES.values() if not _found(p, s).is_file()] for p in places}
    raise FileNotFoundError(
        f"MNIST: root={base} holds no complete set of files; missing "
        + "; ".join(f"in {p}: {', '.join(s)} (or .gz)" for p, s in lacks.items())
        + ". Correct root, or pass download=True"
    )


def _complete(places: list[Path]) -> Path | None:
    return next((p for p in places if all(_found(p, s).is_file() for s, *_ in FILES.values())), None)
