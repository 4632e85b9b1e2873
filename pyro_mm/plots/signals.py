"""Drawings of signals: a pen's way over the paper, and the spectrogram of a sound.

Modalities named `trajectory` and `sound` are drawn so by themselves where their shapes fit; for others these functions
serve as hooks: `show={"gesture": plots.stroke}`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from pyro_mm.plots.style import INK, tint

__all__ = ["is_spectrogram", "is_stroke", "spectrogram", "stroke"]

PALEST = 0.28  # share of the colour that is left at the end of a stroke
MARGIN = 0.1  # round a stroke, of its range


def stroke(ax: Any, value: Tensor, colour: str = INK, low: float = 0.0, high: float = 1.0) -> None:
    """A pen's way: a dot where it begins, and a line that pales towards its end; y upwards, x and y to one scale.

    Args:
        value: `(2 L,)`, first the L x coordinates, then the L y coordinates; or `(2, L)`.
        low, high: of both coordinates.

    Raises:
        ValueError: the value is no stroke.
    """
    from matplotlib.collections import LineCollection

    _expect(is_stroke(tuple(value.shape)), "stroke", "(2 L,) or (2, L)", value)
    points = value.detach().cpu().double().reshape(2, -1).T.numpy()
    segments = np.stack([points[:-1], points[1:]], 1)
    fading = [tint(colour, amount) for amount in np.linspace(1.0, PALEST, len(segments))]
    ax.add_collection(LineCollection(list(segments), colors=fading, linewidths=1.5, capstyle="round"))
    ax.plot(*points[:1].T, color=colour, marker="o", markersize=3.6, linestyle="")
    extra = MARGIN * (high - low)
    ax.set_xlim(low - extra, high + extra)
    ax.set_ylim(low - extra, high + extra)
    ax.set_aspect("equal")


def spectrogram(ax: Any, value: Tensor, low: float = 0.0, high: float = 1.0) -> None:
    """Loudness by time (to the right) and frequency (upwards), from black at `low` to pale yellow at `high`.

    Args:
        value: `(frames, bands)` or `(1, frames, bands)`.

    Raises:
        ValueError: the value is no spectrogram.
    """
    shape = tuple(value.shape)
    _expect(is_spectrogram(shape), "spectrogram", "(frames, bands) or (1, frames, bands)", value)
    bands = value.detach().cpu().double().reshape(shape[-2:]).T.numpy()
    ax.imshow(bands, cmap="magma", vmin=low, vmax=high, origin="lower", aspect="auto", interpolation="nearest")


def is_stroke(shape: tuple[int, ...]) -> bool:
    """Can a value of this event shape be read as x and y of two points or more?"""
    if len(shape) == 2:
        return shape[0] == 2 and shape[1] > 1
    return len(shape) == 1 and shape[0] % 2 == 0 and shape[0] > 3


def is_spectrogram(shape: tuple[int, ...]) -> bool:
    """Can a value of this event shape be read as frames of bands?"""
    return len(shape) in (2, 3) and shape[:-2] in ((), (1,)) and min(shape[-2:]) > 1


def _expect(fits: bool, kind: str, form: str, value: Tensor) -> None:
    if not fits:
        raise ValueError(f"a {kind} has shape {form}, got {tuple(value.shape)}")
