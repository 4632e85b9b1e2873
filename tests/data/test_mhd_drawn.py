"""MHD-like, drawn: rows from one seed, true pairs, splits by class, and a cache that is never trusted."""

import functools
import logging
import sys

import numpy as np
import pytest
import torch

from pyro_mm.data.handwriting import drawn_digits
from pyro_mm.data.mel import log_mel
from pyro_mm.data.mhd_drawn import mhd_drawn
from pyro_mm.data.pen import as_points, as_vector, rendered
from pyro_mm.data.speech import spoken_digits
from pyro_mm.data.splits import stratified

MODULE = sys.modules[mhd_drawn.__module__]
MADE = functools.cache(MODULE._made)  # drawing takes time; what is tested is when


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(MODULE, "_made", MADE)
    return tmp_path / "cache" / "pyro_mm"


def test_rows_are_drawn_spoken_and_split_by_class():
    s = mhd_drawn(seed=5, n=150)
    assert (s.name, s.label, s.names) == ("mhd_drawn", "label", ("image", "trajectory", "sound", "label"))
    assert "not MHD" in s.note and (mhd_drawn.__doc__ or "").splitlines()[0].startswith("MHD-like")
    label = np.random.RandomState((5, 3)).permutation(np.arange(150) % 10)
    rows = stratified(torch.from_numpy(label), (0.7, 0.1, 0.2), 5)
    points, waves = drawn_digits(label, 5), torch.from_numpy(spoken_digits(label, 5))
    sizes = []
    for batch, place in zip((s.train, s.validation, s.test), rows, strict=True):
        assert batch.x["label"].tolist() == label[place].tolist()
        assert np.allclose(batch.x["trajectory"], as_vector(points[place]), atol=5e-4)
        assert torch.allclose(batch.x["sound"][:, 0], log_mel(waves[place]), atol=0.51 / 255)
        sizes.append(batch.x["label"].bincount().tolist())
    assert np.array_equal(sum(map(np.array, sizes)), [15] * 10)
    assert sizes[0] == [10] * 10 and {n for split in sizes[1:] for n in split} <= {1, 2, 3}


def test_no_row_is_drawn_or_spoken_twice():
    s = mhd_drawn(seed=5, n=150)
    for m in ("image", "trajectory", "sound"):
        rows = [row.numpy().tobytes() for b in (s.train, s.validation, s.test) for row in b.x[m]]
        assert len(set(rows)) == len(rows) == 150


def test_a_picture_is_drawn_along_its_own_trajectory():
    test = mhd_drawn(seed=1, n=100).test
    found = []
    for image, vector in zip(test.x["image"][:, 0].numpy(), test.x["trajectory"].numpy(), strict=True):
        off = {w: np.abs(image - rendered(as_points(vector), w)).mean() for w in np.linspace(1.2, 2.8, 17)}
        found.append(min(off, key=off.__getitem__))
        assert off[found[-1]] < 0.006  # half a step of width; most other rows of its class: 0.1 and more
    assert np.ptp(found) > 1  # pens differ


def test_rows_are_made_once(cache, monkeypatch):
    first = mhd_drawn(n=100)
    (kept,) = cache.glob("*")
    assert kept.name.startswith("mhd_drawn-") and kept.suffix == ".npz"
    with monkeypatch.context() as m:
        m.setattr(MODULE, "_made", lambda *_: pytest.fail("made again"))
        assert mhd_drawn(n=100).fingerprint() == first.fingerprint()
        torch.set_default_dtype(torch.double)
        try:
            again = mhd_drawn(n=100)
        finally:
            torch.set_default_dtype(torch.float)
        assert again.test.x["sound"].dtype == torch.double
        assert torch.allclose(again.test.x["sound"].float(), first.test.x["sound"])
    others = {mhd_drawn(**other).fingerprint() for other in ({"seed": 1, "n": 100}, {"n": 110})}
    assert len(others | {first.fingerprint()}) == 3 and len(list(cache.glob("*"))) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped"])
def test_a_damaged_cache_is_made_anew(cache, caplog, damage):
    first = mhd_drawn(n=100).fingerprint()
    (kept,) = cache.glob("*")
    raw = bytearray(kept.read_bytes())
    if damage == "cut":
        kept.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped":
        raw[len(raw) // 3] ^= 255
        kept.write_bytes(raw)
    else:  # a sound file of another seed under this one's name
        mhd_drawn(seed=1, n=100)
        (other,) = set(cache.glob("*")) - {kept}
        other.replace(kept)
    with caplog.at_level(logging.INFO, logger=MODULE.__name__):
        assert mhd_drawn(n=100).fingerprint() == first
    assert ("made again" in caplog.text) == (damage != "swapped")
    caplog.clear()
    assert mhd_drawn(n=100).fingerprint() == first and not caplog.text


def test_an_unwritable_cache_stops_nobody(tmp_path, monkeypatch):
    first = mhd_drawn(n=100).fingerprint()
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert mhd_drawn(n=100).fingerprint() == first


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="n must be at least 100, so that every split holds every class; got 99"):
        mhd_drawn(n=99)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=f"seed must be between 0 and 2\\*\\*32 - 1, got {seed}"):
            mhd_drawn(seed=seed)
