"""Mel-frequency cepstral coefficients: equal to python_speech_features, on drawn and on real recordings."""

import numpy as np
import pytest
import python_speech_features
from scipy.cluster.vq import kmeans, whiten

from pyro_mm.data.fsdd import fsdd
from pyro_mm.data.mfcc import mfcc, mfcc_centroid


def published(wave):
    return python_speech_features.mfcc(wave, 8000)


@pytest.mark.parametrize("length", [1, 79, 80, 199, 200, 201, 279, 280, 281, 4000])
def test_it_is_the_published_transform(length):
    wave = np.random.RandomState(length).randn(length) * 1000
    np.testing.assert_allclose(mfcc(wave), published(wave), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rate", [8000, 16000, 11025])
def test_at_other_rates(rate):
    wave = np.random.RandomState(0).randn(rate // 2)
    np.testing.assert_allclose(mfcc(wave, rate), python_speech_features.mfcc(wave, rate), rtol=0, atol=1e-9)


def test_silence_has_finite_coefficients():
    wave = np.zeros(1000, dtype=np.int16)
    np.testing.assert_allclose(mfcc(wave), published(wave), rtol=0, atol=1e-9)
    assert np.isfinite(mfcc_centroid(wave)).all()


def test_the_centroid_of_real_recordings(data_root):
    for recording in fsdd(data_root / "fsdd")[::97]:
        found = published(recording.wave)
        np.testing.assert_allclose(mfcc(recording.wave), found, rtol=0, atol=1e-9)
        white = whiten(found)
        np.testing.assert_allclose(mfcc_centroid(recording.wave), white.mean(0), rtol=0, atol=1e-9)
        np.testing.assert_allclose(mfcc_centroid(recording.wave), kmeans(white, 1)[0][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("wave", "rate", "message"),
    [
        (np.zeros((2, 3)), 8000, r"must be \(T,\) with T > 0, got shape \(2, 3\)"),
        (np.zeros(0), 8000, "T > 0"),
        (np.array([0.0, np.nan]), 8000, "NaN or infinite"),
        (np.zeros(10), 48000, "25 ms at 48000 Hz does not fit 512"),
    ],
)
def test_what_is_no_recording_is_refused(wave, rate, message):
    with pytest.raises(ValueError, match=message):
        mfcc(wave, rate)
