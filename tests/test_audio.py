"""Spectrograms made audible, against the transform they undo, and waves read back from their files."""

import wave as wavefile

import numpy as np
import pytest
import torch

from pyro_mm.audio import spectrum_of_bands, waveform, write_wav
from pyro_mm.data.mel import log_mel, mel_filters, power, stft
from pyro_mm.data.speech import spoken_digits


@pytest.fixture(scope="module")
def sounds():
    """Ten words as spectrograms `(10, 1, 32, 128)`."""
    return log_mel(spoken_digits(np.arange(10), 0))[:, None]


def test_a_wave_has_the_spectrogram_it_was_made_from(sounds):
    wave = waveform(sounds)
    assert wave.shape == (10, 8000) and wave.dtype == torch.float
    assert torch.equal(wave.abs().amax(1), torch.ones(10))
    error = (log_mel(wave) - sounds[:, 0]).abs()
    # Where error / 80 dB: 0.9 dB over all cells, 0.6 dB over those less than 40 dB under the peak.
    assert error.mean() < 0.015 and error.mean((1, 2)).max() < 0.02
    assert error[sounds[:, 0] > 0.5].mean() < 0.01
    few = (log_mel(waveform(sounds, iterations=2)) - sounds[:, 0]).abs()
    assert few.mean() > 1.5 * error.mean()


def test_other_rates_work_alike():
    t = torch.arange(16_000) / 16_000
    chirp = torch.sin(2 * torch.pi * (300 * t + 2500 * t**2))
    sound = log_mel(chirp, 16_000)[:, None]
    wave = waveform(sound, 16_000)
    assert wave.shape == (1, 16_000)
    assert (log_mel(wave, 16_000) - sound[:, 0]).abs().mean() < 0.03
    with pytest.raises(ValueError, match="multiple of 32"):
        waveform(sound, 44_100)


def test_a_tone_is_heard_at_its_pitch():
    t = torch.arange(8000) / 8000
    for pitch in (250.0, 1000.0, 3000.0):
        wave = waveform(log_mel(torch.sin(2 * torch.pi * pitch * t))[:, None])
        assert abs(torch.fft.rfft(wave[0]).abs().argmax().item() - pitch) < 12  # the transform's step is 8 Hz


def test_the_spectrum_has_the_bands_it_was_made_from():
    torch.manual_seed(0)
    spectrum = stft(torch.randn(2, 8000, dtype=torch.double), 8000).abs().square()
    filters = mel_filters()
    mel = (filters @ spectrum).mT
    found = spectrum_of_bands(mel, steps=200)
    assert found.shape == spectrum.shape and bool((found >= 0).all())
    off = 10 * ((filters @ found).mT / mel).log10().abs()  # dB
    assert off.mean() < 0.05 and off.max() < 3
    # The steps lower the divergence of the bands, and scale and zeros come through.
    divergence = [_divergence(mel, (filters @ spectrum_of_bands(mel, steps=k)).mT) for k in (0, 1, 5, 25, 125)]
    assert divergence == sorted(divergence, reverse=True)
    assert torch.allclose(spectrum_of_bands(1e-6 * mel, steps=200), 1e-6 * found, rtol=1e-9)
    mel[:, :, 40] = 0
    assert not spectrum_of_bands(mel)[:, filters[40] > 0.999].any()
    assert not spectrum_of_bands(torch.zeros(1, 32, 128)).any()


def _divergence(p, q):
    return (p * (p / q).log() - p + q).sum().item()


def test_a_wave_depends_on_its_own_spectrogram_alone(sounds):
    every = waveform(sounds, iterations=5)
    assert torch.equal(every, waveform(sounds, iterations=5))
    grid = waveform(sounds[:6].reshape(2, 3, 1, 32, 128), iterations=5)
    assert grid.shape == (2, 3, 8000) and torch.allclose(grid.reshape(6, 8000), every[:6], atol=1e-3)
    assert torch.allclose(waveform(sounds[4], iterations=5), every[4], atol=1e-3)
    assert torch.equal(waveform(sounds.numpy(), iterations=5), every)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    waveform(sounds[:1].requires_grad_(), iterations=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_silence_and_ends():
    assert not waveform(torch.zeros(2, 1, 32, 128), iterations=2).any()
    cells = torch.linspace(-0.2, 1.2, 128).expand(1, 1, 32, 128)
    assert torch.equal(waveform(cells, iterations=2), waveform(cells.clamp(0, 1), iterations=2))
    # A cell of 0 is "the floor or less" and gets nothing; one just above gets the floor's power.
    assert power(torch.tensor(0.0)).item() == pytest.approx(1e-8)
    assert waveform(torch.full((1, 1, 32, 128), 1e-3), iterations=2).any()


def test_what_is_no_spectrogram_is_refused():
    for shape in ((32, 128), (1, 128, 32), (2, 3, 32, 128), (4096,)):
        with pytest.raises(ValueError, match=rf"expected \(..., 1, 32, 128\), got shape \({shape[0]},"):
            waveform(torch.zeros(shape))
    bad = torch.zeros(1, 1, 32, 128)
    bad[0, 0, 3, 4] = float("nan")
    with pytest.raises(ValueError, match="sound: a spectrogram holds NaN"):
        waveform(bad)
    with pytest.raises(ValueError, match="iterations must be positive, got 0"):
        waveform(torch.zeros(1, 32, 128), iterations=0)


@pytest.mark.parametrize("rate", [8000, 16_000])
def test_a_wav_file_holds_the_samples(tmp_path, rate):
    wave = torch.cat([torch.tensor([1.0, -1.0, 0.0, 0.5]), torch.rand(996) * 2 - 1])
    path = write_wav(tmp_path / "new" / "a.wav", wave, rate)
    with wavefile.open(str(path), "rb") as file:
        assert file.getparams()[:4] == (1, 2, rate, 1000)
        read = np.frombuffer(file.readframes(1000), "<i2")
    assert read[:3].tolist() == [32767, -32767, 0]
    assert np.abs(read / 32767 - wave.double().numpy()).max() <= 0.5 / 32767 + 1e-12
    assert write_wav(tmp_path / "b.wav", wave.numpy(), rate).read_bytes() == path.read_bytes()
    assert len(path.read_bytes()) == 44 + 2000


def test_a_bad_wave_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    for wave, error in (
        (torch.zeros(2, 10), r"a.wav: a wave must be \(T,\) with T > 0, got shape \(2, 10\)"),
        (torch.zeros(0), r"got shape \(0,\)"),
        (torch.tensor([0.0, float("inf")]), "a.wav: the wave holds NaN or infinite samples"),
        (torch.tensor([0.0, -1.5]), r"a.wav: samples must lie in \[-1, 1\], the largest is 1.5"),
    ):
        with pytest.raises(ValueError, match=error):
            write_wav(path, wave)
    with pytest.raises(ValueError, match="rate must be positive, got 0"):
        write_wav(path, torch.zeros(3), 0)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
