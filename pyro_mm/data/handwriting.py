"""Handwritten digits from a model of pen movement: no file, any number, every one different.

The sigma-lognormal model (Plamondon 1995; O'Reilly & Plamondon 2009) has the brain send out a chain of commands, each
towards a virtual target point, and the arm answer each with a stroke.  Stroke j of length D moves along an arc of a
circle that turns by the angle `turn`.  The share of it that is done at time t is a lognormal distribution function,

    w(t) = Phi((ln(t - t0) - mu) / sigma),    so that its speed  D w'(t)  rises fast and falls slowly.

Strokes overlap in time: the next begins before the last has ended, the pen's velocity is their vector sum, and so it
rounds corners off and reaches no target but the last.  With the heading `start` + `turn` w the integral is closed:

    place(t) = D w exp(i (start + turn w / 2)) sinc(turn w / 2),    sinc(a) = sin(a) / a.

The pen never leaves the paper here: what the points say and what a picture of them shows are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from pyro_mm.data.pen import MARGIN

__all__ = ["Movement", "drawn_digits", "progress", "strokes_to", "trace"]

POINTS = 100
MEDIAN, SIGMA = 0.4, 0.3
"""Of a stroke's lognormal: seconds from its command to half its length, and the spread of their logarithm."""
AMPLITUDE, ANGLE, CURVATURE, TIMES = 0.2, np.deg2rad(20), 0.1, 0.1
"""The most that jitter changes a stroke: length as a share, start in radians, turn as a share, times as shares."""
SLANT, ASPECT = np.tan(np.deg2rad(15)), 0.2
"""The most that a whole digit leans, as a shear, and the most the logarithm of its width over height changes."""
SHARED = 0.5  # of the jitter of lengths and angles is the whole digit's: a hand is large or turned as a whole
EDGE = 0.005  # of the first stroke is done at the first point, and of the last is left at the last

FLOWING, CORNER = 0.55, 1.1
FORMS: dict[int, tuple[str, ...]] = {
    0: (
        "42 100, 0 50 90, 36 0 90, 72 50 90, 40 100 90",
        "55 95, 2 50 110, 36 0 80, 72 50 90, 30 100 100",
        "30 100, 72 50 -90, 36 0 -90, 0 50 -90, 33 100 -90",
    ),
    1: (
        "50 100, 48 0",
        "24 78, 48 100, 46 0",
        "22 78, 46 100, 46 0, 14 0, 78 0",
    ),
    2: (
        "5 76, 38 100 -80, 68 72 -90, 0 0 -25, 74 0",
        "5 80, 40 100 -80, 66 74 -90, 8 2 -35, 12 20 -190, 76 2 -70",
    ),
    3: (
        "4 86, 36 100 -70, 62 77 -90, 26 54 -80, 68 27 -120 110, 34 0 -90, 0 14 -55",
        "4 100, 62 100, 28 60, 68 29 -110 90, 34 0 -90, 0 12 -50",
    ),
    4: (
        "52 0, 52 100, 2 38, 78 38",
        "14 100, 4 44, 64 44, 58 96, 54 0",
    ),
    5: (
        "66 100, 12 100, 7 56, 66 31 -130 110, 30 0 -85, 0 12 -45",
        "60 97, 16 95, 9 55, 64 30 -140 110, 0 2 -95",
    ),
    6: (
        "58 100, 2 33 55, 33 0 85, 66 29 90, 34 56 90, 4 27 80",
        "36 100, 2 30 25, 33 0 90, 62 27 90, 34 50 90, 5 30 70",
    ),
    7: (
        "0 100, 68 100, 22 0 15 110",
        "0 84, 3 100, 70 100, 30 0 25 110",
    ),
    8: (
        "62 84, 35 100 85, 8 77 90, 35 53 55, 68 25 -60, 34 0 -90, 2 25 -90, 35 53 -60, 60 86 55",
        "36 100, 8 77 95, 35 53 55, 66 25 -60, 34 0 -90, 2 25 -90, 35 53 -60, 62 78 55, 36 100 95",
    ),
    9: (
        "62 80, 34 100 85, 4 72 90, 32 47 90, 62 82 80, 58 0 0 90",
        "60 82, 34 100 85, 4 73 90, 32 48 90, 62 80 80, 60 30 -15 90, 12 2 -80",
    ),
}
"""How each digit may be written: a starting point, then a target for each stroke, as "x y [turn [wait]]".

x and y are in hundredths of the digit's height, turn in degrees (none: straight).  How long the pen waits before it
starts on this one is in hundredths of a stroke's `MEDIAN`: by default `FLOWING`, at which strokes melt into one curve,
and before a straight one `CORNER`, at which the last has all but ended.
"""


@dataclass(frozen=True)
class Movement:
    """Strokes of N digits, S each, as arrays `(N, S)`; a digit with fewer has strokes of length 0.

    Attributes:
        length: along the arc.
        start: heading at the beginning, in radians, anticlockwise from the x axis.
        turn: by which the heading grows until the end; positive is to the left.
        onset, mu, sigma: time of the command in seconds, and mean and standard deviation of ln(time since then).
    """

    length: np.ndarray
    start: np.ndarray
    turn: np.ndarray
    onset: np.ndarray
    mu: np.ndarray
    sigma: np.ndarray


def strokes_to(target: np.ndarray, turn: np.ndarray, onset: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> Movement:
    """The strokes that end, each alone, at the vectors `target` (N, S, 2) from where they began."""
    chord = np.hypot(target[..., 0], target[..., 1])
    heading = np.arctan2(target[..., 1], target[..., 0])
    return Movement(chord / _sinc(turn / 2), heading - turn / 2, turn, onset, mu, sigma)


def progress(strokes: Movement, t: np.ndarray) -> np.ndarray:
    """The share w of each stroke that is done at the times t `(N, T)`, as `(N, T, S)` from 0 to 1."""
    since = np.maximum(t[..., None] - strokes.onset[:, None], 1e-12)
    z = (np.log(since) - strokes.mu[:, None]) / strokes.sigma[:, None]
    return torch.special.ndtr(torch.from_numpy(z)).numpy()


def trace(strokes: Movement, t: np.ndarray) -> np.ndarray:
    """Where the pen is at the times t `(N, T)`, as `(N, T, 2)` from its first place."""
    w = progress(strokes, t)
    half = strokes.turn[:, None] * w / 2
    chord, heading = strokes.length[:, None] * w * _sinc(half), strokes.start[:, None] + half
    return np.stack([(chord * np.cos(heading)).sum(-1), (chord * np.sin(heading)).sum(-1)], -1)


def drawn_digits(labels: np.ndarray, seed: int) -> np.ndarray:
    """Digits of the classes `labels` (N,), each drawn anew: `(N, 100, 2)` points (x, y) at equal steps of time.

    Each is centred in the unit square with its longer side 1 - 2 `MARGIN`, y growing upwards.  Points lie close where
    the pen is slow.  The same labels and seed give the same points.

    Raises:
        ValueError: `labels` is not (N,) of integers 0 to 9.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not np.isin(labels, range(10)).all():
        raise ValueError(f"trajectory: labels must be (N,) integers 0..9, got {labels.dtype} of shape {labels.shape}")
    random = np.random.RandomState((seed, 1))  # whose streams are the same in every version of numpy
    chosen = random.uniform(size=len(labels))
    forms = [FORMS[c][int(u * len(FORMS[c]))] for c, u in zip(labels.tolist(), chosen, strict=True)]
    strokes = _jittered(forms, random)
    points = trace(strokes, _clock(strokes))
    points[..., 0] *= np.exp(random.uniform(-ASPECT, ASPECT, (len(labels), 1)))
    points[..., 0] += random.uniform(-SLANT, SLANT, (len(labels), 1)) * points[..., 1]
    low, high = points.min(1, keepdims=True), points.max(1, keepdims=True)
    extent = (high - low).max(-1, keepdims=True)
    return (points - (low + high) / 2) * ((1 - 2 * MARGIN) / extent) + 0.5


def _jittered(forms: list[str], random: np.random.RandomState) -> Movement:
    """The strokes of these forms, each shape's own targets changed by chance."""
    tables = [_table(form) for form in forms]
    size = (len(forms), max(map(len, tables), default=1) - 1)
    target, turn, wait = np.zeros((*size, 2)), np.zeros(size), np.zeros(size)
    for i, table in enumerate(tables):
        n = len(table) - 1
        target[i, :n] = np.diff(table[:, :2], axis=0)
        turn[i, :n], wait[i, :n] = table[1:, 2:].T

    def jitter(most: float, shared: float = 0.0) -> np.ndarray:
        whole, own = random.uniform(-1, 1, (size[0], 1)), random.uniform(-1, 1, size)
        return most * (shared * whole + (1 - shared) * own)

    gaps = MEDIAN * wait * (1 + jitter(TIMES))
    mu, sigma = np.log(MEDIAN * (1 + jitter(TIMES))), SIGMA * (1 + jitter(TIMES))
    turn = turn * (1 + jitter(CURVATURE))
    plain = strokes_to(target, turn, np.cumsum(gaps, 1), mu, sigma)
    length = plain.length * (1 + jitter(AMPLITUDE, SHARED))
    return Movement(length, plain.start + jitter(ANGLE, SHARED), turn, plain.onset, mu, sigma)


@cache
def _table(form: str) -> np.ndarray:
    """One of `FORMS` as rows x, y, turn in radians, wait as a share of `MEDIAN`."""
    rows = []
    for numbers in form.split(","):
        x, y, turn, wait = [float(n) for n in numbers.split()] + [np.nan] * (4 - len(numbers.split()))
        turn = 0 if np.isnan(turn) else turn
        rows.append(
            (x / 100, y / 100, np.deg2rad(turn), (FLOWING if turn else CORNER) if np.isnan(wait) else wait / 100)
        )
    return np.array(rows)


def _clock(strokes: Movement) -> np.ndarray:
    """Equal steps of time `(N, POINTS)` from the first stroke's beginning to the last one's end."""
    reach = strokes.sigma * torch.special.ndtri(torch.tensor(1 - EDGE, dtype=torch.float64)).item()
    real = strokes.length > 0
    first = np.where(real, strokes.onset + np.exp(strokes.mu - reach), np.inf).min(1, initial=np.inf)
    last = np.where(real, strokes.onset + np.exp(strokes.mu + reach), 0).max(1, initial=0)
    return first[:, None] + (last - first)[:, None] * np.linspace(0, 1, POINTS)


def _sinc(angle: np.ndarray) -> np.ndarray:
    return np.sinc(angle / np.pi)
