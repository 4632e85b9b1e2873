"""Farsi, Kannada and spoken digits of one class: splits kept apart, features as published, files named when missing."""

import numpy as np
import pytest
import torch

from pyro_mm.data import farsi_kannada_mfcc, farsi_kannada_speech
from pyro_mm.data.fsdd import fsdd
from pyro_mm.data.mfcc import mfcc_centroid


@pytest.fixture(scope="module")
def vectors(data_root):
    return farsi_kannada_mfcc(data_root)


@pytest.fixture(scope="module")
def spectra(data_root):
    return farsi_kannada_speech(data_root)


def rows_of(x):
    return {row.numpy().tobytes() for row in x.flatten(1)}


def test_splits_have_the_documented_sizes(vectors):
    assert (len(vectors.train), len(vectors.validation), len(vectors.test)) == (48_000, 12_000, 20_000)
    assert vectors.names == ("farsi", "kannada", "sound", "label")
    train = vectors.train[range(0, 48_000, 7)]
    for batch, n in ((vectors.validation, 1200), (vectors.test, 2000)):
        assert batch.x["label"].bincount().tolist() == [n] * 10
    assert train.x["label"].bincount().min() > 680


def test_the_parts_of_a_row_are_of_its_class(vectors, data_root):
    """Told by classifiers of nearest means, one per modality, that know no labels of these rows."""
    train, test = vectors.train[range(0, 48_000, 12)], vectors.test[::10]
    for m, least in (("farsi", 0.7), ("kannada", 0.7), ("sound", 0.3)):
        x, y = train.x[m].flatten(1), train.x["label"]
        means = torch.stack([x[y == c].mean(0) for c in range(10)])
        found = torch.cdist(test.x[m].flatten(1), means).argmin(1)
        assert (found == test.x["label"]).float().mean() > least, m


def test_recordings_and_writers_are_in_one_split_each(vectors, spectra, data_root):
    for s, sizes in ((vectors, (2460, 240, 300)), (spectra, (2460, 240, 300))):
        parts = [rows_of(s.train.parts["sound"].x["sound"]), *(rows_of(b.x["sound"]) for b in (s.validation, s.test))]
        assert [len(p) for p in parts] == list(sizes)
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    counts = torch.unique(spectra.test.x["sound"].flatten(1), dim=0, return_counts=True)[1]
    assert counts.min() >= 66 and counts.max() <= 67


def test_features_are_the_published_ones(vectors, data_root):
    """Each of 13 numbers scaled by its range over the training recordings, and by nothing of the test's."""
    every = fsdd(data_root / "fsdd")
    train = np.stack([mfcc_centroid(r.wave) for r in every if r.index >= 9])
    test = np.stack([mfcc_centroid(r.wave) for r in every if r.test])
    scaled = (test - train.min(0)) / (train.max(0) - train.min(0))
    found = torch.unique(vectors.test.x["sound"], dim=0)
    wanted = torch.unique(torch.from_numpy(scaled).float(), dim=0)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    x = vectors.train.parts["sound"].x["sound"]
    assert x.min() == 0 and x.max() == 1
    assert vectors.modalities[2].likelihood.scale == pytest.approx(0.005**0.5)


def test_the_seed_decides_the_fixed_pairs(vectors, data_root):
    other = farsi_kannada_mfcc(data_root, seed=1)
    assert not torch.equal(other.test.x["sound"], vectors.test.x["sound"])
    # Every test bitmap once, in another order.
    codes = [np.packbits(b.test.x["farsi"].flatten(1).byte().numpy(), axis=1) for b in (vectors, other)]
    assert not np.array_equal(*codes)
    assert sorted(map(bytes, codes[0])) == sorted(map(bytes, codes[1]))


def test_what_is_missing_is_named(tmp_path, data_root, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"where are they.*hoda, kannada_mnist and fsdd.*download=True"):
        farsi_kannada_speech()
    with pytest.raises(FileNotFoundError, match=r"lacks Hoda's training file .* and FSDD's recordings.zip"):
        farsi_kannada_speech(tmp_path)
    for name in ("hoda", "fsdd"):
        (tmp_path / name).symlink_to(data_root / name)
    with pytest.raises(FileNotFoundError, match=r"Kannada-MNIST: root=.* holds no complete set"):
        farsi_kannada_speech(tmp_path)
