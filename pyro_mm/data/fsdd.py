"""The Free Spoken Digit Dataset v1.0.10 (CC BY-SA 4.0): 3,000 recordings of "zero" to "nine" by six speakers, 8 kHz.

A file is named {digit}_{speaker}_{index}.wav; per digit and speaker, the recordings with index 0 to 4 are the
official test set.
"""

from __future__ import annotations

import hashlib
import io
import re
import wave
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyro_mm.data.mel import RATE

__all__ = ["MD5", "PER_DIGIT", "Recording", "content_md5", "find_recordings", "fsdd", "read_recordings"]

ARCHIVE = "recordings.zip"
PER_DIGIT = 300
MD5 = "ff85361eb902e9f272a15d726ab6c783"
"""Of `content_md5` of the complete set."""
TEST = range(5)  # indices of the official test set
NAME = re.compile(r"(?:.*/)?(\d)_([a-z]+)_(\d+)\.wav")
LONGEST = 1 << 20  # bytes; the longest original is 36 kB, and a corrupt archive must not make us allocate more


@dataclass(frozen=True, eq=False)
class Recording:
    """One spoken digit: samples int16 `(T,)` at 8 kHz, the digit, who spoke it, and which of his or her takes it is."""

    wave: np.ndarray
    label: int
    speaker: str
    index: int

    @property
    def test(self) -> bool:
        """Whether it belongs to the official test set."""
        return self.index in TEST


def fsdd(folder: str | Path) -> list[Recording]:
    """All 3,000 recordings in `folder`, in order of digit, speaker and index, checked to be the originals.

    `folder` holds recordings.zip, or the wav files, themselves or in a folder `recordings`.

    Raises:
        FileNotFoundError: no recordings there.
        ValueError: naming the file, when one is truncated or corrupt; or naming the digits whose count is wrong.
    """
    source = find_recordings(folder)
    if source is None:
        raise FileNotFoundError(f"{folder} holds no spoken digits: neither {ARCHIVE} nor files like 7_george_31.wav")
    every = read_recordings(source)
    counts = np.bincount([r.label for r in every], minlength=10).tolist()
    if counts != [PER_DIGIT] * 10:
        raise ValueError(f"{source} is incomplete: it holds {counts} recordings per digit, not {PER_DIGIT} of each")
    if (found := content_md5(every)) != MD5:
        raise ValueError(f"{source} is not version 1.0.10: its recordings have md5 {found}, expected {MD5}")
    return every


def find_recordings(folder: str | Path) -> Path | None:
    """The archive or the folder of wav files that `folder` holds; None if neither."""
    folder = Path(folder)
    if (folder / ARCHIVE).is_file():
        return folder / ARCHIVE
    places = (folder / "recordings", folder)
    return next((p for p in places if p.is_dir() and any(NAME.fullmatch(f.name) for f in p.iterdir())), None)


def read_recordings(source: str | Path) -> list[Recording]:
    """Every recording in an archive or a folder, in order of digit, speaker and index; other files are passed over.

    Raises:
        ValueError: naming the file, when it is truncated, corrupt, or not mono 16-bit sound at 8 kHz.
    """
    source = Path(source)
    if source.is_dir():
        names = [f.name for f in source.iterdir()]
        every = _recordings(source, names, lambda name: (source / name).read_bytes())
    else:
        every = _from_archive(source)
    return sorted(every, key=lambda r: (r.label, r.speaker, r.index))


def content_md5(recordings: Sequence[Recording]) -> str:
    """md5 of names and samples, however they are packed."""
    digest = hashlib.md5(usedforsecurity=False)
    for r in recordings:
        digest.update(f"{r.label} {r.speaker} {r.index} {len(r.wave)} ".encode())
        digest.update(r.wave.astype("<i2").tobytes())
    return digest.hexdigest()


def _from_archive(path: Path) -> list[Recording]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [i.filename for i in archive.infolist() if i.file_size <= LONGEST]
            return _recordings(path, names, archive.read)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is truncated or corrupt: {error}") from error


def _recordings(source: Path, names: Sequence[str], read: Callable[[str], bytes]) -> list[Recording]:
    found = [(name, match) for name in names if (match := NAME.fullmatch(name))]
    return [Recording(_samples(source / name, read(name)), int(m[1]), m[2], int(m[3])) for name, m in found]


def _samples(path: Path, raw: bytes) -> np.ndarray:
    """Samples `(T,)` of a wav file's bytes."""
    try:
        with wave.open(io.BytesIO(raw)) as file:
            form, claimed = (file.getnchannels(), file.getsampwidth(), file.getframerate()), file.getnframes()
            data = file.readframes(claimed)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is truncated or corrupt: {str(error) or 'it ends within its header'}") from error
    if form != (1, 2, RATE):
        raise ValueError(f"{path} has (channels, bytes, Hz) {form}, expected {(1, 2, RATE)}")
    if len(data) != 2 * claimed or not claimed:
        raise ValueError(f"{path} is truncated: it holds {len(data) // 2} of {claimed} samples")
    return np.frombuffer(data, "<i2").astype(np.int16)
