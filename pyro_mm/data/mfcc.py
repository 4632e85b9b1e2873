"""Mel-frequency cepstral coefficients (Davis & Mermelstein 1980), and one vector of them for a whole recording.

Conventions are those of the package python_speech_features, which published work on these recordings used; the two
agree to rounding (`tests/data/test_mfcc.py`).
"""

from __future__ import annotations

import numpy as np

from pyro_mm.data.mel import RATE

__all__ = ["COEFFICIENTS", "mfcc", "mfcc_centroid"]

COEFFICIENTS = 13
BANDS, N_FFT = 26, 512
FRAME, STEP = 0.025, 0.01  # seconds
EMPHASIS, LIFTER = 0.97, 22
TINY = float(np.finfo(float).eps)  # stands for the power of silence, whose logarithm is wanted


def mfcc(wave: np.ndarray, rate: int = RATE) -> np.ndarray:
    """Coefficients `(frames, 13)` of samples `(T,)`: one frame of 25 ms every 10 ms, the last ones padded with zeros.

    Coefficient 0 is the logarithm of a frame's energy.

    Raises:
        ValueError: the samples are not `(T,)` with T > 0 and finite, or a frame is longer than the transform.
    """
    frames = _frames(_samples(wave), rate)
    spectrum = np.abs(np.fft.rfft(frames, N_FFT)) ** 2 / N_FFT
    energy = _positive(spectrum.sum(1))
    bands = np.log(_positive(spectrum @ _filters(rate).T))
    n = np.arange(COEFFICIENTS)
    cepstrum = bands @ _cosines() * (1 + LIFTER / 2 * np.sin(np.pi * n / LIFTER))
    cepstrum[:, 0] = np.log(energy)
    return cepstrum


def mfcc_centroid(wave: np.ndarray, rate: int = RATE) -> np.ndarray:
    """The recording as one vector `(13,)`: the mean over frames of each coefficient over its standard deviation.

    The whitened coefficients' centroid, as k-means with one cluster finds it; a constant coefficient stays as it is.
    Errors as in `mfcc`.
    """
    found = mfcc(wave, rate)
    spread = found.std(0)
    return np.asarray((found / np.where(spread > 0, spread, 1.0)).mean(0))


def _samples(wave: np.ndarray) -> np.ndarray:
    wave = np.asarray(wave)
    if wave.ndim != 1 or not wave.size:
        raise ValueError(f"sound: a recording must be (T,) with T > 0, got shape {wave.shape}")
    wave = wave.astype(np.float64)
    if not np.isfinite(wave).all():
        raise ValueError("sound: a recording holds NaN or infinite samples")
    return wave


def _frames(wave: np.ndarray, rate: int) -> np.ndarray:
    """Emphasised samples in overlapping frames `(frames, length)`."""
    length, step = _whole(FRAME * rate), _whole(STEP * rate)
    if not 0 < length <= N_FFT:
        raise ValueError(f"sound: a frame of {FRAME * 1000:g} ms at {rate} Hz does not fit {N_FFT} samples")
    wave = np.concatenate([wave[:1], wave[1:] - EMPHASIS * wave[:-1]])
    count = 1 + max(0, -(-(len(wave) - length) // step))
    padded = np.zeros((count - 1) * step + length)
    padded[: len(wave)] = wave[: len(padded)]
    return np.lib.stride_tricks.sliding_window_view(padded, length)[::step]


def _filters(rate: int) -> np.ndarray:
    """Triangles `(26, 257)` between frequencies of the transform, evenly on the mel scale up to rate / 2."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corner = np.floor((N_FFT + 1) * 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1) / rate)
    place = np.arange(N_FFT // 2 + 1)
    left, middle, right = corner[:-2, None], corner[1:-1, None], corner[2:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # corners that fall together have an empty side
        rise, fall = (place - left) / (middle - left), (right - place) / (right - middle)
    return np.where((place >= left) & (place < middle), rise, np.where((place >= middle) & (place < right), fall, 0.0))


def _cosines() -> np.ndarray:
    """The orthonormal cosine transform of type 2, `(26, 13)`."""
    band, n = np.arange(BANDS)[:, None], np.arange(COEFFICIENTS)
    scale = np.where(n == 0, np.sqrt(1 / BANDS), np.sqrt(2 / BANDS))
    return np.asarray(scale * np.cos(np.pi * n * (2 * band + 1) / (2 * BANDS)))


def _positive(power: np.ndarray) -> np.ndarray:
    return np.where(power == 0, TINY, power)


def _whole(x: float) -> int:
    """Rounded, halves upwards."""
    return int(np.floor(x + 0.5))
