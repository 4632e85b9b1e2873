"""A stand-in for the MHD benchmark from public data: real pens, pictures drawn from them, real voices.

It has MHD's shapes and modalities but is not MHD: numbers on the two do not compare.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch

from pyro_mm.batch import Batch
from pyro_mm.data import fsdd, pendigits
from pyro_mm.data.fetch import cache_folder, fetched, unpacked
from pyro_mm.data.mhd_like_rows import LEVELS, SPLITS, made_rows
from pyro_mm.data.mhd_modalities import mhd_modalities
from pyro_mm.data.splits import Splits
from pyro_mm.data.stored import key_of, read_arrays, write_arrays
from pyro_mm.files import BadFile

__all__ = ["mhd_like"]

FORMAT = 1  # of the cache; changes whenever `made_rows` gives other rows
URLS = {
    "pendigits-orig.tra": "https://archive.ics.uci.edu/ml/machine-learning-databases/pendigits/pendigits-orig.tra.Z",
    "pendigits-orig.tes": "https://archive.ics.uci.edu/ml/machine-learning-databases/pendigits/pendigits-orig.tes.Z",
    "recordings.zip": "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip",
}
MOST = 100_000_000  # bytes of one download
NOTE = (
    "MHD-like, not MHD: UCI pendigits (CC BY 4.0) with pictures drawn from their strokes, and FSDD 1.0.10 (CC BY-SA "
    "4.0) paired within a digit; writers and recordings are disjoint between splits; pairing by seed"
)
log = logging.getLogger(__name__)


def mhd_like(
    root: str | Path | None = None, download: bool = False, seed: int = 0, cache: str | Path | None = None
) -> Splits:
    """MHD-like digits (not MHD): `image` (1, 28, 28), `trajectory` (200,), `sound` (1, 32, 128), `label` 0..9.

    Train: 27 writers and recordings 9 to 49 of each speaker; validation: 3 other writers and recordings 5 to 8; test:
    the 14 test writers and recordings 0 to 4.  The first call takes about a quarter of a minute; what it makes is kept.

    Args:
        root: a folder that holds pendigits-orig.tra, pendigits-orig.tes and recordings.zip (or the wav files), or
            has them in folders `pendigits` and `fsdd`; or one that holds a file mhd_like*.npz kept by an earlier call.
        download: fetch what is missing (20 MB), into `root` or else `cache_folder()`.
        seed: of the pairing of sounds, and of the width of the pen in each picture.
        cache: the folder where the rows are kept, by default `cache_folder()`.

    Raises:
        FileNotFoundError: naming what is missing, where it was looked for, and what to do.
        ValueError: a file is truncated, corrupt or not the original one, naming it.
        RuntimeError: the download failed, naming the URL and the cure.
    """
    key = _key(seed)
    store = (cache_folder() if cache is None else Path(cache).expanduser()) / f"mhd_like-{key}.npz"
    base = cache_folder() if root is None else Path(root).expanduser()
    if root is not None and (ready := _kept_in(base, key)) is not None:
        return _splits(ready, seed)
    lacking = _lacking(base)
    if (root is None or download or not lacking) and (kept := _kept(store, key)) is not None:
        return _splits(kept, seed)
    if lacking:
        if not download:
            raise FileNotFoundError(_what_to_do(root, base, lacking, key))
        _download(base, lacking)
    rows = made_rows(_pen(base), fsdd.fsdd(_sounds_in(base) or base), seed)
    try:
        write_arrays(store, key, rows)
    except OSError as error:  # a read-only home must not stop anybody
        log.info("MHD-like: the rows could not be kept for next time: %s", error)
    return _splits(rows, seed)


def _splits(rows: dict[str, np.ndarray], seed: int) -> Splits:
    train, validation, test = (_batch(rows, split) for split in SPLITS)
    return Splits("mhd_like", mhd_modalities(), train, validation, test, "label", f"{NOTE} {seed}")


def _batch(rows: dict[str, np.ndarray], split: str) -> Batch:
    dtype = torch.get_default_dtype()
    image, sound = torch.from_numpy(rows[f"{split}_image"]), torch.from_numpy(rows["sound"])
    place = torch.from_numpy(rows[f"{split}_recording"]).long()
    return Batch(
        {
            "image": image[:, None].to(dtype).div_(LEVELS),
            "trajectory": torch.from_numpy(rows[f"{split}_trajectory"]).to(dtype),
            "sound": sound[place, None].to(dtype).div_(LEVELS),
            "label": torch.from_numpy(rows[f"{split}_label"]).long(),
        }
    )


def _key(seed: int) -> str:
    """Names what the rows are made from: the originals (nothing else is accepted), the seed, and this code's format."""
    made_from = (FORMAT, seed, *sorted(pendigits.MD5.items()), fsdd.MD5)
    return hashlib.sha256(repr(made_from).encode()).hexdigest()[:12]


def _kept(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The rows kept in `path`; None if there are none or they are damaged, and so must be made again."""
    try:
        found, rows = read_arrays(path)
    except FileNotFoundError:
        return None
    except (BadFile, OSError) as error:
        log.info("MHD-like: the rows are made again: %s", error)
        return None
    return rows if found == key else None


def _kept_in(root: Path, key: str) -> dict[str, np.ndarray] | None:
    """The rows in a file mhd_like*.npz of `root`, whatever the rest of its name."""
    for path in sorted(root.glob("mhd_like*.npz")):
        if key_of(path) == key and (rows := _kept(path, key)) is not None:
            return rows
    return None


def _pen_in(base: Path, name: str) -> Path | None:
    return next((p for p in (base / "pendigits", base) if (p / name).is_file()), None)


def _sounds_in(base: Path) -> Path | None:
    return next((p for p in (base / "fsdd", base) if fsdd.find_recordings(p) is not None), None)


def _lacking(base: Path) -> list[str]:
    """The files that are in neither layout."""
    lacking = [name for name in pendigits.FILES.values() if _pen_in(base, name) is None]
    return lacking if _sounds_in(base) else [*lacking, fsdd.ARCHIVE]


def _pen(base: Path) -> dict[str, list[pendigits.PenDigit]]:
    return {part: pendigits.pendigits(_pen_in(base, name) or base, part) for part, name in pendigits.FILES.items()}


def _download(base: Path, lacking: list[str]) -> None:
    for name in lacking:
        folder = base / ("fsdd" if name == fsdd.ARCHIVE else "pendigits")
        fetched(URLS[name], folder / name, MOST, decode=None if name == fsdd.ARCHIVE else unpacked)


def _what_to_do(root: str | Path | None, base: Path, lacking: list[str], key: str) -> str:
    if root is None:
        return (
            "MHD-like: where is it? Pass root=FOLDER (--root) with its files (pendigits-orig.tra, pendigits-orig.tes, "
            f"recordings.zip), or download=True (--download) to fetch 20 MB into {base}"
        )
    others = sorted(p.name for p in base.glob("mhd_like*.npz"))
    text = f"MHD-like: root={base} lacks {', '.join(lacking)}, looked for there and in its folders pendigits and fsdd"
    if others:
        text += f"; its {', '.join(others)} is damaged or made with another seed or version (expected key {key})"
    return f"{text}. Correct root, or pass download=True (--download)"
