"""The IDX format of MNIST and its relatives: bytes 00 00, type, number of axes, big-endian sizes, data row by row."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

__all__ = ["decoded_md5", "read_idx"]

UNSIGNED_BYTE = 0x08
MOST = 1 << 31  # bytes; a header that asks for more is corrupt, and must not make us allocate them


def read_idx(path: str | Path, shape: Sequence[int] | None = None, md5: str | None = None) -> Tensor:
    """The uint8 tensor in an IDX file, plain or gzipped (told apart by content, not by name).

    Args:
        shape: refuse the file unless it holds exactly this shape.
        md5: refuse it unless its data (after decompression, without the header) have this digest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file, when it is truncated, corrupt, no IDX file of unsigned bytes, longer than its
            header says, of another shape, or of another digest.
    """
    path = Path(path)
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            if zipped:
                with gzip.GzipFile(fileobj=raw) as stream:
                    data = _read(path, cast(BinaryIO, stream), shape)
            else:
                data = _read(path, raw, shape)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is truncated or corrupt: {error}") from error
    if md5 is not None and (found := decoded_md5(data)) != md5:
        raise ValueError(f"{path} is not the original file: its data have md5 {found}, expected {md5}")
    return data


def decoded_md5(data: Tensor) -> str:
    """md5 of a uint8 tensor's bytes, row by row."""
    return hashlib.md5(data.contiguous().numpy().tobytes(), usedforsecurity=False).hexdigest()


def _read(path: Path, stream: BinaryIO, shape: Sequence[int] | None) -> Tensor:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != UNSIGNED_BYTE or head[3] == 0:
        raise ValueError(f"{path} is no IDX file of unsigned bytes: it starts with {head.hex(' ') or 'nothing'}")
    axes = stream.read(4 * head[3])
    if len(axes) < 4 * head[3]:
        raise ValueError(f"{path} is truncated: its header ends after {4 + len(axes)} bytes")
    sizes = struct.unpack(f">{head[3]}I", axes)
    if shape is not None and sizes != tuple(shape):
        raise ValueError(f"{path} holds shape {sizes}, expected {tuple(shape)}")
    count = prod(sizes)
    if count > MOST:
        raise ValueError(f"{path} is corrupt: its header claims shape {sizes}, {count} bytes")
    # One byte more than promised: finds excess, and makes gzip read (and check) its checksum at the end.
    data = stream.read(count + 1)
    if len(data) != count:
        state = "is truncated: it holds only" if len(data) < count else "is corrupt: it holds more than"
        raise ValueError(f"{path} {state} {min(len(data), count)} of {count} bytes of data, shape {sizes}")
    if not count:
        return torch.empty(sizes, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(sizes)
