"""Spectrograms made audible: `log_mel` run backwards, and waves as files.

A spectrogram forgets three things, and each is put back by a guess.  The level of the recording: the loudest sample
becomes 1.  How the power of a band lies within it: the non-negative spectrum s whose bands F s are nearest to those
given in the Kullback-Leibler sense, by Richardson-Lucy steps  s <- s F'(m / F s) / F'1,  which never leave the positive
numbers and keep what is 0 at 0.  The phases: Griffin & Lim (1984) go back and forth between spectra with the right
magnitudes and spectra that some wave has, here with the momentum of Perraudin, Balazs & Søndergaard (2013).
"""

from __future__ import annotations

import wave as wavefile
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from pyro_mm.data.mel import BANDS, FRAMES, N_FFT, RATE, hop_length, istft, mel_filters, power, stft
from pyro_mm.files import write_atomic

__all__ = ["spectrum_of_bands", "waveform", "write_wav"]

MOMENTUM = 0.99
UNMIXING = 50  # Richardson-Lucy steps
SEED = 0  # of the phases that Griffin-Lim starts from, the same for every sound
LARGEST = 2**15 - 1


@torch.no_grad()
def waveform(sound: Tensor | np.ndarray, rate: int = RATE, iterations: int = 60) -> Tensor:
    """Spectrograms `(..., 1, 32, 128)` in [0, 1] as one second of sound each, `(..., rate)`, the largest sample 1.

    The same spectrogram gives the same wave, whatever stands beside it.  Silence gives zeros.

    Args:
        sound: as `log_mel` makes them or a model draws them; values a little outside [0, 1] are taken for its ends.
        rate: samples per second, that of the recordings the spectrograms were made from.
        iterations: of Griffin-Lim.

    Raises:
        ValueError: the shape or the rate is unfit, a value is NaN or infinite, or `iterations` is not positive.
    """
    sound = torch.as_tensor(sound)
    if sound.dim() < 3 or tuple(sound.shape[-3:]) != (1, FRAMES, BANDS):
        raise ValueError(f"sound: expected (..., 1, {FRAMES}, {BANDS}), got shape {tuple(sound.shape)}")
    if iterations < 1:
        raise ValueError(f"sound: iterations must be positive, got {iterations}")
    hop_length(rate)  # refuses an unfit rate before any work
    sound = sound.to(torch.get_default_dtype())
    if not bool(torch.isfinite(sound).all()):
        raise ValueError("sound: a spectrogram holds NaN or infinite values")
    leading, cells = sound.shape[:-3], sound.reshape(-1, FRAMES, BANDS).clamp(0, 1)
    mel = torch.where(cells > 0, power(cells), torch.zeros_like(cells))  # 0 is the floor "or less"
    wave = _griffin_lim(spectrum_of_bands(mel, rate).sqrt(), rate, iterations)
    peak = wave.abs().amax(1, keepdim=True)
    wave = wave / peak.clamp(min=torch.finfo(wave.dtype).tiny)
    return wave.reshape(*leading, rate)


def spectrum_of_bands(mel: Tensor, rate: int = RATE, steps: int = UNMIXING) -> Tensor:
    """Power `(N, N_FFT // 2 + 1, 32)` at the transform's frequencies whose mel bands are near `mel` `(N, 32, 128)`."""
    filters = mel_filters(rate).to(mel.dtype).to(mel.device)
    tiny = torch.finfo(mel.dtype).tiny
    cover = filters.sum(0)
    share = filters / cover.clamp(min=tiny)  # frequencies that no band sees get no power
    spectrum = mel @ share
    for _ in range(steps):
        seen = spectrum @ filters.T
        spectrum = spectrum * ((mel / seen.clamp(min=1e-30)) @ share)
    return spectrum.mT


def write_wav(path: str | PathLike[str], wave: Tensor | np.ndarray, rate: int = RATE) -> Path:
    """Write samples `(T,)` in [-1, 1] as a 16-bit mono PCM .wav, atomically.

    Raises:
        ValueError: the shape is another, or a sample is NaN or outside [-1, 1].
        OSError: the file cannot be written.
    """
    samples = torch.as_tensor(wave).detach().cpu().double().numpy()
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"{path}: a wave must be (T,) with T > 0, got shape {samples.shape}; write one at a time")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: the wave holds NaN or infinite samples")
    if (peak := float(np.abs(samples).max())) > 1:
        raise ValueError(f"{path}: samples must lie in [-1, 1], the largest is {peak:g}; divide the wave by it")
    if rate < 1:
        raise ValueError(f"{path}: the rate must be positive, got {rate}")
    data = np.rint(samples * LARGEST).astype("<i2").tobytes()

    def write(file: BinaryIO) -> None:
        with wavefile.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(rate)
            out.writeframes(data)

    return write_atomic(path, write)


def _griffin_lim(magnitude: Tensor, rate: int, iterations: int) -> Tensor:
    """Waves `(N, rate)` whose spectra have magnitudes near `magnitude` `(N, N_FFT // 2 + 1, 32)`."""
    draw = torch.Generator().manual_seed(SEED)
    turn = 2 * torch.pi * torch.rand((N_FFT // 2 + 1, FRAMES), generator=draw, dtype=torch.float64)
    phase = torch.polar(torch.ones_like(turn), turn).to(magnitude.device, torch.complex(magnitude, magnitude).dtype)
    spectrum, before = magnitude * phase, torch.zeros_like(magnitude * phase)
    for _ in range(iterations):
        heard = stft(istft(spectrum, rate), rate)
        ahead = heard + MOMENTUM * (heard - before)
        before = heard
        spectrum = magnitude * torch.exp(1j * ahead.angle())
    return istft(spectrum, rate)
