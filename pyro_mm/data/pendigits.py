"""UCI's pen-based digits (data set 81, CC BY 4.0) in their original form: what 44 writers' pens did on a tablet.

The two files are UNIPEN text: per digit `.SEGMENT DIGIT <first stroke>[-<last>] ? "<label>"`,
`.COMMENT <label> <writer> <number>`, and per stroke `.PEN_DOWN`, lines "x y", `.PEN_UP`.  30 writers are for training
and 14 others for testing; writers are numbered within their file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["COUNTS", "FILES", "PenDigit", "content_md5", "pendigits", "read_unipen"]

FILES = {"train": "pendigits-orig.tra", "test": "pendigits-orig.tes"}
COUNTS = {
    "train": (780, 779, 780, 719, 780, 720, 720, 778, 719, 719),
    "test": (363, 364, 364, 336, 364, 335, 336, 364, 336, 336),
}
"""Digits of each class in the complete files."""
MD5 = {"train": "d8b4d7ec6f5eee5367fff03995cfd7a9", "test": "3ccabb6efdad3aface342e0ccb9c2787"}
"""Of `content_md5`."""


@dataclass(frozen=True, eq=False)
class PenDigit:
    """One digit: its strokes, each `(T, 2)` int16 (x, y) with y upwards, its label 0..9 and its writer's number."""

    strokes: tuple[np.ndarray, ...]
    label: int
    writer: int


def pendigits(folder: str | Path, part: str) -> list[PenDigit]:
    """The digits of `part`, "train" or "test", from `folder`, checked to be the complete original.

    Raises:
        FileNotFoundError: the folder does not hold the file.
        ValueError: the file is truncated or corrupt (naming the line), or does not hold the original's digits.
    """
    path = Path(folder) / FILES[part]
    digits = read_unipen(path)
    counts = tuple(np.bincount([d.label for d in digits], minlength=10).tolist())
    if counts != COUNTS[part]:
        raise ValueError(f"{path} is not the original file: it holds {counts} digits per class, not {COUNTS[part]}")
    if (found := content_md5(digits)) != MD5[part]:
        raise ValueError(f"{path} is not the original file: its digits have md5 {found}, expected {MD5[part]}")
    return digits


def read_unipen(path: str | Path) -> list[PenDigit]:
    """Every digit in a UNIPEN file, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming file and line, when the text is truncated or not of this form.
    """
    lines = _Lines(Path(path))
    digits = []
    while (head := lines.next_of(".SEGMENT")) is not None:
        digits.append(_digit(lines, head))
    if not digits:
        raise ValueError(f"{path} holds no digits: not one line starts with .SEGMENT")
    return digits


def content_md5(digits: Sequence[PenDigit]) -> str:
    """md5 of labels, writers and points, whatever the text's spaces and line ends."""
    digest = hashlib.md5(usedforsecurity=False)
    for d in digits:
        digest.update(np.array([d.label, d.writer, len(d.strokes), *map(len, d.strokes)], "<i2").tobytes())
        digest.update(np.concatenate(d.strokes).astype("<i2").tobytes())
    return digest.hexdigest()


class _Lines:
    """The lines that are not blank, one at a time, and errors that say where."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0
        self.every = self._read(path.read_bytes())

    def _read(self, raw: bytes) -> Iterator[list[str]]:
        for self.number, line in enumerate(raw.splitlines(), 1):
            if words := line.decode("latin-1").split():
                yield words

    def next(self, wanted: str) -> list[str]:
        """The next line's words."""
        words = next(self.every, None)
        if words is None:
            raise self.error(f"the file ends where {wanted} is expected: it is truncated")
        return words

    def next_of(self, head: str) -> list[str] | None:
        """The next line that starts with `head`, or None at the end; between digits only other headers may stand."""
        for words in self.every:
            if words[0] == head:
                return words
            if not words[0].startswith(".") or words[0] in (".PEN_DOWN", ".PEN_UP", ".COMMENT"):
                raise self.error(f"'{' '.join(words)}' stands outside a digit")
        return None

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.path}, line {self.number}: {what}")


def _digit(lines: _Lines, head: list[str]) -> PenDigit:
    try:
        _, kind, range_, _, quoted = head
        first, _, last = range_.partition("-")
        count = int(last or first) - int(first) + 1
        label = int(quoted.strip('"'))
    except ValueError:
        raise lines.error(f"'{' '.join(head)}' is no .SEGMENT DIGIT <strokes> ? \"<label>\"") from None
    if kind != "DIGIT" or not 0 <= label <= 9 or count < 1:
        raise lines.error(f"'{' '.join(head)}' is no digit 0 to 9 of one stroke or more")
    comment = lines.next(".COMMENT")
    if comment[0] != ".COMMENT" or len(comment) != 4 or not all(w.isdigit() for w in comment[1:]):
        raise lines.error(f"'{' '.join(comment)}' is no .COMMENT <label> <writer> <number>")
    if int(comment[1]) != label:
        raise lines.error(f"the comment says {comment[1]} where the segment's label is {label}")
    return PenDigit(tuple(_stroke(lines) for _ in range(count)), label, int(comment[2]))


def _stroke(lines: _Lines) -> np.ndarray:
    down = lines.next(".PEN_DOWN")
    while down[0] == ".DT":  # the time between two strokes
        down = lines.next(".PEN_DOWN")
    if down != [".PEN_DOWN"]:
        raise lines.error(f"'{' '.join(down)}' where .PEN_DOWN is expected")
    points: list[tuple[int, int]] = []
    while (words := lines.next(".PEN_UP")) != [".PEN_UP"]:
        try:
            x, y = map(int, words)
        except ValueError:
            raise lines.error(f"'{' '.join(words)}' is no point \"x y\"") from None
        if not (abs(x) < 1 << 15 and abs(y) < 1 << 15):
            raise lines.error(f"the point {x} {y} lies off any tablet")
        points.append((x, y))
    if not points:
        raise lines.error("a stroke without points")
    return np.array(points, dtype=np.int16)
