"""Arrays on disk: read back exactly, or refused."""

import numpy as np
import pytest

from pyro_mm.data.stored import key_of, read_arrays, write_arrays
from pyro_mm.files import BadFile

ARRAYS = {
    "a": np.arange(6, dtype=np.float16).reshape(2, 3),
    "b": np.frombuffer(np.random.RandomState(0).bytes(5000), np.uint8),
    "c": np.zeros((0, 4)),
}


@pytest.fixture
def file(tmp_path):
    return write_arrays(tmp_path / "x.npz", "made from this", ARRAYS)


def test_arrays_come_back_exactly(file):
    key, found = read_arrays(file)
    assert key == key_of(file) == "made from this" and set(found) == set(ARRAYS)
    for name, x in ARRAYS.items():
        assert np.array_equal(found[name], x) and found[name].dtype == x.dtype and found[name].shape == x.shape


def test_damage_anywhere_is_refused(file):
    whole = file.read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:keep])
        with pytest.raises(BadFile, match=r"x\.npz is truncated or corrupt"):
            read_arrays(file)
        assert key_of(file) is None
    for place in range(0, len(whole), 97):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        file.write_bytes(changed)
        try:
            _, found = read_arrays(file)
        except BadFile:
            continue
        assert all(np.array_equal(found[name], x) for name, x in ARRAYS.items())  # a byte that means nothing


@pytest.mark.parametrize("change", ["value", "key", "name", "shape"])
def test_other_contents_under_the_old_checksum_are_refused(file, change):
    with np.load(file) as z:
        held = dict(z)
    held.update(
        {
            "value": {"a": held["a"] + 1},
            "key": {"key": np.array("made from that")},
            "name": {"d": held.pop("c")} if change == "name" else {},
            "shape": {"a": held["a"].reshape(3, 2)},
        }[change]
    )
    np.savez(file, **held)
    with pytest.raises(BadFile, match=r"x\.npz is corrupt: its contents do not match their checksum"):
        read_arrays(file)


class Intruder:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_is_unpickled(file, tmp_path):
    np.savez(file, key=np.array("k"), checksum=np.array("c"), a=np.array([Intruder()], dtype=object))
    with pytest.raises(BadFile, match="pickle"):
        read_arrays(file)
    np.save(tmp_path / "lone.npy", ARRAYS["a"])
    with pytest.raises(BadFile, match=r"lone\.npy is truncated or corrupt"):
        read_arrays(tmp_path / "lone.npy")
    assert key_of(tmp_path / "lone.npy") is None
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npz")
