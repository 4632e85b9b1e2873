"""Hoda's two file formats: written here, read there; damage named; the real files where PYRO_MM_DATA has them."""

import struct
import sys

import numpy as np
import pytest
from scipy.io import savemat

from pyro_mm.data import hoda
from pyro_mm.data.hoda import Bitmaps, content_md5, fitted, read_cdb, read_mat


def drawn(n=20, seed=0):
    source = np.random.RandomState(seed)
    sizes = [(source.randint(1, 65), source.randint(1, 55)) for _ in range(n)]
    images = tuple((source.rand(*size) < 0.4).astype(np.uint8) * 255 for size in sizes)
    return Bitmaps(images, np.arange(n, dtype=np.int64) % 10)


def runs(row):
    """A row's run lengths, background first."""
    out, value, length = [], 0, 0
    for pixel in row:
        if pixel != value:
            out.append(length)
            value, length = pixel, 0
        length += 1
    return [*out, length]


def cdb(bitmaps, size=(0, 0), kind=0):
    counts = np.bincount(bitmaps.labels, minlength=128)
    head = struct.pack("<HBBBBI128IB", 1384, 1, 2, *size, len(bitmaps.images), *counts, kind).ljust(1024, b" ")
    body = b""
    for image, label in zip(bitmaps.images, bitmaps.labels, strict=True):
        data = bytes(n for row in image for n in runs(row))
        own = bytes([image.shape[1], image.shape[0]]) if 0 in size else b""
        body += bytes([255, label]) + own + struct.pack("<H", len(data)) + data
    return head + body


def same(a, b):
    return a.labels.tolist() == b.labels.tolist() and all(
        np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True)
    )


def test_bitmaps_of_any_size_are_read_back(tmp_path):
    bitmaps = drawn()
    (tmp_path / "a.cdb").write_bytes(cdb(bitmaps))
    assert same(read_cdb(tmp_path / "a.cdb"), bitmaps)
    alike = Bitmaps(tuple(np.resize(i, (7, 5)) for i in bitmaps.images), bitmaps.labels)
    (tmp_path / "b.cdb").write_bytes(cdb(alike, size=(7, 5)))  # one size for all, in the header
    assert same(read_cdb(tmp_path / "b.cdb"), alike)


def test_both_formats_hold_the_same(tmp_path):
    bitmaps = drawn()
    cells = np.empty((20, 1), dtype=object)
    cells[:, 0] = bitmaps.images
    savemat(tmp_path / "a.mat", {"Data": cells, "labels": bitmaps.labels[:, None]})
    found = read_mat(tmp_path / "a.mat")
    assert same(found, bitmaps)
    shuffled = Bitmaps(found.images[::-1], found.labels[::-1])
    assert content_md5(found) == content_md5(bitmaps) == content_md5(shuffled)
    assert content_md5(found) != content_md5(Bitmaps(found.images, found.labels[::-1]))


def broken(data, what):
    every = drawn()
    record = len(cdb(Bitmaps(every.images[:1], every.labels[:1])))
    if what == "header":
        return data[:1000]
    if what == "cut":
        return data[:-3]
    if what == "excess":
        return data + b"xy"
    if what == "mark":
        return data[:record] + b"\0" + data[record + 1 :]
    if what == "grey":
        return cdb(drawn(), kind=1)
    if what == "count":
        return data[:6] + struct.pack("<I", 21) + data[10:]
    return data[:1030] + bytes([data[1030] + 1]) + data[1031:]  # the first run is one longer


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("header", "a.cdb is truncated: its header has 1000 of 1024"),
        ("cut", "a.cdb is truncated: it ends within record 20 of 20"),
        ("excess", "a.cdb is corrupt: 2 bytes follow its last record"),
        ("mark", "a.cdb is corrupt: record 2 of 20 starts with byte 0, not 255"),
        ("grey", "a.cdb is no file of binary images: its image type is 1"),
        ("count", "a.cdb is corrupt: its header counts 21 records in all and 20 by class"),
        ("run", "a.cdb is corrupt: record 1 of 20 (has a row|ends before|is longer)"),
    ],
)
def test_damage_is_named(tmp_path, what, message):
    (tmp_path / "a.cdb").write_bytes(broken(cdb(drawn()), what))
    with pytest.raises(ValueError, match=message):
        read_cdb(tmp_path / "a.cdb")


def test_a_damaged_mat_file_is_named(tmp_path):
    savemat(tmp_path / "a.mat", {"Data": np.zeros((3, 1), object)})
    with pytest.raises(ValueError, match=r"a.mat is not the original file: it lacks labels"):
        read_mat(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:150])
    with pytest.raises(ValueError, match=r"a.mat is (truncated or corrupt|not the original)"):
        read_mat(tmp_path / "a.mat")


def test_another_set_or_none_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"holds no Farsi digits: neither Train 60000.cdb nor Data_hoda_full"):
        hoda.hoda(tmp_path, "train")
    (tmp_path / "Test 20000.cdb").write_bytes(cdb(drawn()))
    with pytest.raises(ValueError, match=r"Test 20000.cdb is not the original file: it holds 20 digits, not 20000"):
        hoda.hoda(tmp_path, "test")
    monkeypatch.setitem(sys.modules[Bitmaps.__module__].COUNTS, "test", 20)
    with pytest.raises(ValueError, match=r"is not the original file: its digits have md5 [0-9a-f]{32}"):
        hoda.hoda(tmp_path, "test")


def test_fitting_centres_and_keeps_mass_and_aspect():
    small = np.zeros((4, 10), np.uint8)
    small[1, 2] = 255
    (square,) = fitted([small])
    assert square[12 + 1, 9 + 2] == 255 and square.sum() == 255
    large = np.full((56, 28), 255, np.uint8)  # twice too high: 28 x 14 in the middle
    (square,) = fitted([large])
    assert (square[:, 7:21] == 255).all() and square.sum() == 255 * 28 * 14
    stripes = np.zeros((56, 56), np.uint8)
    stripes[::2] = 255
    assert (fitted([stripes])[0] == 128).all()  # means over areas
    odd = (np.random.RandomState(0).rand(41, 33) < 0.5) * np.uint8(255)
    mean = fitted([odd])[0].sum() / (28 * round(33 * 28 / 41))
    assert abs(mean - odd.mean()) < 1


@pytest.fixture(scope="module")
def real(data_root):
    return {part: hoda.hoda(data_root / "hoda", part) for part in hoda.COUNTS}


def test_real_files_have_the_documented_counts(real):
    assert np.bincount(real["train"].labels).tolist() == [6000] * 10
    assert real["test"].labels.tolist() == [c for c in range(10) for _ in range(2000)]  # sorted
    assert len(real["remaining"].images) == 22_352
    heights, widths = zip(*(i.shape for part in real.values() for i in part.images), strict=True)
    assert (min(heights), max(heights), min(widths), max(widths)) == (4, 64, 3, 54)
    assert round(np.mean(heights)) == 29 and round(np.mean(widths)) == 20
    assert set(np.unique(np.concatenate([i.ravel() for i in real["train"].images[::50]]))) == {0, 255}


def test_92_real_test_bitmaps_are_in_the_training_set(real):
    seen = {(i.shape, i.tobytes()) for i in real["train"].images}
    assert sum((i.shape, i.tobytes()) in seen for i in real["test"].images) == 92


def test_real_bitmaps_tell_the_digit(real):
    """The nearest class mean of other writers' bitmaps: upright, unmirrored and labelled rightly."""
    train, test = (fitted(real[p].images[::20]) / 255.0 for p in ("train", "test"))
    means = np.stack([train[real["train"].labels[::20] == c].mean(0) for c in range(10)])

    def accuracy(images):
        found = ((images[:, None] - means) ** 2).sum((2, 3)).argmin(1)
        return (found == real["test"].labels[::20]).mean()

    assert accuracy(test) > 0.7
    assert max(accuracy(test[:, :, ::-1]), accuracy(test[:, ::-1])) < 0.6
