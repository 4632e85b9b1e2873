"""Sound as a picture: log-mel spectrograms of one second, 32 frames of 128 bands, and the exact transform behind them.

Frame i sees `N_FFT` samples round the instant (i + 1/2) / 32 s through a Hann window, so that the 32 frames lie
evenly over the second.  Each of the 128 bands sums the power under a triangle on the mel scale,
mel(f) = 2595 log10(1 + f / 700), from 0 to half the rate.  Levels are decibels under the recording's own loudest
cell: 1 is the peak, 0 is -80 dB or less.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import fold, pad

__all__ = [
    "BANDS",
    "FLOOR",
    "FRAMES",
    "N_FFT",
    "RATE",
    "decibels",
    "hop_length",
    "istft",
    "log_mel",
    "mel_filters",
    "one_second",
    "power",
    "stft",
    "window",
]

FRAMES, BANDS = 32, 128
FLOOR = -80.0
"""dB relative to a recording's peak that become 0."""
N_FFT = 1024
RATE = 8000
"""Samples per second of the Free Spoken Digit Dataset."""


def log_mel(wave: Tensor | np.ndarray, rate: int = RATE) -> Tensor:
    """Recordings `(T,)` or `(N, T)` as spectrograms `(N, 32, 128)` in [0, 1], in torch's default dtype.

    Recordings are cut or zero-padded to one second, their middle kept in the middle.  Silence is 0 everywhere.  The
    level of a recording (its gain) changes nothing.

    Raises:
        ValueError: the shape or the rate is unfit, or a sample is NaN or infinite.
    """
    wave = torch.as_tensor(wave)
    if wave.dim() not in (1, 2) or not wave.numel():
        raise ValueError(f"sound: recordings must be (T,) or (N, T) with T > 0, got shape {tuple(wave.shape)}")
    wave = wave.to(torch.get_default_dtype()).reshape(-1, wave.shape[-1])
    if not bool(torch.isfinite(wave).all()):
        raise ValueError("sound: a recording holds NaN or infinite samples")
    wave = one_second(wave, rate)
    tiny = torch.finfo(wave.dtype).tiny
    wave = wave / wave.abs().amax(1, keepdim=True).clamp(min=tiny)  # squares of faint sounds would underflow
    spectrum = stft(wave, rate)
    filters = mel_filters(rate, N_FFT, BANDS).to(wave.dtype)
    mel = torch.einsum("bf,nft->ntb", filters, spectrum.abs().square())
    peak = mel.amax((1, 2), keepdim=True)
    level = 10 * (mel / peak.clamp(min=tiny)).clamp(min=tiny).log10()
    return (1 - level / FLOOR).clamp(0, 1)


def decibels(sound: Tensor) -> Tensor:
    """Spectrograms in [0, 1] as dB relative to the peak, `FLOOR` to 0."""
    return FLOOR * (1 - sound)


def power(sound: Tensor) -> Tensor:
    """Spectrograms in [0, 1] as mel power relative to the peak, 1e-8 to 1: `log_mel` without its logarithm."""
    return 10 ** (decibels(sound) / 10)


def one_second(wave: Tensor, rate: int = RATE) -> Tensor:
    """`(..., T)` cut or zero-padded to `(..., rate)`, the middle kept in the middle."""
    lacking = rate - wave.shape[-1]
    left = lacking // 2  # of a recording that is too long: negative, which `pad` takes for a cut
    return pad(wave, (left, lacking - left))


def mel_filters(rate: int = RATE, n_fft: int = N_FFT, bands: int = BANDS) -> Tensor:
    """Triangles `(bands, n_fft // 2 + 1)` of height 1 over the transform's frequencies, float64.

    Their corners lie evenly on the mel scale from 0 to `rate` / 2; each triangle falls to 0 at its neighbours' tops.

    Raises:
        ValueError: a triangle would lie between two frequencies of the transform and see nothing.
    """
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    frequency = np.arange(n_fft // 2 + 1) * rate / n_fft
    rise = (frequency - corners[:-2, None]) / np.diff(corners)[:-1, None]
    fall = (corners[2:, None] - frequency) / np.diff(corners)[1:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    if not (filters.sum(1) > 0).all():
        raise ValueError(f"sound: {bands} mel bands are too many for {n_fft} samples at {rate} Hz: some would be empty")
    return torch.from_numpy(filters)


def window(dtype: torch.dtype | None = None) -> Tensor:
    """The Hann window `(N_FFT,)`, periodic."""
    return torch.hann_window(N_FFT, dtype=dtype or torch.get_default_dtype())


def hop_length(rate: int = RATE) -> int:
    """Samples from one frame to the next.

    Raises:
        ValueError: 32 frames do not divide a second at this rate, or would leave samples unseen.
    """
    hop, rest = divmod(rate, FRAMES)
    if rest or not 0 < hop <= N_FFT // 2:
        most = FRAMES * N_FFT // 2
        raise ValueError(f"sound: the rate must be a multiple of {FRAMES} up to {most} Hz, got {rate}; resample first")
    return hop


def stft(wave: Tensor, rate: int = RATE) -> Tensor:
    """One second of samples `(N, rate)` as complex spectra `(N, N_FFT // 2 + 1, 32)`; zeros beyond both ends."""
    hop = hop_length(rate)
    if wave.dim() != 2 or wave.shape[1] != rate:
        raise ValueError(f"sound: stft takes one second, (N, {rate}); got shape {tuple(wave.shape)}")
    padded = pad(wave, (_margin(hop), _margin(hop)))
    w = window(wave.dtype).to(wave.device)
    return torch.stft(padded, N_FFT, hop, window=w, center=False, return_complex=True)


def istft(spectrum: Tensor, rate: int = RATE) -> Tensor:
    """The waves `(N, rate)` whose `stft` is nearest to `spectrum` `(N, N_FFT // 2 + 1, 32)` in squared error.

    Frames are windowed again, added where they overlap and divided by the sum of squared windows (Griffin & Lim 1984).
    """
    hop = hop_length(rate)
    w = window(spectrum.real.dtype).to(spectrum.device)
    frames = torch.fft.irfft(spectrum, N_FFT, dim=1) * w[:, None]
    length = (1, rate + 2 * _margin(hop))

    def overlap(x: Tensor) -> Tensor:
        return fold(x, length, (1, N_FFT), stride=(1, hop)).flatten(1)

    cover = overlap((w * w)[None, :, None].expand(1, -1, FRAMES))
    inside = slice(_margin(hop), _margin(hop) + rate)
    return overlap(frames)[:, inside] / cover[:, inside]


def _margin(hop: int) -> int:
    """Zeros on both sides that put the first frame's middle half a hop behind the first sample."""
    return (N_FFT - hop) // 2
