"""The writer of folders that `OnDisk` reads: block by block, and whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.data.on_disk import MASK
from pyro_mm.files import sync_folder, umask

__all__ = ["write_rows"]

MOST = 10**15  # rows that the space kept for a header can name


def write_rows(folder: str | Path, batches: Batch | Iterable[Batch]) -> Path:
    """Write rows to `folder` as `<modality>.npy` and, where rows lack a modality, `<modality>.mask.npy`.

    Batches are written as they come, so that their whole need not fit into memory.  The folder appears under its name
    when everything is on disk; after an error or a crash it is not there.

    Raises:
        FileExistsError: something is there already.
        ValueError: no rows, a batch with other modalities or event shapes or types than the first, stacked masks, or a
            name that no file can have; naming the modality.
        OSError: as the system reports it.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: rows are never written over")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        _write(temporary, [batches] if isinstance(batches, Batch) else batches)
        temporary.chmod(0o777 & ~umask())  # mkdtemp keeps others out
        sync_folder(temporary)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _write(folder: Path, batches: Iterable[Batch]) -> None:
    files: dict[str, _Growing] = {}
    some_missing = set()
    try:
        for batch in batches:
            known = [n for n in files if not n.endswith(MASK)]
            if files and set(known) != set(batch.names):
                raise ValueError(f"a batch holds {list(batch.names)}, those before it {known}")
            for m in batch.names:
                if not files.get(m):
                    _require_file_name(m)
                mask = batch.mask[m]
                if mask.dim() != 1:
                    raise ValueError(f"the mask of '{m}' has shape {tuple(mask.shape)}: rows are written, no views")
                if not bool(mask.all()):
                    some_missing.add(m)
                for name, value in ((m, batch.x[m]), (m + MASK, mask)):
                    if name not in files:
                        files[name] = _Growing(folder / f"{name}.npy", m, _array(value, m))
                    files[name].add(_array(value, m))
        if not any(f.rows for f in files.values()):
            raise ValueError(f"no rows were given for {folder.name}")
        for file in files.values():
            file.finish()
    finally:
        for file in files.values():
            file.file.close()
    for name in files:
        if name.endswith(MASK) and name.removesuffix(MASK) not in some_missing:
            (folder / f"{name}.npy").unlink()


class _Growing:
    """An .npy file whose number of rows is known at the end."""

    def __init__(self, path: Path, modality: str, first: np.ndarray) -> None:
        self.modality, self.event, self.dtype, self.rows = modality, first.shape[1:], first.dtype, 0
        self.length = len(_header(self.dtype, self.event, MOST))
        self.file: BinaryIO = open(path, "wb")  # noqa: SIM115  # closed by `_write`
        self.file.write(b"\0" * self.length)

    def add(self, rows: np.ndarray) -> None:
        if (rows.shape[1:], rows.dtype) != (self.event, self.dtype):
            raise ValueError(
                f"modality '{self.modality}' has event shape {rows.shape[1:]} and type {rows.dtype}, but before it had "
                f"{self.event} and {self.dtype}"
            )
        self.file.write(rows.tobytes())
        self.rows += len(rows)

    def finish(self) -> None:
        self.file.seek(0)
        self.file.write(_header(self.dtype, self.event, self.rows, self.length))
        self.file.flush()
        os.fsync(self.file.fileno())


def _header(dtype: np.dtype[Any], event: tuple[int, ...], n: int, length: int | None = None) -> bytes:
    """What begins an .npy file of format 1.0, padded to a multiple of 64 bytes or to `length`."""
    shape = (n, *event)
    text = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    size = length or -(-(10 + len(text) + 1) // 64) * 64
    return b"\x93NUMPY\x01\x00" + (size - 10).to_bytes(2, "little") + text.ljust(size - 11).encode() + b"\n"


def _array(value: Tensor, name: str) -> np.ndarray:
    try:
        return np.ascontiguousarray(value.detach().cpu().numpy())
    except TypeError as error:
        raise ValueError(f"modality '{name}' is {value.dtype}, which numpy lacks: change its type first") from error


def _require_file_name(name: str) -> None:
    if not name or name.startswith(".") or name.endswith(MASK) or any(c in name for c in '/\\\0:*?"<>|'):
        raise ValueError(f"modality '{name}' cannot be the name of a file")
