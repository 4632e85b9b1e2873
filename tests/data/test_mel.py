"""Log-mel spectrograms: levels, places and the transform, against sums written out by hand."""

import numpy as np
import pytest
import torch

from pyro_mm.data.mel import (
    BANDS,
    FLOOR,
    FRAMES,
    N_FFT,
    decibels,
    hop_length,
    istft,
    log_mel,
    mel_filters,
    one_second,
    power,
    stft,
    window,
)

SECOND = torch.arange(8000, dtype=torch.double) / 8000


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


def test_the_transform_is_the_sum_it_says():
    wave = torch.randn(2, 8000)
    spectrum = stft(wave)
    assert spectrum.shape == (2, N_FFT // 2 + 1, FRAMES)
    n = np.arange(N_FFT)
    for frame, k in ((0, 3), (13, 100), (31, 512)):
        # Frame i sees N_FFT samples, of which number N_FFT / 2 is the one at (i + 1/2) hops.
        place = int((frame + 0.5) * 250) - N_FFT // 2 + n
        inside = (place >= 0) & (place < 8000)
        x = np.where(inside, wave[1].numpy()[place.clip(0, 7999)], 0)
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / N_FFT)
        expected = (x * hann * np.exp(-2j * np.pi * k * n / N_FFT)).sum()
        assert abs(spectrum[1, k, frame].item() - expected) < 1e-9


@pytest.mark.parametrize("rate", [4096, 8000, 16_000])
def test_the_inverse_transform_is_exact_and_a_projection(rate):
    wave = torch.randn(3, rate)
    assert torch.allclose(istft(stft(wave, rate), rate), wave, atol=1e-12)
    # Any spectrum: the nearest wave's residual is orthogonal to every wave's spectrum (real inner product).
    torch.manual_seed(1)
    spectrum = torch.randn(1, N_FFT // 2 + 1, FRAMES, dtype=torch.cdouble)
    ends = [0, -1]
    spectrum[:, ends] = spectrum[:, ends].real + 0j  # a real signal's
    rest = spectrum - stft(istft(spectrum, rate), rate)
    twice = torch.full((N_FFT // 2 + 1, 1), 2.0)
    twice[ends] = 1.0  # the other frequencies stand for their mirror images, too
    other = stft(torch.randn(1, rate), rate)
    product = (twice * (rest.conj() * other).real).sum()
    assert abs(product) < 1e-9 * (rest.abs() * other.abs()).sum()


def test_filters_are_triangles_on_the_mel_scale():
    filters = mel_filters()
    assert filters.shape == (BANDS, N_FFT // 2 + 1) and bool((filters >= 0).all())
    mel = 2595 * np.log10(1 + np.arange(513) * 8000 / N_FFT / 700)
    corners = np.linspace(0, 2595 * np.log10(1 + 4000 / 700), BANDS + 2)
    for b in (0, 40, 127):
        low, top, high = 700 * (10 ** (corners[b : b + 3] / 2595) - 1)
        inside = (mel > corners[b]) & (mel < corners[b + 2])
        assert np.array_equal(filters[b].numpy() > 0, inside)
        f = np.arange(513) * 8000 / N_FFT
        slopes = np.where(f < top, (f - low) / (top - low), (high - f) / (high - top))
        assert np.allclose(filters[b].numpy(), np.where(inside, slopes, 0), atol=1e-12)
    inner = slice(2, 500)  # between the first and the last top neighbouring triangles sum to 1
    assert torch.allclose(filters.sum(0)[inner], torch.ones(498))
    with pytest.raises(ValueError, match="400 mel bands are too many for 1024 samples"):
        mel_filters(bands=400)


def test_gain_changes_nothing_and_silence_is_zero():
    wave = torch.randn(2, 5000)
    expected = log_mel(wave)
    for gain in (1e-200, 1e-3, -2.0, 1e100):
        assert torch.allclose(log_mel(wave * gain), expected, atol=1e-9)
    assert not log_mel(torch.zeros(3, 100)).any()
    assert torch.equal(expected.amax((1, 2)), torch.ones(2)) and expected.min() == 0


def test_levels_are_decibels_under_the_peak():
    # Tones on the transform's own frequencies 64, 256 and 448, the second 30 dB down, the third 100: under the floor.
    loud, soft, faint = (torch.sin(2 * torch.pi * f * SECOND) for f in (500.0, 2000.0, 3500.0))
    sound = log_mel(loud + 10**-1.5 * soft + 1e-5 * faint)[0, 16]
    # A Hann window spreads a tone over three frequencies, with powers 1/4, 1, 1/4.
    heard = torch.zeros(2, N_FFT // 2 + 1)
    heard[0, 63:66] = heard[1, 255:258] = torch.tensor([0.25, 1.0, 0.25])
    mel = heard @ mel_filters().T
    bands = mel.argmax(1)
    assert decibels(sound[bands[0]]).item() == pytest.approx(0, abs=1e-9)
    expected = -30 + 10 * (mel[1].max() / mel[0].max()).log10()
    assert decibels(sound[bands[1]]).item() == pytest.approx(expected.item(), abs=1e-3)
    assert sound[mel_filters()[:, 448].argmax()] == 0
    above = sound > 0
    assert torch.allclose(10 * power(sound[above]).log10(), decibels(sound[above]))
    assert decibels(torch.tensor(0.0)) == FLOOR


def test_a_click_is_heard_in_its_frames():
    for i in (0, 7, 31):
        wave = torch.zeros(8000)
        wave[int((i + 0.5) * 250)] = 1.0
        level = log_mel(wave)[0].mean(-1)
        assert level.argmax() == i
        reach = N_FFT / 2 / 250  # hops to where the window ends
        heard = torch.arange(FRAMES).sub(i).abs() < reach
        assert torch.equal(level > 0, heard)


def test_recordings_are_cut_or_padded_about_their_middle():
    wave = torch.arange(1.0, 7.0)
    assert one_second(wave, 10).tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 0, 0]
    assert one_second(wave, 4).tolist() == [2, 3, 4, 5] and one_second(wave, 6).tolist() == wave.tolist()
    sound = torch.randn(3000)
    padded = torch.cat([torch.zeros(2500), sound, torch.zeros(2500)])
    assert torch.allclose(log_mel(sound), log_mel(padded))
    assert torch.allclose(log_mel(torch.cat([torch.randn(500), padded, torch.randn(500)])), log_mel(padded))


def test_integers_and_arrays_are_waves_too():
    wave = np.rint(3000 * np.sin(np.arange(4000) / 5)).astype(np.int16)
    assert torch.allclose(log_mel(wave), log_mel(torch.from_numpy(wave).double() / 32768), atol=1e-9)
    assert torch.equal(log_mel(np.stack([wave, wave[::-1]]))[:1], log_mel(wave))


def test_what_cannot_be_heard_is_refused():
    for shape in ((), (0,), (2, 3, 100)):
        with pytest.raises(ValueError, match=r"sound: recordings must be \(T,\) or \(N, T\)"):
            log_mel(torch.zeros(shape))
    with pytest.raises(ValueError, match="NaN or infinite"):
        log_mel(torch.tensor([0.0, float("nan")]))
    for rate in (44_100, 0, 16_416):
        with pytest.raises(ValueError, match=f"multiple of 32 up to 16384 Hz, got {rate}"):
            hop_length(rate)
    with pytest.raises(ValueError, match=r"\(N, 8000\); got shape \(2, 7999\)"):
        stft(torch.zeros(2, 7999))
    assert window().sum() == pytest.approx(N_FFT / 2)
