"""Hoda: handwritten Farsi digits (Khosravi & Kabir 2007), binary bitmaps of many sizes, from `.cdb` or `.mat` files.

For research and non-commercial use only; not to be passed on.  A `.cdb` file is a header of 1,024 bytes and one record
per bitmap, each row of it in run lengths; the training bitmaps also circulate as `Data_hoda_full.mat`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["COUNTS", "FILES", "MD5", "Bitmaps", "content_md5", "fitted", "hoda", "read_cdb", "read_mat"]

FILES = {
    "train": ("Train 60000.cdb", "Data_hoda_full.mat"),
    "test": ("Test 20000.cdb",),
    "remaining": ("RemainingSamples.cdb",),
}
"""Names each part goes by; any of them will do."""
COUNTS = {"train": 60_000, "test": 20_000, "remaining": 22_352}
MD5 = {
    "train": "d9eb1518ea9e6b886f8b5aa217b0a99e",
    "test": "fe88921e5db9287de58a2bdd989d51ad",
    "remaining": "304c22cd909c79b5fca8d7a08f82ab94",
}
"""Of `content_md5`."""
HEADER, SIZES = 1024, struct.Struct("<HBBBBI128IB")  # the rest of the header is a comment and reserved
INK = 255


@dataclass(frozen=True, eq=False)
class Bitmaps:
    """Bitmaps uint8 `(h, w)` of 0 and 255 (ink), of any sizes, and their classes int64 `(N,)`."""

    images: tuple[np.ndarray, ...]
    labels: np.ndarray


def hoda(folder: str | Path, part: str) -> Bitmaps:
    """The bitmaps of `part`, "train", "test" or "remaining", from `folder`, checked to be the complete original.

    The order is that of the file: the test bitmaps are sorted by class.

    Raises:
        FileNotFoundError: the folder does not hold the file, under any of its names.
        ValueError: the file is truncated or corrupt, or does not hold the original's bitmaps.
    """
    path = found(Path(folder), part)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no Farsi digits: neither {' nor '.join(FILES[part])}")
    bitmaps = read_mat(path) if path.suffix == ".mat" else read_cdb(path)
    if len(bitmaps.images) != COUNTS[part]:
        raise ValueError(f"{path} is not the original file: it holds {len(bitmaps.images)} digits, not {COUNTS[part]}")
    if (md5 := content_md5(bitmaps)) != MD5[part]:
        raise ValueError(f"{path} is not the original file: its digits have md5 {md5}, expected {MD5[part]}")
    return bitmaps


def found(folder: Path, part: str) -> Path | None:
    """The file of a part, under the first of its names that is there."""
    return next((folder / name for name in FILES[part] if (folder / name).is_file()), None)


def read_cdb(path: str | Path) -> Bitmaps:
    """Every bitmap of a `.cdb` file of binary images, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming file and record, when it is truncated, corrupt, or not of this form.
    """
    path = Path(path)
    data = path.read_bytes()
    if len(data) < HEADER:
        raise ValueError(f"{path} is truncated: its header has {len(data)} of {HEADER} bytes")
    _, _, _, height, width, count, *letters, kind = SIZES.unpack_from(data)
    if kind != 0:
        raise ValueError(f"{path} is no file of binary images: its image type is {kind}")
    if count != sum(letters):
        raise ValueError(f"{path} is corrupt: its header counts {count} records in all and {sum(letters)} by class")
    images, labels, at = [], [], HEADER
    for n in range(count):
        try:
            image, label, at = _record(data, at, height, width)
        except (IndexError, struct.error) as error:
            raise ValueError(f"{path} is truncated: it ends within record {n + 1} of {count}") from error
        except ValueError as error:
            raise ValueError(f"{path} is corrupt: record {n + 1} of {count} {error}") from error
        images.append(image)
        labels.append(label)
    if at != len(data):
        raise ValueError(f"{path} is corrupt: {len(data) - at} bytes follow its last record")
    return Bitmaps(tuple(images), np.array(labels, dtype=np.int64))


def read_mat(path: str | Path) -> Bitmaps:
    """Every bitmap of the `.mat` file, in order: a cell array `Data` and a column `labels`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming it, when it is truncated, corrupt, or lacks one of the two.
    """
    from scipy.io import loadmat  # only those who have this file pay for it

    path = Path(path)
    with path.open("rb") as file:
        try:
            content = loadmat(file, variable_names=("Data", "labels"))
        except Exception as error:  # scipy's reader fails on damage in many ways, none of them documented
            raise ValueError(f"{path} is truncated or corrupt: {error}") from error
    if lacking := {"Data", "labels"} - set(content):
        raise ValueError(f"{path} is not the original file: it lacks {' and '.join(sorted(lacking))}")
    images = tuple(np.where(image, INK, 0).astype(np.uint8) for image in content["Data"].ravel())
    labels = content["labels"].ravel().astype(np.int64)
    if len(images) != len(labels) or any(i.ndim != 2 or not i.size for i in images):
        raise ValueError(f"{path} is not the original file: {len(labels)} labels, {len(images)} bitmaps")
    return Bitmaps(images, labels)


def fitted(images: Sequence[np.ndarray], side: int = 28) -> np.ndarray:
    """Bitmaps as uint8 `(N, side, side)`: each in the middle of a square, shrunk, aspect kept, if it is larger.

    A shrunk pixel is the mean of the area that it covers, so shrunk bitmaps have grey edges; the others stay binary.
    """
    out = np.zeros((len(images), side, side), dtype=np.uint8)
    for square, image in zip(out, images, strict=True):
        small = _shrunk(image, side) if max(image.shape) > side else image
        top, left = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
        square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return out


def content_md5(bitmaps: Bitmaps) -> str:
    """md5 of classes, sizes and pixels, whatever the file they came in, and in whatever order."""
    each = []
    for image, label in zip(bitmaps.images, bitmaps.labels, strict=True):
        head = f"{label} {image.shape[0]} {image.shape[1]} ".encode()
        each.append(hashlib.md5(head + np.ascontiguousarray(image > 0).tobytes(), usedforsecurity=False).digest())
    return hashlib.md5(b"".join(sorted(each)), usedforsecurity=False).hexdigest()


def _record(data: bytes, at: int, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """(bitmap, class, where the next record starts)."""
    if data[at] != 0xFF:
        raise ValueError(f"starts with byte {data[at]}, not 255")
    label = data[at + 1]
    at += 2
    if not height or not width:  # no size for all: every record has its own, width first
        width, height = data[at], data[at + 1]
        at += 2
    (count,) = struct.unpack_from("<H", data, at)
    at += 2
    end = at + count
    runs = data[at:end]
    if len(runs) != count:
        raise IndexError
    return _bitmap(runs, height, width), label, end


def _bitmap(runs: bytes, height: int, width: int) -> np.ndarray:
    """Rows of run lengths, background and ink in turn, each row until it is `width` wide."""
    image = np.zeros((height, width), dtype=np.uint8)
    place = iter(runs)
    for row in image:
        x, value = 0, 0
        while x < width:
            length = next(place, None)
            if length is None:
                raise ValueError("ends before its bitmap is full")
            row[x : x + length] = value
            x, value = x + length, INK - value
        if x != width:
            raise ValueError(f"has a row of {x} pixels in a bitmap {width} wide")
    if next(place, None) is not None:
        raise ValueError("is longer than its bitmap")
    return image


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """Means over areas; the longer side becomes `side`."""
    scale = side / max(image.shape)
    height, width = (max(1, round(n * scale)) for n in image.shape)
    mean = _areas(image.shape[0], height) @ image.astype(float) @ _areas(image.shape[1], width).T
    return np.asarray(mean.round(), dtype=np.uint8)


def _areas(n: int, m: int) -> np.ndarray:
    """`(m, n)`: shares of n pixels in m wider ones."""
    edges = np.arange(m + 1) * n / m
    low, high = np.maximum(edges[:-1, None], np.arange(n)), np.minimum(edges[1:, None], np.arange(n) + 1)
    return np.clip(high - low, 0, None) * m / n
