"""The rows of the MHD-like set, made from pen trajectories and recordings: what is paired with what, and split how.

A digit's picture is drawn from its own strokes, so image and trajectory are a true pair.  Its sound is a recording of
the same digit, by anybody.  Writers and recordings of one split occur in no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pyro_mm.data.fsdd import Recording
from pyro_mm.data.mel import log_mel, one_second
from pyro_mm.data.pen import as_vector, normalised, rendered, resampled
from pyro_mm.data.pendigits import PenDigit

__all__ = ["SPLITS", "made_rows", "paired"]

SPLITS = ("train", "validation", "test")
HELD_WRITERS = (28, 29, 30)  # of the 30 training writers: for validation
HELD_TAKES = range(5, 9)  # of the recordings 5 to 49 that are for training: for validation
WIDTHS = (1.2, 2.8)  # of the pen, in pixels of 28
SOUNDS_AT_ONCE = 250
LEVELS = 255


def made_rows(
    digits: Mapping[str, Sequence[PenDigit]], recordings: Sequence[Recording], seed: int
) -> dict[str, np.ndarray]:
    """Arrays of everything: `sound` (recordings, 32, 128) uint8, and for each split s, of N rows,

    `s_image` (N, 28, 28) uint8, `s_trajectory` (N, 200) float16, `s_label` and `s_writer` (N,) uint8, and `s_recording`
    (N,) int16, the row's place in `sound`.

    Args:
        digits: the files' "train" and "test".
        seed: of the pen's width in every row, and of which recording goes with which row.
    """
    random = np.random.RandomState(seed)  # its streams are the same in every version of numpy, unlike a Generator's
    said = np.array([r.label for r in recordings])
    arrays = {"sound": _sounds(recordings)}
    for split in SPLITS:
        rows = [d for d in digits["test" if split == "test" else "train"] if split in ("test", _fold(d))]
        label = np.array([d.label for d in rows], np.uint8)
        takes = np.array([i for i, r in enumerate(recordings) if _take(r) == split])
        arrays[f"{split}_image"], arrays[f"{split}_trajectory"] = _drawn(rows, random.uniform(*WIDTHS, len(rows)))
        arrays[f"{split}_label"] = label
        arrays[f"{split}_writer"] = np.array([d.writer for d in rows], np.uint8)
        arrays[f"{split}_recording"] = takes[paired(label, said[takes], random)].astype(np.int16)
    return arrays


def paired(label: np.ndarray, said: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """For every row a place in `said` that holds its label; within a class all places are used equally often, +-1.

    Raises:
        ValueError: nobody says one of the digits.
    """
    chosen = np.empty(len(label), np.int64)
    for digit in np.unique(label):
        rows, places = np.flatnonzero(label == digit), np.flatnonzero(said == digit)
        if not len(places):
            raise ValueError(f"sound: no recording of the digit {digit}")
        rounds = [random.permutation(places) for _ in range(-(-len(rows) // len(places)))]
        chosen[rows] = np.concatenate(rounds)[: len(rows)]
    return chosen


def _fold(digit: PenDigit) -> str:
    return "validation" if digit.writer in HELD_WRITERS else "train"


def _take(recording: Recording) -> str:
    if recording.test:
        return "test"
    return "validation" if recording.index in HELD_TAKES else "train"


def _drawn(digits: Sequence[PenDigit], widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(digits), 28, 28), np.uint8)
    points = np.empty((len(digits), 100, 2), np.float16)
    for i, (digit, width) in enumerate(zip(digits, widths, strict=True)):
        strokes = normalised(digit.strokes)
        images[i] = np.rint(rendered(strokes, width) * LEVELS)
        points[i] = resampled(strokes)
    return images, as_vector(points)


def _sounds(recordings: Sequence[Recording]) -> np.ndarray:
    seconds = torch.stack([one_second(torch.from_numpy(r.wave)) for r in recordings])
    parts = [(log_mel(s) * LEVELS).round().to(torch.uint8) for s in seconds.split(SOUNDS_AT_ONCE)]
    return torch.cat(parts).numpy()
