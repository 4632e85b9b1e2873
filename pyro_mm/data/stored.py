"""Arrays kept on disk under a key and a checksum, so that a file that was damaged or made otherwise is never used."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_mm.files import BadFile, write_atomic

__all__ = ["key_of", "read_arrays", "write_arrays"]

KEY, CHECKSUM = "key", "checksum"
DAMAGE = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def write_arrays(path: str | Path, key: str, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write `arrays` to one compressed .npz, atomically; `key` says what they were made from.

    Raises:
        OSError: the file cannot be written.
    """
    whole: dict[str, Any] = {**arrays, KEY: np.array(key), CHECKSUM: np.array(_checksum(key, arrays))}
    return write_atomic(path, lambda file: np.savez_compressed(file, **whole))


def read_arrays(path: str | Path) -> tuple[str, dict[str, np.ndarray]]:
    """Key and arrays of a file that `write_arrays` wrote; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        BadFile: it is truncated, corrupt, or no such file, naming it.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            arrays = dict(np.load(file, allow_pickle=False))
            key, wanted = str(arrays.pop(KEY)), str(arrays.pop(CHECKSUM))
        except (*DAMAGE, TypeError) as error:  # TypeError: a lone array is no dictionary
            raise BadFile(f"{path} is truncated or corrupt: {error}") from error
    if _checksum(key, arrays) != wanted:
        raise BadFile(f"{path} is corrupt: its contents do not match their checksum")
    return key, arrays


def key_of(path: str | Path) -> str | None:
    """The key alone, without reading the arrays; None where there is none to read."""
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return str(arrays[KEY])
    except (*DAMAGE, TypeError, AttributeError):
        return None


def _checksum(key: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(key.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
