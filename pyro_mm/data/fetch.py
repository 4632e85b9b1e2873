"""Public files fetched once, whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from pyro_mm.data import lzw
from pyro_mm.files import write_atomic

__all__ = ["cache_folder", "fetched", "unpacked"]

TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where downloads go unless `root` says otherwise: `$XDG_CACHE_HOME/pyro_mm`, by default `~/.cache/pyro_mm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_mm"


def fetched(
    url: str,
    path: str | Path,
    most: int,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    decode: Callable[[bytes], bytes] | None = None,
) -> Path:
    """The file `path`, downloaded from `url` unless it is there already.

    It appears under its name only when it is complete, so that an interrupted download, or two at the same time,
    leave a whole file or none.

    Args:
        most: refuse a download of more bytes than this.
        md5, sha256: refuse one with another digest, taken before `decode`.
        decode: what is stored is `decode` of the downloaded bytes; a ValueError from it names the URL.

    Raises:
        RuntimeError: the URL cannot be reached, naming it and the way to do without a network.
        ValueError: what came is too long, too short, or has another digest.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.is_file():
        return path
    data = _received(url, path, most)
    for name, wanted in (("md5", md5), ("sha256", sha256)):
        if wanted is not None:
            found = hashlib.new(name, data, usedforsecurity=False).hexdigest()
            if found != wanted:
                raise ValueError(f"{url} is not the original file: its {name} is {found}, expected {wanted}")
    if decode is not None:
        try:
            data = decode(data)
        except ValueError as error:
            raise ValueError(f"{url}: {error}") from error
    return write_atomic(path, data)


def unpacked(data: bytes) -> bytes:
    """`data` without its compression, `.Z` or gzip, told by its first bytes; other data as they are.

    Raises:
        ValueError: the compressed data are truncated or corrupt.
    """
    if data[:2] == lzw.MAGIC:
        return lzw.unlzw(data)
    if data[:2] == b"\x1f\x8b":
        try:
            return gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"truncated or corrupt: {error}") from error
    return data


def _received(url: str, path: Path, most: int) -> bytes:
    """All bytes behind `url`, at most `most`."""
    parts, size = [], 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            promised = answer.headers.get("Content-Length")
            if promised is not None and int(promised) > most:
                raise ValueError(f"{url} is not the original file: it has {promised} bytes, at most {most} expected")
            while part := answer.read(CHUNK):
                parts.append(part)
                size += len(part)
                if size > most:
                    raise ValueError(f"{url} is not the original file: it has more than {most} bytes")
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise RuntimeError(
            f"{url} could not be downloaded: {reason}\n"
            f"Without a network, copy {path.name} to a folder and pass root=that folder"
        ) from error
    if promised is not None and size != int(promised):
        raise ValueError(f"{url}: the connection ended after {size} of {promised} bytes; try again")
    return b"".join(parts)
