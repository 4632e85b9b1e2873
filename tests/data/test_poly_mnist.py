"""PolyMNIST-like pictures: digits of one class, inverted where the digit is, pairs and crops by seeds."""

import sys

import pytest
import torch
from torch.utils.data import DataLoader

from pyro_mm.batch import Batch
from pyro_mm.data import Coloured, Paired, mnist, poly_mnist_like
from pyro_mm.data.poly_mnist import NAMES, textures
from tests.helpers.idx_files import miniature

MNIST = sys.modules[mnist.__module__]


@pytest.fixture
def root(tmp_path, monkeypatch):
    changed, data = miniature(MNIST.FILES, tmp_path)
    monkeypatch.setattr(MNIST, "FILES", changed)
    return tmp_path, data


def flat(level):
    return torch.full((3, 40, 40), level, dtype=torch.uint8)


def test_a_digit_inverts_its_background():
    grey = torch.tensor([0, 255, 51], dtype=torch.uint8).repeat_interleave(28 * 28).reshape(3, 1, 28, 28)
    pairs = Paired({"m0": Batch({"m0": grey, "label": torch.arange(3)})})
    x = Coloured(pairs, {"m0": flat(51)})[range(3)].x["m0"]
    assert x.shape == (3, 3, 28, 28)
    for picture, value in zip(x, (0.2, 0.8, 0.8 * 0.2 + 0.2 * 0.8), strict=True):
        torch.testing.assert_close(picture, torch.full_like(picture, value))


def test_crops_lie_anywhere_in_the_texture():
    """A texture that tells its own coordinates: crops are contiguous, and every corner is reached."""
    place = torch.arange(34, dtype=torch.uint8)
    texture = torch.stack([place[:, None].expand(34, 34), place.expand(34, 34), torch.zeros(34, 34).byte()])
    blank = Batch({"m0": torch.zeros(400, 1, 28, 28, dtype=torch.uint8), "label": torch.zeros(400).long()})
    torch.manual_seed(0)
    x = (Coloured(Paired({"m0": blank}), {"m0": texture})[range(400)].x["m0"] * 255).round().long()
    top, left = x[:, 0, 0, 0], x[:, 1, 0, 0]
    assert torch.equal(x[:, 0], (top[:, None, None] + torch.arange(28)[:, None]).expand(400, 28, 28))
    assert torch.equal(x[:, 1], (left[:, None, None] + torch.arange(28)).expand(400, 28, 28))
    counts = torch.zeros(7, 7).index_put_((top, left), torch.ones(400), accumulate=True)
    assert counts.min() > 0 and ((counts - 400 / 49).square() / (400 / 49)).sum() < 90  # chi-square, 48 df


def test_rows_share_their_class_and_nothing_else(root):
    base, data = root
    s = poly_mnist_like(base, validation=10)
    assert s.names == (*NAMES, "label") and len(s.train) == 20 and len(s.validation) == len(s.test) == 10
    digits = data["test image"].float() / 255  # one of each class: every modality shows the same one
    b = {m: t.float() / 255 for m, t in textures().items()}
    for m in NAMES:
        x = s.test.x[m]
        row = int(s.test.x["label"][4])
        g = digits[int((data["test label"] == row).nonzero())]
        # Solved for the background wherever the grey is not one half: it lies among the texture's values.
        sure = (g - 0.5).abs() > 0.2
        back = ((x[4] - g) / (1 - 2 * g))[:, sure]
        for channel in range(3):
            low, high = b[m][channel].min() - 1e-4, b[m][channel].max() + 1e-4
            assert bool((back[channel] >= low).all()) and bool((back[channel] <= high).all())
    assert poly_mnist_like(base, validation=10).fingerprint() == s.fingerprint()
    assert len(poly_mnist_like(base, validation=10, held=3).test) == 3


def test_no_digit_is_in_two_splits(root):
    """Pictures differ by their crops anyhow; the digits under them are the first training ones, and no others."""
    base, data = root
    s = poly_mnist_like(base, validation=10)
    for m in NAMES:
        assert torch.equal(s.train.pairs.parts[m].x[m].squeeze(1), data["train image"][:20])
    held = torch.cat([data["train image"][20:], data["test image"]])
    same = (data["train image"][:20].flatten(1)[:, None] == held.flatten(1)).all(-1)
    assert not same.any() and len(held) == 20


def test_training_rows_are_painted_anew(root):
    base, _ = root
    s = poly_mnist_like(base, validation=10).only("m0", "m3")
    torch.manual_seed(0)
    first, second = s.train[range(20)], s.train[range(20)]
    assert not torch.equal(first.x["m3"], second.x["m3"])
    torch.manual_seed(0)
    assert torch.equal(s.train[range(20)].x["m3"], first.x["m3"])
    (batch,) = DataLoader(s.train, batch_size=20, collate_fn=Batch.collate)
    assert batch.names == ("m0", "m3")


def test_every_texture_leaves_room_for_its_inverse():
    for texture in textures().values():
        share = texture.double() / 255
        assert texture.shape == (3, 128, 128) and len(texture.flatten(1).unique(dim=1)) > 1
        assert ((1 - 2 * share).abs().mean(0)).min() > 0.2  # contrast between background and inverted digit


def test_bad_input_is_named(root):
    base, _ = root
    with pytest.raises(ValueError, match="validation must be between 1 and 29 rows, got 30"):
        poly_mnist_like(base, validation=30)
    with pytest.raises(FileNotFoundError, match="MNIST"):
        poly_mnist_like(base / "elsewhere")
    blank = Batch({"m9": torch.zeros(1, 1, 28, 28, dtype=torch.uint8), "label": torch.zeros(1).long()})
    with pytest.raises(ValueError, match="modality 'm9' needs a texture of at least 28 x 28"):
        Coloured(Paired({"m9": blank}), textures())
