"""Sets of grey images with labels in four idx files, as MNIST and its relatives come, exactly checked.

Training pixels are binarised anew at every fetch, validation and test pixels once, by fixed seeds.  The last rows of
the original training set are the validation set; the original test set is the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.data.binarise import Binarised, binarised_once
from pyro_mm.data.fetch import cache_folder
from pyro_mm.data.idx import read_idx
from pyro_mm.data.splits import Splits
from pyro_mm.likelihoods import Bernoulli, Categorical, ContinuousBernoulli, Likelihood
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP

__all__ = [
    "NET",
    "TEST_SEED",
    "VALIDATION_SEED",
    "WHITE",
    "WHOLE",
    "Crops",
    "IdxSet",
    "binary_splits",
    "grey_splits",
    "image_modalities",
]

VALIDATION_SEED, TEST_SEED = 1, 2  # of the binarisation; the same in every run, so that likelihoods compare
WHITE = 255
NET = MLP((512, 512))
Crops = Mapping[str, tuple[slice, slice]]
WHOLE: Crops = {"image": (slice(0, 28), slice(0, 28))}


@dataclass(frozen=True)
class IdxSet:
    """Four files, where they may lie, and how they are fetched.

    Attributes:
        title: what messages call the set.
        files: for `train image`, `train label`, `test image` and `test label` the name without .gz, the shape, and the
            md5 of the data (decompressed, without the header); None where only counts are known, and then every class
            must be as large as the others.
        fetch: puts what is missing into `inside` of a folder.
        size: of the download, for messages.
        inside: where the files lie below a root that holds several sets.
    """

    title: str
    files: Mapping[str, tuple[str, tuple[int, ...], str | None]]
    fetch: Callable[[Path], None]
    size: str
    inside: str

    def folder(self, root: str | Path | None, download: bool) -> Path:
        """The folder that holds all files.

        Raises:
            FileNotFoundError: naming the places looked at and the files they lack.
        """
        if root is None and not download:
            raise FileNotFoundError(
                f"{self.title}: where is it? Pass root=FOLDER (--root) with its {len(self.files)} idx files (or with "
                f"{self.inside} in it), or download=True (--download) to fetch {self.size} into {cache_folder()}"
            )
        base = cache_folder() if root is None else Path(root).expanduser()
        places = [base / self.inside, base]
        if (folder := self._complete(places)) is not None:
            return folder
        if download:
            self.fetch(base)
            if (folder := self._complete(places)) is not None:
                return folder
        lacks = {str(p): [s for s, *_ in self.files.values() if not _found(p, s).is_file()] for p in places}
        raise FileNotFoundError(
            f"{self.title}: root={base} holds no complete set of files; missing "
            + "; ".join(f"in {p}: {', '.join(s)} (or .gz)" for p, s in lacks.items())
            + ". Correct root, or pass download=True (--download)"
        )

    def read(self, folder: Path, kind: str) -> Tensor:
        """The bytes of one file.

        Raises:
            ValueError: naming the file, when it is truncated, corrupt or not the original one.
        """
        stem, shape, md5 = self.files[kind]
        path = _found(folder, stem)
        try:
            data = read_idx(path, shape, md5)
            if md5 is None and kind.endswith("label"):
                counts = torch.bincount(data, minlength=10).tolist()
                if counts != [shape[0] // 10] * 10:
                    raise ValueError(f"{path} is not the original file: it holds {counts} of each class")
        except ValueError as error:
            raise ValueError(f"{self.title}: {error}. Delete that file and fetch it again (download=True)") from error
        return data

    def rows(self, folder: Path, part: str, crops: Crops = WHOLE) -> Batch:
        """Bytes of the cropped images `(N, 1, h, w)`, and labels `(N,)`."""
        image, label = (self.read(folder, f"{part} {kind}") for kind in ("image", "label"))
        x = {m: image[:, None, rows, columns] for m, (rows, columns) in crops.items()}
        return Batch({**x, "label": label.long()})

    def _complete(self, places: list[Path]) -> Path | None:
        return next((p for p in places if all(_found(p, s).is_file() for s, *_ in self.files.values())), None)


def binary_splits(source: IdxSet, name: str, crops: Crops, folder: Path, validation: int) -> Splits:
    """Pixels binarised anew in training, once in validation and test."""
    train, held = _cut(source.rows(folder, "train", crops), validation)
    pixels = tuple(crops)
    return Splits(
        name,
        image_modalities(crops, Bernoulli()),
        Binarised(train, pixels, WHITE),
        binarised_once(held, pixels, VALIDATION_SEED, WHITE),
        binarised_once(source.rows(folder, "test", crops), pixels, TEST_SEED, WHITE),
        "label",
        f"{source.title}, train pixels binarised anew at every fetch, test pixels once by seed {TEST_SEED}",
    )


def grey_splits(source: IdxSet, name: str, folder: Path, validation: int) -> Splits:
    """Grey values in [0, 1] with a ContinuousBernoulli density."""
    train, held = _cut(source.rows(folder, "train"), validation)
    train, held, test = (_grey(rows) for rows in (train, held, source.rows(folder, "test")))
    modalities = image_modalities(WHOLE, ContinuousBernoulli())
    return Splits(name, modalities, train, held, test, "label", f"{source.title}, grey values / 255")


def image_modalities(crops: Crops, pixel: Likelihood) -> tuple[Modality, ...]:
    """The pieces of the image, and the label."""
    shapes = {m: (1, rows.stop - rows.start, columns.stop - columns.start) for m, (rows, columns) in crops.items()}
    return (*(Modality(m, s, pixel, NET) for m, s in shapes.items()), Modality("label", (), Categorical(10), NET))


def _grey(rows: Batch) -> Batch:
    """Bytes as shares of white, in torch's default dtype."""
    image = rows.x["image"].to(torch.get_default_dtype()) / WHITE
    return Batch({"image": image, "label": rows.x["label"]})


def _cut(every: Batch, validation: int) -> tuple[Batch, Batch]:
    if not 0 < validation < len(every):
        raise ValueError(f"validation must be between 1 and {len(every) - 1} rows, got {validation}")
    return every[: len(every) - validation], every[len(every) - validation :]


def _found(folder: Path, stem: str) -> Path:
    """The file itself or its archive; where both lie, the unpacked one."""
    plain = folder / stem
    return plain if plain.is_file() else folder / f"{stem}.gz"
