"""Spoken digits: resonators and glottis against their formulas, vowels with the formants asked for, telling words."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pyro_mm.data import speech
from pyro_mm.data.mel import log_mel
from pyro_mm.data.speech import PHONES, WORDS, glottis, resonator, spoken_digits, vowel

TEN = np.arange(10)


@pytest.mark.parametrize(("centre", "width"), [(500.0, 60.0), (1500.0, 120.0), (3500.0, 900.0)])
@pytest.mark.parametrize("rate", [8000, 16_000])
def test_a_resonator_has_the_response_it_says(centre, width, rate):
    click = np.zeros((rate, 1))
    click[0] = 1
    heard = np.abs(np.fft.rfft(resonator(click, np.full((1, 1), centre), np.full((1, 1), width), rate)[:, 0]))
    f = np.arange(rate // 2 + 1)
    c, radius = -np.exp(-2 * np.pi * width / rate), np.exp(-np.pi * width / rate)
    b = 2 * radius * np.cos(2 * np.pi * centre / rate)
    z = np.exp(-2j * np.pi * f / rate)
    assert np.allclose(heard, (1 - b - c) / np.abs(1 - b * z - c * z**2), rtol=1e-9)
    assert heard[0] == pytest.approx(1)
    # Its poles lie at the centre, at a distance from the circle that is the bandwidth.
    pole = np.roots([1, -b, -c])[0]
    assert abs(np.angle(pole)) * rate / 2 / np.pi == pytest.approx(centre)
    assert -np.log(abs(pole)) * rate / np.pi == pytest.approx(width)
    deviation = speech._deviation(np.float64(centre), np.float64(width), rate)
    assert deviation**2 == pytest.approx((heard**2).sum() * 2 / rate, rel=0.01)  # Parseval, ends counted twice


def test_settings_may_change_on_the_way():
    random = np.random.RandomState(0)
    x = random.standard_normal((40, 2))
    centre, width = random.uniform(300, 3000, (4, 2)), random.uniform(50, 500, (4, 2))
    y = resonator(x, centre, width, 8000)
    for row in (0, 1):
        past = [0.0, 0.0]
        for n in range(40):
            f, w = centre[n // 10, row], width[n // 10, row]
            c, b = -np.exp(-2 * np.pi * w / 8000), 2 * np.exp(-np.pi * w / 8000) * np.cos(2 * np.pi * f / 8000)
            past.append((1 - b - c) * x[n, row] + b * past[-1] + c * past[-2])
        assert np.allclose(y[:, row], past[2:])


def test_the_glottis_opens_and_closes_once_per_period():
    change = glottis(np.full((8000, 1), 100.0), 8000)[:, 0]
    flow = np.cumsum(change)
    assert flow.min() > -1e-12 and flow.max() == pytest.approx(1)
    phase = (np.arange(1, 8001) / 80) % 1
    rest = (phase > 0.57) & (phase < 0.99)
    assert np.allclose(flow[rest], 0) and (flow[(phase > 0.02) & (phase < 0.55)] > 0).all()
    assert np.allclose(flow[:-80], flow[80:], atol=1e-9)
    assert np.allclose(flow[31], 1) and np.allclose(flow[15], 0.5)  # 0.4 and 0.2 of the first period


@pytest.mark.parametrize("rate", [8000, 16_000])
@pytest.mark.parametrize("name", [n for n, p in PHONES.items() if p.formants and p.voice == 1])
def test_vowels_peak_at_their_formants(name, rate):
    asked, pitch = PHONES[name].formants, 25.0
    power = np.abs(np.fft.rfft(vowel(asked, pitch, rate)[-rate // 5 * 4 :])) ** 2  # without the beginning
    source = np.abs(np.fft.rfft(glottis(np.full((rate, 1), pitch), rate)[-rate // 5 * 4 :, 0])) ** 2
    harmonics = np.arange(20, rate // 2 * 4 // 5, 20)  # of 25 Hz, in steps of 5/4 Hz
    gain = 10 * np.log10(power[harmonics] / source[harmonics])
    tops = [25 * (i + 1) for i in range(1, len(gain) - 1) if gain[i] > max(gain[i - 1], gain[i + 1])]
    # To a harmonic, and what the skirt of a near formant draws a peak towards it.
    assert len(tops) == 3 and np.abs(np.array(tops) - asked).max() <= 40
    z = np.exp(-2j * np.pi * 25 * np.arange(1, len(gain) + 1) / rate)
    poles = [np.exp((-np.pi * w + 2j * np.pi * f) / rate) for f, w in zip(asked, speech.BANDWIDTHS, strict=True)]
    tract = -20 * np.log10(np.prod([np.abs((1 - p * z) * (1 - p.conj() * z)) for p in poles], 0))
    assert np.std(gain - tract) < 0.1  # dB, but for a constant
    # Nothing sounds between the harmonics.
    between = np.delete(power, np.concatenate([harmonics, [0, len(power) - 1]]))
    assert between.sum() < 0.01 * power.sum()


def test_words_follow_their_seed_and_keep_their_bounds():
    labels = np.tile(TEN, 20)
    sounds = spoken_digits(labels, 4)
    assert sounds.shape == (200, 8000) and sounds.dtype == np.float32
    assert np.array_equal(sounds, spoken_digits(labels, 4))
    other = spoken_digits(labels, 5)
    likeness = (sounds * other).sum(1) / np.sqrt((sounds**2).sum(1) * (other**2).sum(1))
    assert np.abs(likeness).max() < 0.5
    peak = np.abs(sounds).max(1)
    assert peak.min() >= 0.2 - 1e-6 and peak.max() <= 0.95 + 1e-6 and np.ptp(peak) > 0.6
    assert not sounds[:, :160].any() and not sounds[:, -160:].any()  # no word is cut off
    begin = (sounds != 0).argmax(1) / 8000
    length = (8000 - (sounds[:, ::-1] != 0).argmax(1)) / 8000 - begin
    for c in TEN:
        nominal = sum(map(float, WORDS[c].split()[1::2])) / 1000
        mine = length[labels == c] / nominal
        assert 0.6 < mine.min() < 0.95 and 1.1 < mine.max() < 1.6 and np.ptp(begin[labels == c]) > 0.08
    assert spoken_digits(labels[:0], 0).shape == (0, 8000) and spoken_digits(labels[:2], 0, 16_000).shape == (2, 16_000)


def test_stops_are_silent_and_hisses_are_high():
    eight, six, three = (spoken_digits(np.full(20, c), 0) for c in (8, 6, 3))
    for sounds in (eight, six):
        for wave in sounds:
            inside = np.trim_zeros(wave)
            gaps = np.diff(np.flatnonzero(inside)).max()
            assert gaps > 0.02 * 8000
    assert max(np.diff(np.flatnonzero(np.trim_zeros(w))).max() for w in three) < 80
    spectrum = np.abs(np.fft.rfft(six)) ** 2
    hiss = [(s[:, 2500:].sum(1) / s.sum(1)) for s in (spectrum, np.abs(np.fft.rfft(three)) ** 2)]
    assert np.median(hiss[0]) > 10 * np.median(hiss[1]) and hiss[0].min() > 0.02


def test_classes_can_be_told_from_their_spectrograms():
    label = np.tile(TEN, 40)
    train, test = (log_mel(torch.from_numpy(spoken_digits(label, s))).flatten(1).numpy() for s in (0, 1))
    judge = LogisticRegression(C=0.01, max_iter=200).fit(train, label)
    assert judge.score(test, label) > 0.9
    within = np.mean([test[label == c].var(0).sum() for c in TEN]) / test.var(0).sum()
    assert 0.4 < within < 0.85  # 0.67 here


def test_what_cannot_be_spoken_is_refused():
    for labels in (np.array([10]), np.array([[1]]), np.array([1.0])):
        with pytest.raises(ValueError, match=r"sound: labels must be \(N,\) integers 0..9, got"):
            spoken_digits(labels, 0)
    for rate in (4000, 11_025):
        with pytest.raises(ValueError, match=f"multiple of 200 from 8000 Hz, got {rate}"):
            spoken_digits(TEN, 0, rate)
        with pytest.raises(ValueError, match=f"got {rate}"):
            vowel((500.0, 1500.0, 2500.0), 100.0, rate)
