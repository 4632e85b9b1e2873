"""Miniature sets in idx files, with shapes and checksums of their own in place of the originals'."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_mm.data.idx import decoded_md5

Files = Mapping[str, tuple[str, tuple[int, ...], str | None]]


def idx(data: Tensor) -> bytes:
    """The bytes of an idx file."""
    return bytes([0, 0, 8, data.dim()]) + struct.pack(f">{data.dim()}I", *data.shape) + data.numpy().tobytes()


def miniature(files: Files, folder: Path, checked: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write 30 training and 10 test rows as gzipped files; returns the table of files to put in place, and the data."""
    g = torch.Generator().manual_seed(0)
    data, changed = {}, {}
    for kind, (stem, *_) in files.items():
        n = 30 if kind.startswith("train") else 10
        labels = (torch.arange(n) % 10).to(torch.uint8)
        picture = torch.randint(0, 256, (n, 28, 28), generator=g, dtype=torch.uint8)
        data[kind] = picture if kind.endswith("image") else labels
        changed[kind] = (stem, tuple(data[kind].shape), decoded_md5(data[kind]) if checked else None)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.gz").write_bytes(gzip.compress(idx(data[kind])))
    return changed, data
