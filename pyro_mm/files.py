"""Files that are either the old ones or the new ones, never half of each, and readers that say what is wrong."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["BadFile", "json_bytes", "read_json", "sync_folder", "umask", "write_atomic", "write_json"]

Content = bytes | str | Callable[[BinaryIO], object]


class BadFile(ValueError):
    """A file is there but is not what it should be: truncated, corrupt, or of another version."""


def write_atomic(path: str | os.PathLike[str], content: Content) -> Path:
    """Write `path` so that a crash at any moment leaves the old file or the new one.

    The bytes go to a temporary file in the same folder, are forced to disk, and take the name in one step.  Folders
    above `path` are made.

    Args:
        path: the file.
        content: bytes, text (written as UTF-8), or a function that writes to the open binary file it is given.

    Raises:
        OSError: naming the file, as the system reports it (no space, no permission); `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise _named(error, path) from error
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~umask())  # mkstemp keeps others out; a result is for everyone the umask allows
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _named(error, path) from error
        raise
    sync_folder(path.parent)
    return path


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """`value` as indented JSON, atomically."""
    return write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """`value` as indented JSON with a final newline.

    Raises:
        TypeError: something inside has no JSON form.
    """
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        BadFile: it is empty, truncated, no JSON, or holds something other than an object; the message names it.
    """
    raw = Path(path).read_bytes()
    if not raw.strip(b"\0 \t\r\n"):
        raise BadFile(f"{path} is empty: its writing was interrupted")
    try:
        value = json.loads(raw)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise BadFile(f"{path} is truncated or corrupt: {error}") from error
    if not isinstance(value, dict):
        raise BadFile(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def umask() -> int:
    """The process's, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Force the renaming itself to disk, where the system has a way to."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open a folder
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse
        pass
    finally:
        os.close(handle)


def _named(error: OSError, path: Path) -> OSError:
    """The same error about `path` instead of the temporary file."""
    return type(error)(error.errno, error.strerror or str(error), str(path)) if error.errno else error
