"""Arrays that stay on disk and give rows when asked: `.npy` files, uncompressed `.npz` files, Zarr groups."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from pyro_mm.files import BadFile

__all__ = ["Column", "Mapped", "columns"]

MAPPED = 32 << 20  # bytes of a file that may be looked at before its map is closed
PAGES = 1 << 16  # that the system maps in at a touch


class Column(Protocol):
    """What has rows: an array's shape, its type, and the way to some of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def rows(self, which: np.ndarray) -> np.ndarray:
        """These rows, in increasing order, in memory of their own."""


class Mapped:
    """An array inside a file, from `offset` on.

    Pages of a map that were looked at count as this process's memory; so the map is closed now and then.  It is not
    pickled: every data loader worker makes its own.

    Raises:
        BadFile: the file is shorter than the array.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.offset, self.shape, self.dtype = path, offset, shape, dtype
        self.map: np.ndarray | None = None
        self.seen = 0
        self.row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        if offset + self.row * shape[0] > path.stat().st_size:
            raise BadFile(f"{path} is truncated: {shape} of {dtype} do not fit into its {path.stat().st_size} bytes")

    def rows(self, which: np.ndarray) -> np.ndarray:
        if self.map is None:
            self.map = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        run = len(which) > 0 and int(which[-1]) - int(which[0]) + 1 == len(which)
        found = np.array(self.map[which[0] : which[-1] + 1]) if run else np.asarray(self.map[which])
        self.seen += len(which) * (self.row if run else max(self.row, PAGES))
        if self.seen > MAPPED:
            self.map, self.seen = None, 0
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "map": None, "seen": 0}


class Chunked:
    """An array of a Zarr group, opened again in every process."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.array: Any = _group(path)[name]
        self.shape, self.dtype = tuple(self.array.shape), np.dtype(self.array.dtype)

    def rows(self, which: np.ndarray) -> np.ndarray:
        if self.array is None:
            self.array = _group(self.path)[self.name]
        return np.asarray(self.array.oindex[which])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "array": None}


def columns(path: Path) -> dict[str, Column]:
    """The arrays at `path` by name: a folder of `.npy` files, an uncompressed `.npz` file or a Zarr group.

    Raises:
        FileNotFoundError: nothing is there, or no arrays.
        BadFile: an array that cannot be mapped: compressed, truncated, of Python objects or in Fortran's order.
        ModuleNotFoundError: a Zarr group, but no zarr.
    """
    found: Mapping[str, Column]
    if path.is_dir() and (path.suffix == ".zarr" or any((path / f).exists() for f in (".zgroup", "zarr.json"))):
        found = {name: Chunked(path, name) for name in sorted(_group(path).array_keys())}
    elif path.is_dir():
        found = {file.name.removesuffix(".npy"): _npy(file) for file in sorted(path.glob("*.npy"))}
    elif path.suffix == ".npz" and path.exists():
        found = _npz(path)
    else:
        raise FileNotFoundError(f"{path} is neither a folder of .npy files, nor an .npz file, nor a Zarr group")
    if not found:
        raise FileNotFoundError(f"{path} holds no arrays")
    return dict(found)


def _npy(path: Path) -> Mapped:
    with path.open("rb") as file:
        return _array(file, path, str(path), 0)


def _npz(path: Path) -> dict[str, Column]:
    found: dict[str, Column] = {}
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = f"{path}, {member.filename}"
            if member.compress_type != zipfile.ZIP_STORED:
                raise BadFile(f"{name} is compressed and would have to be read whole: write it by numpy.savez")
            file.seek(member.header_offset + 26)  # the local header says how long name and extra field are
            lengths = np.frombuffer(file.read(4), "<u2")
            start = member.header_offset + 30 + int(lengths.sum())
            file.seek(start)
            found[member.filename.removesuffix(".npy")] = _array(file, path, name, start)
    return found


def _array(file: IO[bytes], path: Path, name: str, start: int) -> Mapped:
    """The array whose .npy header begins where the file stands, at `start`."""
    try:
        version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
        read: Callable[..., Any] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError) as error:
        raise BadFile(f"{name} is no array in .npy format: {error}") from error
    if fortran or dtype.kind not in "biuf" or not shape:
        what = "is in Fortran's order" if fortran else f"holds {dtype} of shape {shape}"
        raise BadFile(f"{name} {what}: rows of numbers, first dimension first, are needed")
    return Mapped(path, file.tell(), shape, dtype)


def _group(path: Path) -> Any:
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} is a Zarr group, which needs zarr: pip install zarr") from error
    return zarr.open_group(str(path), mode="r")
