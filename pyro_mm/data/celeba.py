"""CelebA (Liu et al. 2015): aligned faces with 40 attributes, from torchvision's download or from a folder.

For non-commercial research only; not to be passed on.  The faces are cropped and shrunk once and kept as one array on
disk, of which a fetch reads only its rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_mm.batch import Batch, Rows
from pyro_mm.data.fetch import cache_folder
from pyro_mm.data.splits import Splits
from pyro_mm.data.vision import download_celeba
from pyro_mm.files import write_atomic
from pyro_mm.likelihoods import Bernoulli, Normal
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP, Conv

__all__ = ["Faces", "VISIBLE", "celeba"]

ATTRIBUTES, PARTS, FACES = "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"
CROP = 148  # pixels of the middle of a picture of 178 x 218: the face without its surroundings
VISIBLE = (
    "Bald", "Bangs", "Black_Hair", "Blond_Hair", "Brown_Hair", "Bushy_Eyebrows", "Eyeglasses", "Gray_Hair",
    "Heavy_Makeup", "Male", "Mouth_Slightly_Open", "Mustache", "Pale_Skin", "Receding_Hairline", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Hat",
)  # fmt: skip
"""The 18 attributes of MVAE's experiments (after Perarnau et al. 2016)."""


class Faces(Dataset[Batch]):
    """Rows `image` in [0, 1] and `attributes` of 0 and 1; pictures stay on disk until they are fetched."""

    def __init__(
        self,
        pictures: np.ndarray,
        attributes: Tensor,
        rows: np.ndarray,
        names: Sequence[str] = ("image", "attributes"),
    ) -> None:
        self.pictures, self.attributes, self.rows, self.names = pictures, attributes, rows, tuple(names)

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the file itself: a mapped array would be copied whole."""
        state = dict(vars(self))
        if isinstance(self.pictures, np.memmap) and self.pictures.filename is not None:
            state["pictures"] = str(self.pictures.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(state["pictures"], str):
            self.pictures = np.load(state["pictures"], mmap_mode="r", allow_pickle=False)

    def only(self, *names: str) -> Faces:
        """The same rows with these modalities alone."""
        return Faces(self.pictures, self.attributes, self.rows, [m for m in self.names if m in names])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Rows) -> Batch:
        place = self.rows[np.arange(len(self))[[rows] if isinstance(rows, int) else rows]]
        dtype, x = torch.get_default_dtype(), {}
        if "image" in self.names:
            x["image"] = torch.from_numpy(np.ascontiguousarray(self.pictures[place])).to(dtype).div_(255)
        if "attributes" in self.names:
            x["attributes"] = self.attributes[place].to(dtype)
        return Batch(x)

    def __getitems__(self, rows: list[int]) -> Batch:
        """A whole minibatch at once (DataLoader looks for this name)."""
        return self[rows]


def celeba(
    root: str | Path | None = None,
    download: bool = False,
    size: int = 64,
    attributes: Sequence[str] | None = None,
    held: int | None = None,
) -> Splits:
    """Celebrities' faces: `image` (3, size, size) in [0, 1], `attributes` (18,) of 0 and 1.

    162,770 faces for training, 19,867 for validation and 19,962 for testing, the official division by person.

    Args:
        root: a folder with torchvision's layout (`root/celeba/...`) or with the files themselves: the folder
            img_align_celeba, list_attr_celeba.txt and list_eval_partition.txt.
        download: let torchvision fetch what is missing (1.4 GB), into `root` or else `cache_folder()`.
        size: of the pictures, a multiple of 16 up to 144.
        attributes: names of those wanted (default: MVAE's 18, `VISIBLE`).
        held: at most this many faces for validation and for testing (all: 1 GB each as numbers).

    Raises:
        FileNotFoundError: naming what is missing and where it was looked for.
        ValueError: a list or a picture is damaged, or an attribute unknown, naming it.
        ImportError, RuntimeError: only when downloading; the message names the cure.
    """
    if not 16 <= size <= CROP or size % 16:
        raise ValueError(f"CelebA: size must be a multiple of 16 up to 144, got {size}")
    folder = _folder(root, download)
    names, table = _table(folder / ATTRIBUTES)
    wanted = list(VISIBLE if attributes is None else attributes)
    if unknown := [a for a in wanted if a not in names]:
        raise ValueError(f"CelebA: unknown attributes {unknown}; there are {names}")
    parts = _parts(folder / PARTS, list(table))
    chosen = torch.tensor(list(table.values()))[:, [names.index(a) for a in wanted]] > 0
    pictures = _kept(folder, list(table), size)
    train, *others = (Faces(pictures, chosen, np.flatnonzero(parts == part)) for part in range(3))
    validation, test = (faces[range(len(faces) if held is None else min(held, len(faces)))] for faces in others)
    modalities = (
        Modality("image", (3, size, size), Normal(bounded=True), Conv((32, 64, 128, 256), 256)),
        Modality("attributes", (len(wanted),), Bernoulli(), MLP((512, 512))),
    )
    return Splits("celeba", modalities, train, validation, test, None, f"CelebA (research use only), {size} x {size}")


def _table(path: Path) -> tuple[list[str], dict[str, list[int]]]:
    """Names of the attributes, and -1 or 1 for each of them by file."""
    lines = path.read_text().splitlines()
    names = lines[1].split() if len(lines) > 1 else []
    rows = {}
    for n, line in enumerate(lines[2:], 3):
        file, *values = line.split() or [""]
        if len(values) != len(names) or set(values) - {"1", "-1"}:
            raise ValueError(f"{path}, line {n}: expected a file and {len(names)} values of 1 or -1")
        rows[file] = [int(v) for v in values]
    if not names or not rows or not lines[0].strip().isdigit() or int(lines[0]) != len(rows):
        promised = lines[0].strip() if lines else "nothing"
        raise ValueError(f"{path} is truncated or corrupt: it promises {promised} rows and has {len(rows)}")
    return names, rows


def _parts(path: Path, files: list[str]) -> np.ndarray:
    """0, 1 or 2 for every file: training, validation, testing."""
    found = {}
    for n, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise ValueError(f"{path}, line {n}: expected a file and 0, 1 or 2, got {line!r}")
        found[words[0]] = int(words[1])
    if lacking := [f for f in files if f not in found]:
        raise ValueError(f"{path} is truncated: it lacks {len(lacking)} files, {lacking[0]} among them")
    return np.array([found[f] for f in files])


def _kept(folder: Path, files: list[str], size: int) -> np.ndarray:
    """All pictures `(N, 3, size, size)` uint8, mapped from an array on disk that is made the first time."""
    key = hashlib.sha256("\n".join([str(size), *files]).encode()).hexdigest()[:12]
    path = cache_folder() / f"celeba-{size}-{key}.npy"
    shape = (len(files), 3, size, size)
    if path.is_file():
        try:
            pictures: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
            if pictures.shape == shape and pictures.dtype == np.uint8:
                return pictures
        except ValueError:
            pass  # truncated: made again
    write_atomic(path, lambda file: _write(file, shape, folder, files, size))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _write(file: object, shape: tuple[int, ...], folder: Path, files: list[str], size: int) -> None:
    head = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)  # type: ignore[arg-type]
    for name in files:
        file.write(_picture(folder / FACES / name, size).tobytes())  # type: ignore[attr-defined]


def _picture(path: Path, size: int) -> np.ndarray:
    """The middle of a picture, shrunk: uint8 `(3, size, size)`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            left, top = (opened.width - CROP) // 2, (opened.height - CROP) // 2
            middle = opened.convert("RGB").crop((left, top, left + CROP, top + CROP))
            return np.asarray(middle.resize((size, size), Image.Resampling.BOX)).transpose(2, 0, 1)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path} is missing, truncated or no picture: {error}") from error


def _folder(root: str | Path | None, download: bool) -> Path:
    if root is None and not download:
        raise FileNotFoundError(
            f"CelebA: where is it? Pass root=FOLDER (--root) with {FACES}/, {ATTRIBUTES} and {PARTS}, or "
            f"download=True (--download) to have torchvision fetch 1.4 GB into {cache_folder()}"
        )
    base = cache_folder() if root is None else Path(root).expanduser()
    places = [base / "celeba", base]
    if (folder := _complete(places)) is None and download:
        download_celeba(base)
        folder = _complete(places)
    if folder is None:
        raise FileNotFoundError(
            f"CelebA: neither {places[0]} nor {base} holds {FACES}/, {ATTRIBUTES} and {PARTS}. Correct root, or pass "
            "download=True (--download)"
        )
    return folder


def _complete(places: list[Path]) -> Path | None:
    return next((p for p in places if all((p / n).exists() for n in (FACES, ATTRIBUTES, PARTS))), None)
