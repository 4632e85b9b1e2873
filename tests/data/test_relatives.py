"""MNIST's relatives, Fashion-, Kuzushiji- and Kannada-MNIST: in miniature, and the real files where they are."""

import gzip
import sys

import pytest
import torch

from pyro_mm.data import Binarised, fashion_mnist, fashion_mnist_grey, kannada_mnist, kmnist
from pyro_mm.data import fetch as fetching
from tests.helpers.idx_files import idx, miniature

FASHION, KANNADA = sys.modules[fashion_mnist.__module__], sys.modules[kannada_mnist.__module__]
INSIDE = {fashion_mnist: "FashionMNIST/raw", fashion_mnist_grey: "FashionMNIST/raw", kmnist: "KMNIST/raw"}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """30 + 10 rows flat in a folder."""
    changed, data = miniature(FASHION.FILES, tmp_path / "flat", checked=False)
    monkeypatch.setattr(FASHION, "FILES", changed)
    return tmp_path / "flat", data


@pytest.mark.parametrize("make", INSIDE)
def test_rows_are_those_of_the_files_in_every_layout(tiny, tmp_path, make):
    flat, data = tiny
    s = make(flat, validation=10)
    assert s.name == make.__name__ and s.label == "label"
    stored = s.train.batch.x["image"] if isinstance(s.train, Binarised) else s.train.x["image"] * 255
    assert torch.equal(stored.round().to(torch.uint8)[:, 0], data["train image"][:20])
    assert s.validation.x["label"].tolist() == data["train label"][20:].tolist()
    assert s.test.x["label"].tolist() == data["test label"].tolist()
    raw = tmp_path / "root" / INSIDE[make]
    raw.mkdir(parents=True)
    for archive in flat.glob("*.gz"):
        (raw / archive.stem).write_bytes(gzip.decompress(archive.read_bytes()))
    assert make(tmp_path / "root", validation=10).fingerprint() == s.fingerprint()


def test_a_set_with_classes_of_unequal_size_is_another_one(tiny):
    """MNIST's own files have the same names and shapes."""
    flat, data = tiny
    labels = data["train label"].clone()
    labels[3] = 4
    (flat / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    with pytest.raises(
        ValueError, match=r"FashionMNIST: .*train-labels.* is not the original file: it holds \[3, 3, 3, 2"
    ):
        fashion_mnist(flat, validation=10)


def test_absent_files_are_named_with_the_places(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"KMNIST: root=.*missing in .*KMNIST/raw: train-images"):
        kmnist(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"FashionMNIST: where is it.*FashionMNIST/raw.*download=True.*31 MB"):
        fashion_mnist()


def test_download_is_torchvisions(tiny, tmp_path, monkeypatch):
    flat, _ = tiny
    asked = []

    def fetch(root, name):
        asked.append(name)
        raw = root / name / "raw"
        raw.mkdir(parents=True)
        for archive in flat.glob("*.gz"):
            (raw / archive.name).write_bytes(archive.read_bytes())

    monkeypatch.setattr(FASHION, "download_mnist", fetch)
    for make in (fashion_mnist, kmnist):
        again = make(tmp_path / "new", download=True, validation=10).fingerprint()
        assert make(tmp_path / "new", download=True, validation=10).fingerprint() == again
    assert asked == ["FashionMNIST", "KMNIST"]


def test_kannada_is_checked_to_the_byte(tmp_path, monkeypatch):
    changed, data = miniature(KANNADA.FILES, tmp_path / "kannada_mnist")
    other, writers = miniature(KANNADA.OTHER_WRITERS, tmp_path / "kannada_mnist")
    monkeypatch.setattr(KANNADA, "FILES", changed)
    monkeypatch.setattr(KANNADA, "OTHER_WRITERS", other)
    s = kannada_mnist(tmp_path, validation=10)
    assert torch.equal(s.train.batch.x["image"][:, 0], data["train image"][:20])
    assert kannada_mnist(tmp_path / "kannada_mnist", validation=10).fingerprint() == s.fingerprint()
    dig = kannada_mnist(tmp_path, validation=10, dig=True)
    assert torch.equal(dig.train.batch.x["image"], s.train.batch.x["image"])
    black = dig.test.x["image"][writers["test image"][:, None] == 0]
    assert len(black) and not black.any() and not torch.equal(dig.test.x["image"], s.test.x["image"])
    path = tmp_path / "kannada_mnist" / "X_kannada_MNIST_test-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(255 - data["test image"])))
    with pytest.raises(ValueError, match=r"Kannada-MNIST: .*X_kannada_MNIST_test.* is not the original file: its data"):
        kannada_mnist(tmp_path, validation=10)


def test_kannada_is_downloaded_whole_or_not_at_all(tmp_path, monkeypatch):
    changed, _ = miniature(KANNADA.FILES, tmp_path / "served")
    monkeypatch.setattr(KANNADA, "FILES", changed)
    asked = []

    def received(url, path, most):
        asked.append(url.rpartition("/")[2])
        data = (tmp_path / "served" / asked[-1]).read_bytes()
        if len(asked) == 4:
            raise RuntimeError(f"{url} could not be downloaded: timed out")
        return data

    monkeypatch.setattr(fetching, "_received", received)
    with pytest.raises(RuntimeError, match="could not be downloaded"):
        kannada_mnist(tmp_path / "new", download=True, validation=10)
    assert len(list((tmp_path / "new" / "kannada_mnist").iterdir())) == 3  # complete ones, and no piece of the last
    kannada_mnist(tmp_path / "new", download=True, validation=10)
    assert len(asked) == 5  # only what was missing


def test_real_kannada_files_have_the_documented_counts(data_root):
    s = kannada_mnist(data_root / "kannada_mnist")
    assert s.train.batch.x["label"].bincount().tolist() == [5000] * 10
    assert s.validation.x["label"].bincount().tolist() == s.test.x["label"].bincount().tolist() == [1000] * 10
    assert s.train.batch.x["label"][:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert s.train.batch.x["image"].max() == 255
    dig = kannada_mnist(data_root / "kannada_mnist", dig=True)
    assert dig.test.x["label"].bincount().tolist() == [1024] * 10
