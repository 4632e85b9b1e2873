"""Pen trajectories: strokes as arrays of points, as one path of equal steps, as a vector, and as a picture.

A stroke is an array `(T, 2)` of points (x, y), y growing upwards, drawn without lifting the pen; a digit is a list of
strokes.  A picture of size 28x28 has its first row at the top, so y = 1 is row 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from torch import Tensor

__all__ = ["MARGIN", "Strokes", "as_points", "as_vector", "normalised", "rendered", "resampled"]

Strokes: TypeAlias = Sequence[np.ndarray]
Array = TypeVar("Array", Tensor, np.ndarray)

MARGIN = 0.1
"""Of the unit square, left free on the digit's longer axis: room for half the thickest pen."""
FINE = 2  # each pixel is the mean of FINE x FINE points


def normalised(strokes: Strokes | np.ndarray, margin: float = MARGIN) -> list[np.ndarray]:
    """The strokes moved and scaled, aspect kept, so that their bounding box is centred in the unit square.

    Its longer side becomes 1 - 2 `margin`.  A digit without extent (a dot) is put in the middle.
    """
    checked = _checked(strokes)
    every = np.concatenate(checked)
    low, high = every.min(0), every.max(0)
    extent = float((high - low).max())
    scale = (1 - 2 * margin) / extent if extent > 0 else 0.0
    return [(s - (low + high) / 2) * scale + 0.5 for s in checked]


def resampled(strokes: Strokes | np.ndarray, n: int = 100) -> np.ndarray:
    """`(n, 2)` points at equal steps of arc length along the whole path, its strokes joined in order by straight lines.

    First and last points are kept.  A dot gives n equal points.
    """
    path = np.concatenate(_checked(strokes))
    steps = np.hypot(*np.diff(path, axis=0).T)
    moved = np.concatenate([[True], steps > 0])  # a resting pen adds points but no length
    path, at = path[moved], np.concatenate([[0.0], np.cumsum(steps[steps > 0])])
    wanted = np.linspace(0, at[-1], n)
    return np.stack([np.interp(wanted, at, path[:, axis]) for axis in (0, 1)], -1)


def as_vector(points: Array) -> Array:
    """`(..., n, 2)` points as `(..., 2 n)`: all x, then all y."""
    if points.ndim < 2 or points.shape[-1] != 2:
        raise ValueError(f"trajectory: points must be (..., n, 2), got shape {tuple(points.shape)}")
    return points.swapaxes(-1, -2).reshape(*points.shape[:-2], 2 * points.shape[-2])


def as_points(vector: Array) -> Array:
    """`(..., 2 n)`, all x and then all y, as `(..., n, 2)` points: the inverse of `as_vector`."""
    if vector.ndim < 1 or vector.shape[-1] % 2:
        raise ValueError(f"trajectory: a vector must be (..., 2 n), got shape {tuple(vector.shape)}")
    return vector.reshape(*vector.shape[:-1], 2, vector.shape[-1] // 2).swapaxes(-1, -2)


def rendered(strokes: Strokes | np.ndarray, width: float = 2.0, size: int = 28) -> np.ndarray:
    """The strokes drawn by a round pen: `(size, size)` float32, 0 paper to 1 ink, edges smooth.

    No ink falls between one stroke's end and the next one's start; a single array `(T, 2)` is one stroke.

    Args:
        strokes: points in the unit square; what lies outside is cut off.
        width: of the pen, in pixels.
    """
    if not width > 0:
        raise ValueError(f"image: the pen's width must be positive, got {width}")
    start, along = _segments(_checked(strokes))
    fine = size * FINE
    axis = ((np.arange(fine) + 0.5) / fine).astype(np.float32)
    # For every point of the grid (rows from the top) and every segment: the nearest place t along the segment.
    dx = axis[None, None, :] - start[:, 0, None, None]
    dy = axis[None, ::-1, None] - start[:, 1, None, None]
    ax, ay = along[:, 0, None, None], along[:, 1, None, None]
    t = np.clip((dx * ax + dy * ay) / np.maximum(ax * ax + ay * ay, 1e-12), 0, 1)
    distance = np.sqrt(((dx - t * ax) ** 2 + (dy - t * ay) ** 2).min(0))
    ink = np.clip((width / 2 / size - distance) * fine + 0.5, 0, 1)  # the edge fades over one fine point
    return ink.reshape(size, FINE, size, FINE).mean((1, 3))


def _segments(strokes: Strokes) -> tuple[np.ndarray, np.ndarray]:
    """Starts `(S, 2)` and directions `(S, 2)` of all lines within strokes; a stroke of one point is a line of none."""
    lines = [s if len(s) > 1 else np.repeat(s, 2, 0) for s in strokes]
    starts = np.concatenate([s[:-1] for s in lines])
    return starts.astype(np.float32), np.concatenate([np.diff(s, axis=0) for s in lines]).astype(np.float32)


def _checked(strokes: Strokes | np.ndarray) -> list[np.ndarray]:
    several = [strokes] if isinstance(strokes, np.ndarray) else list(strokes)
    arrays = [np.asarray(s, dtype=np.float64) for s in several]
    bad = [a.shape for a in arrays if a.ndim != 2 or a.shape[1] != 2 or not len(a)]
    if bad or not arrays:
        raise ValueError(f"trajectory: a stroke is an array (T, 2) with T > 0, got shapes {bad or 'of no stroke'}")
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("trajectory: a stroke holds NaN or infinite coordinates")
    return arrays
