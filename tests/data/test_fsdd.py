"""Spoken digits: every layout, every kind of damage, and the originals where they are."""

import zipfile

import numpy as np
import pytest

from pyro_mm.data import fsdd as module
from pyro_mm.data.fsdd import content_md5, fsdd, read_recordings
from tests.helpers.drawn_and_spoken import archive, tone, wav

TAKES = {
    (digit, speaker, i): tone(digit, i, 50 + i) for digit in range(10) for speaker in ("ann", "bob") for i in (0, 5)
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose archive counts as the complete original."""
    archive(tmp_path / "recordings.zip", TAKES)
    monkeypatch.setattr(module, "PER_DIGIT", 4)
    monkeypatch.setattr(module, "MD5", content_md5(read_recordings(tmp_path / "recordings.zip")))
    return tmp_path


def test_recordings_come_in_order_with_their_names(folder):
    every = fsdd(folder)
    assert [(r.label, r.speaker, r.index) for r in every] == sorted(TAKES)
    assert all(np.array_equal(r.wave, TAKES[r.label, r.speaker, r.index]) for r in every)
    assert [r.test for r in every] == [i == 0 for *_, i in sorted(TAKES)]


def test_every_layout_gives_the_same_recordings(folder):
    expected = content_md5(fsdd(folder))
    (folder / "recordings.zip").unlink()
    archive(folder / "recordings.zip", TAKES, folder="free-spoken-digit-dataset-1.0.10/recordings/")
    assert content_md5(fsdd(folder)) == expected
    with zipfile.ZipFile(folder / "recordings.zip") as z:
        names = z.namelist()
        z.extractall(folder)
    (folder / "recordings.zip").unlink()
    inner = folder / names[0].split("/")[0]
    assert content_md5(fsdd(inner)) == content_md5(fsdd(inner / "recordings")) == expected


def test_absent_and_incomplete_sets_are_refused(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for place in (empty, empty / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{place} holds no spoken digits: neither recordings.zip nor"):
            fsdd(place)
    archive(folder / "recordings.zip", {k: v for k, v in TAKES.items() if k != (3, "bob", 5)})
    with pytest.raises(ValueError, match=r"recordings.zip is incomplete: it holds \[4, 4, 4, 3, 4.*not 4 of each"):
        fsdd(folder)
    archive(folder / "recordings.zip", {**TAKES, (3, "bob", 5): tone(3, 5, 56)})
    with pytest.raises(ValueError, match=r"recordings.zip is not version 1.0.10: .* md5 [0-9a-f]{32}, expected"):
        fsdd(folder)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_archives_are_named(folder, keep):
    path = folder / "recordings.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match=r"recordings\.zip is truncated or corrupt"):
        fsdd(folder)


def test_a_changed_byte_is_found(folder):
    path = folder / "recordings.zip"
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"data") + 20] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"recordings\.zip is truncated or corrupt: .*_ann_0\.wav"):
        fsdd(folder)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is truncated or corrupt: it ends within its header"),
        (wav(tone(1, 1))[:30], "is truncated or corrupt"),
        (wav(tone(1, 1))[:-1000], "is truncated: it holds 1500 of 2000 samples"),
        (wav([]), "is truncated: it holds 0 of 0 samples"),
        (b"RIFX" + wav(tone(1, 1))[4:], "is truncated or corrupt: file does not start with RIFF id"),
        (wav(tone(1, 1), rate=16_000), r"has \(channels, bytes, Hz\) \(1, 2, 16000\), expected \(1, 2, 8000\)"),
    ],
)
def test_damaged_recordings_are_named(tmp_path, raw, message):
    (tmp_path / "7_ann_3.wav").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"7_ann_3\.wav {message}"):
        read_recordings(tmp_path)


def test_real_recordings_have_the_documented_contents(data_root):
    every = fsdd(data_root / "fsdd")
    assert sorted({r.speaker for r in every}) == ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    assert sum(r.test for r in every) == 300
    seconds = np.array([len(r.wave) / 8000 for r in every])
    assert np.allclose([seconds.min(), np.median(seconds), seconds.max()], [0.14, 0.42, 2.28], atol=5e-3)
    assert 0.99 <= (seconds < 0.924).mean() < 0.995
