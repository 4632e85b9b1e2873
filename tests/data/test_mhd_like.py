"""MHD-like: true pairs, disjoint splits and a cache that is never trusted, on a miniature and on the originals."""

import logging
import os
import sys
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch

from pyro_mm.data import fsdd, pendigits
from pyro_mm.data.mel import log_mel
from pyro_mm.data.mhd_like import mhd_like
from pyro_mm.data.mhd_like_rows import made_rows, paired
from pyro_mm.data.pen import as_vector, normalised, rendered, resampled
from tests.helpers.drawn_and_spoken import archive, tone, unipen

MODULE = sys.modules[mhd_like.__module__]
RANDOM = np.random.RandomState


def drawn(writers, seed):
    random = RANDOM(seed)
    strokes = lambda n: [[tuple(map(int, p)) for p in random.randint(0, 400, (4, 2))] for _ in range(n)]
    return [(label, w, strokes(1 + label % 2)) for w in writers for label in range(10)]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder with 300 + 140 digits and 260 recordings."""
    folder = tmp_path_factory.mktemp("originals")
    (folder / "pendigits-orig.tra").write_text(unipen(drawn(range(1, 31), 0)))
    (folder / "pendigits-orig.tes").write_text(unipen(drawn(range(1, 15), 1)))
    takes = {(d, s, i): tone(d, i + 40 * (s == "bob")) for d in range(10) for s in ("ann", "bob") for i in range(13)}
    archive(folder / "recordings.zip", takes)
    return folder


@pytest.fixture
def tiny(originals, tmp_path, monkeypatch):
    """The same folder where these count as the originals, and an empty cache."""
    md5 = {p: pendigits.content_md5(pendigits.read_unipen(originals / f)) for p, f in pendigits.FILES.items()}
    monkeypatch.setattr(pendigits, "MD5", md5)
    monkeypatch.setattr(pendigits, "COUNTS", {"train": (30,) * 10, "test": (14,) * 10})
    monkeypatch.setattr(fsdd, "PER_DIGIT", 26)
    monkeypatch.setattr(fsdd, "MD5", fsdd.content_md5(fsdd.read_recordings(originals / "recordings.zip")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return originals


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "pyro_mm").glob("*"))


def sources(root):
    digits = {part: pendigits.pendigits(root, part) for part in pendigits.FILES}
    return digits, fsdd.fsdd(root)


def test_rows_are_what_the_sources_say(tiny):
    s = mhd_like(tiny)
    digits, recordings = sources(tiny)
    assert (len(s.train), len(s.validation), len(s.test)) == (270, 30, 140)
    assert (s.name, s.label, s.names) == ("mhd_like", "label", ("image", "trajectory", "sound", "label"))
    rows = made_rows(digits, recordings, 0)
    for split, batch, given in (
        ("train", s.train, digits["train"][:270]),
        ("validation", s.validation, digits["train"][270:]),
        ("test", s.test, digits["test"]),
    ):
        assert batch.x["label"].tolist() == [d.label for d in given]
        for i in (0, 11, 29):
            strokes = normalised(given[i].strokes)
            assert np.allclose(batch.x["trajectory"][i], as_vector(resampled(strokes)), atol=5e-4)
            take = recordings[rows[f"{split}_recording"][i]]
            assert take.label == given[i].label
            assert torch.allclose(batch.x["sound"][i], log_mel(take.wave), atol=0.51 / 255)


def test_pictures_are_drawn_from_their_own_strokes_with_many_pens(tiny):
    digits, _ = sources(tiny)
    picture, widths = mhd_like(tiny).test.x["image"][:, 0].double(), []
    for x, d in zip(picture[:40], digits["test"], strict=False):
        strokes = normalised(d.strokes)
        thin, thick = (torch.from_numpy(rendered(strokes, w)).double() for w in (1.2, 2.8))
        assert bool((x >= thin - 0.003).all()) and bool((x <= thick + 0.003).all())
        widths.append(((x - thin).sum() / (thick - thin).sum()).item())
    assert min(widths) < 0.2 and max(widths) > 0.8


def test_writers_and_recordings_are_disjoint_between_splits(tiny):
    digits, recordings = sources(tiny)
    rows = made_rows(digits, recordings, 5)
    heard = {s: set(rows[f"{s}_recording"].tolist()) for s in ("train", "validation", "test")}
    index = {s: {recordings[i].index for i in places} for s, places in heard.items()}
    assert index == {"train": set(range(9, 13)), "validation": set(range(5, 9)), "test": set(range(5))}
    assert set(rows["train_writer"]) == set(range(1, 28)) and set(rows["validation_writer"]) == {28, 29, 30}


def test_recordings_are_used_equally_often_within_a_class():
    label, said = np.repeat(np.arange(3), (50, 7, 20)), np.array([2, 0, 0, 1, 2, 0, 1, 1, 1])
    chosen = paired(label, said, RANDOM(0))
    assert np.array_equal(said[chosen], label)
    uses = Counter(chosen.tolist())
    assert [sorted(uses[i] for i in np.flatnonzero(said == c)) for c in range(3)] == [
        [16, 17, 17],
        [1, 2, 2, 2],
        [10, 10],
    ]
    assert not np.array_equal(chosen, paired(label, said, RANDOM(1)))
    with pytest.raises(ValueError, match="sound: no recording of the digit 2"):
        paired(label, said[1:4], RANDOM(0))


def test_the_seed_decides_pens_and_pairs_alone(tiny, tmp_path):
    one, two, again = mhd_like(tiny), mhd_like(tiny, seed=1), mhd_like(tiny, cache=tmp_path / "elsewhere")
    assert one.fingerprint() == again.fingerprint() != two.fingerprint()
    for m in ("trajectory", "label"):
        assert torch.equal(one.train.x[m], two.train.x[m])
    for m in ("image", "sound"):
        assert not torch.equal(one.train.x[m], two.train.x[m])
    assert len(kept(tmp_path)) == 2 and len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_rows_are_made_once(tiny, monkeypatch):
    first = mhd_like(tiny).fingerprint()
    monkeypatch.setattr(MODULE, "made_rows", None)
    assert mhd_like(tiny).fingerprint() == mhd_like().fingerprint() == first


@pytest.mark.parametrize("damage", ["cut", "changed", "other key"])
def test_a_damaged_cache_is_made_again(tiny, tmp_path, damage, caplog):
    first = mhd_like(tiny).fingerprint()
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    if damage == "other key":
        mhd_like(tiny, seed=1)
        os.replace(next(p for p in kept(tmp_path) if p != file), file)
    else:
        changed = bytearray(whole)
        changed[len(whole) // 3] ^= 0xFF
        file.write_bytes({"cut": whole[: len(whole) // 2], "changed": bytes(changed)}[damage])
    with caplog.at_level(logging.INFO, "pyro_mm"):
        assert mhd_like(tiny).fingerprint() == first
    assert not [r for r in caplog.records if r.levelno > logging.INFO]
    assert damage == "other key" or f"rows are made again: {file}" in caplog.text
    assert kept(tmp_path) == [file]
    assert mhd_like().fingerprint() == first


def test_a_kept_file_is_enough(tiny, tmp_path):
    first = mhd_like(tiny).fingerprint()
    (file,) = kept(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    moved = file.rename(alone / "mhd_like_for_you.npz")
    assert mhd_like(alone).fingerprint() == first and not kept(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"mhd_like_for_you.npz is damaged or made with another seed"):
        mhd_like(alone, seed=1)
    moved.write_bytes(moved.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match=r"lacks .*; its mhd_like_for_you.npz is damaged"):
        mhd_like(alone)


def test_every_layout_gives_the_same_rows(tiny, tmp_path):
    first = mhd_like(tiny, cache=tmp_path / "a").fingerprint()
    for folder, name in (("pendigits", "*.t*"), ("fsdd", "*.zip")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for path in tiny.glob(name):
            (tmp_path / "in" / folder / path.name).write_bytes(path.read_bytes())
    assert mhd_like(tmp_path / "in", cache=tmp_path / "b").fingerprint() == first
    with zipfile.ZipFile(tmp_path / "in" / "fsdd" / "recordings.zip") as z:
        z.extractall(tmp_path / "in" / "fsdd")
    (tmp_path / "in" / "fsdd" / "recordings.zip").unlink()
    assert mhd_like(str(tmp_path / "in"), cache=tmp_path / "c").fingerprint() == first


def test_what_is_missing_is_named(tiny, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"root=FOLDER .* with its files .*download=True .* to fetch 20 MB into"
    ):
        mhd_like()
    (tmp_path / "recordings.zip").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=f"root={tmp_path} lacks pendigits-orig.tra, pendigits-orig.tes, looked"
    ):
        mhd_like(tmp_path)
    mhd_like(tiny)  # what is kept does not hide that root is wrong
    with pytest.raises(FileNotFoundError, match=r"lacks pendigits-orig\.tra, pendigits-orig\.tes, recordings\.zip"):
        mhd_like(tmp_path / "nowhere")


def test_download_fetches_what_is_missing_and_no_more(tiny, tmp_path, monkeypatch):
    asked = []

    def received(url, path, most):
        asked.append(url)
        return (tiny / path.name).read_bytes()

    monkeypatch.setattr("pyro_mm.data.fetch._received", received)
    root = tmp_path / "root"
    root.mkdir()
    (root / "pendigits-orig.tes").write_bytes((tiny / "pendigits-orig.tes").read_bytes())
    first = mhd_like(root, download=True, cache=tmp_path / "a").fingerprint()
    assert [u.rpartition("/")[2] for u in asked] == ["pendigits-orig.tra.Z", "v1.0.10.zip"]
    assert mhd_like(root, cache=tmp_path / "b").fingerprint() == first and len(asked) == 2
    assert mhd_like(download=True).fingerprint() == first and len(asked) == 5
    assert mhd_like(download=True).fingerprint() == first and len(asked) == 5


def test_an_unwritable_cache_stops_nobody(tiny, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert mhd_like(tiny, cache=tmp_path / "file").fingerprint() == mhd_like(tiny).fingerprint()


@pytest.fixture(scope="module")
def real(data_root):
    """Every eighth real digit with all real recordings, as rows."""
    digits = {part: pendigits.pendigits(data_root / "pendigits", part) for part in pendigits.FILES}
    held = sum(d.writer in (28, 29, 30) for d in digits["train"])
    assert (len(digits["train"]) - held, held, len(digits["test"])) == (6745, 749, 3498)
    return made_rows({part: every[::8] for part, every in digits.items()}, fsdd.fsdd(data_root / "fsdd"), 0)


def test_real_recordings_are_split_between_all_speakers(real):
    sizes = {s: len(np.unique(real[f"{s}_recording"])) for s in ("train", "validation", "test")}
    assert sizes["test"] == 300 and sizes["validation"] == len(real["validation_label"]) and sizes["train"] > 800
    assert len(np.unique(np.concatenate([real[f"{s}_recording"] for s in sizes]))) == sum(sizes.values())


@pytest.mark.parametrize(("modality", "least"), [("image", 0.6), ("sound", 0.35)])
def test_real_pictures_and_sounds_tell_the_digit(real, modality, least):
    def pixels(split):
        x = real[f"{split}_image"] if modality == "image" else real["sound"][real[f"{split}_recording"]]
        return torch.from_numpy(x).flatten(1) / 255

    train, test = pixels("train"), pixels("test")
    means = torch.stack([train[real["train_label"] == c].mean(0) for c in range(10)])
    right = torch.cdist(test, means).argmin(1).numpy() == real["test_label"]
    # The nearest class mean, over other writers and takes: 0.75 and 0.49 here, one in ten if pairs were by chance.
    assert right.mean() > least
