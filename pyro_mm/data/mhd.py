"""The Multimodal Handwritten Digits benchmark (Vasco et al. 2022) from its two official files.

Each is a tuple of six, saved by torch: labels (N,), images (N, 1, 28, 28), trajectories (N, 200), sounds in chunks of
bands, and the greatest and least value that trajectories and sounds had before they were scaled to [0, 1].
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.data.mel import BANDS, FRAMES
from pyro_mm.data.mhd_modalities import mhd_modalities
from pyro_mm.data.splits import Splits

__all__ = ["SOUND_RANGE", "TRAJECTORY_RANGE", "mhd"]

DRIVE = {"mhd_train.pt": "1Tj1i-hXA0INQpU0jmuTMO4IwfDoGD2oV", "mhd_test.pt": "1qiEjFNCFn1ws383pKmY3zJtm4JDymOU6"}
"""The official files and their ids on Google Drive."""
PARTS = ("labels", "images", "trajectories", "sounds", "trajectory range", "sound range")
TRAJECTORY_RANGE = (-2.7722983360290527, 2.4120986461639404)
"""Least and greatest coordinate, which are 0 and 1 in the data."""
SOUND_RANGE = (-200.0, -47.563736)
"""Least and greatest dB, which are 0 and 1 in the data."""
SHARE = 0.1  # of the training file, for validation
CLOSE = 1e-4  # rounding allowed in ranges and at the ends of [0, 1]


def mhd(root: str | Path | None = None, seed: int = 0) -> Splits:
    """The MHD benchmark: `image` (1, 28, 28), `trajectory` (200,), `sound` (1, 32, 128), `label` 0..9.

    Args:
        root: a folder that holds mhd_train.pt and mhd_test.pt, or has them in a folder `mhd`.
        seed: decides which 10 % of the training file are the validation rows.

    Raises:
        FileNotFoundError: a file is missing; the message says where to get it.
        ValueError: naming file and part, when a file is truncated, corrupt, needs to be unpickled, or does not hold
            what MHD holds.
    """
    train_file, test_file = (_found(root, name) for name in DRIVE)
    every, test = _rows(train_file), _rows(test_file)
    held = round(SHARE * len(every))
    if not 0 < held < len(every):
        raise ValueError(f"{train_file}: {len(every)} rows are too few to keep a tenth for validation")
    # RandomState's streams are the same in every version of numpy, so that a seed names the same rows everywhere.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(every)))
    validation, train = every[order[:held].sort().values], every[order[held:].sort().values]
    note = f"MHD (Vasco et al. 2022), official test file; a random tenth of the training file held out by seed {seed}"
    return Splits("mhd", mhd_modalities(), train, validation, test, "label", note)


def _found(root: str | Path | None, name: str) -> Path:
    places = [] if root is None else [Path(root).expanduser(), Path(root).expanduser() / "mhd"]
    path = next((p / name for p in places if (p / name).is_file()), None)
    if path is None:
        ids = ", ".join(f"{n} (https://drive.google.com/uc?id={i})" for n, i in DRIVE.items())
        where = f"no {name} in {' or '.join(map(str, places))}" if places else "where is it?"
        raise FileNotFoundError(
            f"MHD: {where} Google Drive gives the files to browsers only: open {ids}, save both in one folder, and "
            "pass root=that folder. `mhd_like` is a stand-in from public data"
        )
    return path


def _rows(path: Path) -> Batch:
    """The checked rows of one file."""
    parts = _loaded(path)
    label, image, trajectory = (_tensor(path, k, parts[k]) for k in range(3))
    sound = _sound(path, parts[3])
    n, floats = len(label), torch.get_default_dtype()
    shapes = {0: (n,), 1: (n, 1, 28, 28), 2: (n, 200), 3: (n, 1, FRAMES, BANDS)}
    for k, x in enumerate((label, image, trajectory, sound)):
        if tuple(x.shape) != shapes[k] or not n:
            raise _error(path, k, f"shape {tuple(x.shape)}, expected {shapes[k] if n else '(N,) with N > 0'}")
    _check_range(path, 4, parts[4], TRAJECTORY_RANGE)
    _check_range(path, 5, parts[5], SOUND_RANGE)
    if sorted(label.unique().tolist()) != list(range(10)):
        raise _error(path, 0, f"labels {label.unique().tolist()}, expected every one of 0 to 9")
    names = {"image": (1, image), "trajectory": (2, trajectory), "sound": (3, sound)}
    return Batch({**{m: _unit(path, k, x.to(floats)) for m, (k, x) in names.items()}, "label": label.long()})


def _loaded(path: Path) -> Sequence[Any]:
    """The six parts, read without running anything that the file may bring along."""
    try:
        parts = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).strip() or type(error).__name__
        if "Unsupported" in reason and zipfile.is_zipfile(path):
            kind = next(line for line in reason.splitlines() if "Unsupported" in line).strip()
            raise ValueError(
                f"{path} holds more than tensors and numbers, which could run code when loaded, and is refused "
                f"({kind}). If you trust it, load it once with weights_only=False and save its six parts as plain "
                "tensors and floats"
            ) from error
        raise ValueError(f"{path} is truncated or corrupt: {reason.splitlines()[0]}. Fetch it again") from error
    if not isinstance(parts, tuple | list) or len(parts) != len(PARTS):
        form = f"{type(parts).__name__}" + (f" of {len(parts)}" if hasattr(parts, "__len__") else "")
        raise ValueError(f"{path} holds a {form}, expected a tuple of {len(PARTS)}: {', '.join(PARTS)}")
    return parts


def _sound(path: Path, chunks: Any) -> Tensor:
    """Chunks of bands by frames, `(N, C, BANDS / C, FRAMES)` or N lists of C, as `(N, 1, FRAMES, BANDS)`."""
    if not isinstance(chunks, Tensor) and len(chunks) and isinstance(chunks[0], tuple | list):
        chunks = [_tensor(path, 3, row) for row in chunks]
    x = _tensor(path, 3, chunks)
    if x.dim() != 4 or x.shape[1] * x.shape[2] != BANDS or x.shape[3] != FRAMES:
        expected = f"(N, C, bands, {FRAMES}) with C * bands = {BANDS}"
        raise _error(path, 3, f"shape {tuple(x.shape)}, expected {expected}")
    return x.flatten(1, 2).unsqueeze(1).transpose(-1, -2).contiguous()


def _tensor(path: Path, k: int, x: Any) -> Tensor:
    """Part k as one tensor, from a tensor or a list of equal ones or of numbers."""
    try:
        if isinstance(x, list | tuple) and len(x) and isinstance(x[0], Tensor):
            return torch.stack(list(x))
        return torch.as_tensor(x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise _error(path, k, f"a {type(x).__name__} that makes no tensor ({error})") from error


def _unit(path: Path, k: int, x: Tensor) -> Tensor:
    """`x`, checked to lie in [0, 1] up to rounding, which is cut off."""
    low, high = x.aminmax()
    if not (low >= -CLOSE and high <= 1 + CLOSE):  # also for NaN
        raise _error(path, k, f"values from {low.item():g} to {high.item():g}, expected [0, 1]")
    return x.clamp_(0, 1)


def _check_range(path: Path, k: int, found: Any, expected: tuple[float, float]) -> None:
    if not isinstance(found, Mapping) or not {"min", "max"} <= set(found):
        raise _error(path, k, f"a {type(found).__name__}, expected a dictionary with 'min' and 'max'")
    low, high = float(found["min"]), float(found["max"])
    if not all(abs(a - b) <= CLOSE for a, b in zip((low, high), expected, strict=True)):
        raise _error(path, k, f"({low:g}, {high:g}), expected ({expected[0]:g}, {expected[1]:g})")


def _error(path: Path, k: int, what: str) -> ValueError:
    return ValueError(f"{path}, part {k} ({PARTS[k]}) holds {what}")
