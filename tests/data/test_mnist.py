"""MNIST: a miniature with its own checksums everywhere, the real files where PYRO_MM_DATA has them."""

import gzip
import struct
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from pyro_mm.batch import Batch
from pyro_mm.data import Binarised, binarised_once, mnist, mnist_grey, mnist_halves, mnist_quadrants
from pyro_mm.data.idx import decoded_md5

MODULE = sys.modules[mnist.__module__]  # `pyro_mm.data.mnist` is the function
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def idx(data):
    return bytes([0, 0, 8, data.dim()]) + struct.pack(f">{data.dim()}I", *data.shape) + data.numpy().tobytes()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with 30 + 12 rows in MNIST's four files, and their shapes and checksums in place of the real ones."""
    g = torch.Generator().manual_seed(0)
    data = {}
    for part, n in (("train", 30), ("test", 12)):
        data[f"{part} image"] = torch.randint(0, 256, (n, 28, 28), generator=g, dtype=torch.uint8)
        data[f"{part} label"] = (torch.arange(n) % 10).to(torch.uint8)
    files = MODULE.FILES
    changed = {k: (files[k][0], tuple(v.shape), decoded_md5(v)) for k, v in data.items()}
    monkeypatch.setattr(MODULE, "FILES", changed)
    for k, v in data.items():
        (tmp_path / f"{files[k][0]}.gz").write_bytes(gzip.compress(idx(v)))
    return tmp_path, data


def test_splits_are_the_original_test_set_and_the_last_training_rows(tiny):
    root, data = tiny
    s = mnist(root, validation=10)
    assert isinstance(s.train, Binarised)
    assert torch.equal(s.train.batch.x["image"], data["train image"][:20, None])
    assert s.train.batch.x["label"].tolist() == data["train label"][:20].tolist()
    assert s.validation.x["label"].tolist() == data["train label"][20:].tolist()
    assert s.test.x["label"].tolist() == data["test label"].tolist()
    assert s.names == ("image", "label") and s.label == "label"


def test_test_pixels_are_drawn_once_and_training_pixels_anew(tiny):
    root, data = tiny
    one, two = mnist(root, validation=10), mnist(root, validation=10)
    for split in ("validation", "test"):
        assert torch.equal(getattr(one, split).x["image"], getattr(two, split).x["image"])
    grey = Batch({"image": data["test image"][:, None]})
    assert torch.equal(one.test.x["image"], binarised_once(grey, "image", 2, 255).x["image"])
    held = Batch({"image": data["train image"][20:, None]})
    assert torch.equal(one.validation.x["image"], binarised_once(held, "image", 1, 255).x["image"])
    loader = DataLoader(one.train, 5, collate_fn=Batch.collate)
    epochs = [Batch.collate(list(loader)).x["image"] for _ in range(200)]
    assert not torch.equal(epochs[0], epochs[1])
    p = data["train image"][:20, None] / 255
    spread = (p * (1 - p)).sum() / 200
    assert abs((torch.stack(epochs).mean(0) - p).sum()) < 4 * spread.sqrt()


def test_halves_and_quadrants_make_the_whole(tiny):
    root, data = tiny
    image = data["train image"][:20, None]
    halves = mnist_halves(root, validation=10).train.batch.x
    assert torch.equal(torch.cat([halves["top"], halves["bottom"]], -2), image)
    q = mnist_quadrants(root, validation=10).train.batch.x
    top, bottom = (torch.cat([q[f"{row}_left"], q[f"{row}_right"]], -1) for row in ("top", "bottom"))
    assert torch.equal(torch.cat([top, bottom], -2), image)
    assert mnist_quadrants(root, validation=10).only("top_left", "bottom_right").names == ("top_left", "bottom_right")


def test_grey_values_are_bytes_over_255(tiny):
    root, data = tiny
    s = mnist_grey(root, validation=10)
    assert torch.equal(s.train.x["image"], data["train image"][:20, None] / 255)
    assert torch.equal(s.test.x["image"], data["test image"][:, None] / 255)
    assert s.validation.x["label"].tolist() == data["train label"][20:].tolist()


@pytest.mark.parametrize("make", [mnist, mnist_grey, mnist_halves, mnist_quadrants])
def test_every_layout_gives_the_same_rows(tiny, tmp_path_factory, make):
    flat, _ = tiny
    expected = make(flat, validation=10).fingerprint()
    raw = tmp_path_factory.mktemp("tv") / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in flat.glob("*.gz"):
        (raw / archive.stem).write_bytes(gzip.decompress(archive.read_bytes()))
    assert make(raw.parents[1], validation=10).fingerprint() == expected
    assert make(str(raw), validation=10).fingerprint() == expected


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_files_are_refused_by_name(tiny, name):
    root, _ = tiny
    path = root / f"{name}.gz"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=f"MNIST: .*{name}.gz is truncated or corrupt.*Delete that file"):
        mnist(root, validation=10)
    other = bytearray(gzip.decompress(good))
    other[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(other)))
    with pytest.raises(ValueError, match=f"{name}.gz is not the original file: its data have md5"):
        mnist(root, validation=10)


def test_files_of_another_set_are_refused(tiny, tmp_path):
    root, _ = tiny
    (root / "t10k-images-idx3-ubyte.gz").replace(root / "train-images-idx3-ubyte.gz")
    (root / "t10k-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz holds shape \(12, 28, 28\), expected \(30,"):
        mnist(root, validation=10)


def test_absent_files_are_named(tiny, tmp_path):
    root, _ = tiny
    (root / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as error:
        mnist(root)
    assert f"in {root}: t10k-labels-idx1-ubyte (or .gz)" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no complete set.*download=True"):
        mnist(root / "nowhere")


def test_without_root_both_ways_are_named(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    with pytest.raises(FileNotFoundError, match=r"root=FOLDER.*download=True.*/somewhere/pyro_mm"):
        mnist()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert MODULE.cache_folder() == Path.home() / ".cache" / "pyro_mm"


def test_download_fetches_only_what_is_missing(tiny, tmp_path_factory, monkeypatch):
    flat, _ = tiny
    calls = []

    def fetch(root):
        calls.append(root)
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for archive in flat.glob("*.gz"):
            (raw / archive.name).write_bytes(archive.read_bytes())

    monkeypatch.setattr(MODULE, "download_mnist", fetch)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    prints = {mnist(root, download=True, validation=10).fingerprint() for root in (None, None, flat)}
    assert calls == [cache / "pyro_mm"] and len(prints) == 1


@pytest.mark.parametrize("validation", [0, 30, -1])
def test_validation_must_leave_rows_on_both_sides(tiny, validation):
    with pytest.raises(ValueError, match=f"between 1 and 29 rows, got {validation}"):
        mnist(tiny[0], validation=validation)


@pytest.fixture(scope="module")
def real(data_root):
    return mnist(data_root / "mnist")


def test_real_files_have_the_documented_counts(real):
    seen = torch.cat([real.train.batch.x["label"], real.validation.x["label"]])
    assert torch.bincount(seen).tolist() == TRAIN_COUNTS
    assert torch.bincount(real.test.x["label"]).tolist() == TEST_COUNTS
    assert (len(real.train), len(real.validation), len(real.test)) == (50_000, 10_000, 10_000)


def test_real_pixels_have_the_documented_mean(data_root, real):
    grey = mnist_grey(data_root / "mnist")
    pixels = torch.cat([grey.train.x["image"], grey.validation.x["image"]])
    assert pixels.double().mean().item() == pytest.approx(0.1307, abs=5e-5)
    p = grey.test.x["image"].double()
    spread = (p * (1 - p)).sum().sqrt().item()
    assert abs(real.test.x["image"].sum().item() - p.sum().item()) < 4 * spread


def test_real_splits_are_disjoint(data_root):
    grey = mnist_grey(data_root / "mnist")
    parts = [{hash(row.numpy().tobytes()) for row in b.x["image"]} for b in (grey.train, grey.validation, grey.test)]
    assert [len(p) for p in parts] == [50_000, 10_000, 10_000]  # MNIST holds no picture twice
    assert len(set.union(*parts)) == 70_000
