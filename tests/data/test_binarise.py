"""Binary draws from grey pixels."""

import pytest
import torch
from torch.utils.data import DataLoader

from pyro_mm.batch import Batch
from pyro_mm.data import Binarised, binarised_once

LEVELS = torch.tensor([0, 51, 128, 200, 255], dtype=torch.uint8)


@pytest.fixture
def grey() -> Batch:
    mask = torch.arange(400) % 4 != 0
    return Batch({"image": LEVELS.expand(400, 5).clone(), "label": torch.arange(400)}, {"image": mask})


def test_mean_over_fetches_is_the_grey_level(grey):
    data = Binarised(grey, "image", levels=255)
    draws = torch.cat([data[:].x["image"][grey.mask["image"]] for _ in range(25)])
    p = LEVELS / 255
    error = (draws.mean(0) - p)[1:-1] / (p * (1 - p) / len(draws)).sqrt()[1:-1]
    assert error.abs().max() < 4
    assert torch.equal(draws.unique(), torch.tensor([0.0, 1.0]))
    assert draws[:, 0].sum() == 0 and bool(draws[:, -1].all())  # black and white are certain


def test_black_is_black_even_when_the_generator_gives_zero(grey, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert Binarised(grey, "image", 255)[1].x["image"].tolist() == [[0, 1, 1, 1, 1]]


def test_pixels_and_fetches_are_independent(grey):
    data = Binarised(Batch({"image": torch.full((10_000, 2), 0.5)}), "image")
    one, two = data[:].x["image"], data[:].x["image"]
    for a, b in ((one[:, 0], one[:, 1]), (one[:, 0], two[:, 0]), (one[:-1, 0], one[1:, 0])):
        agree = (a == b).double().mean().item()
        assert abs(agree - 0.5) < 4 * 0.5 / len(a) ** 0.5


def test_loader_fetches_whole_minibatches_and_repeats_by_seed(grey):
    data = Binarised(grey, ["image"], 255)
    loader = DataLoader(data, batch_size=64, collate_fn=Batch.collate)

    def epoch(seed):
        torch.manual_seed(seed)
        return Batch.collate(list(loader))

    one, again, other = epoch(1), epoch(1), epoch(2)
    assert torch.equal(one.x["image"], again.x["image"]) and not torch.equal(one.x["image"], other.x["image"])
    assert torch.equal(one.x["label"], grey.x["label"]) and torch.equal(one.mask["image"], grey.mask["image"])
    assert [len(b) for b in loader] == [64] * 6 + [16]


def test_rows_are_those_asked_for():
    black_or_white = Batch({"image": (torch.arange(10) % 2).float()[:, None], "label": torch.arange(10)})
    data = Binarised(black_or_white, "image")
    assert len(data) == 10
    assert data[3].x["image"].tolist() == [[1.0]] and data[-2].x["label"].tolist() == [8]
    picked = data.__getitems__([7, 2, 2])
    assert picked.x["image"].tolist() == [[1.0], [0.0], [0.0]] and picked.x["label"].tolist() == [7, 2, 2]


def test_once_depends_on_its_seed_alone(grey):
    state = torch.get_rng_state()
    one = binarised_once(grey, "image", 5, 255)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(one.x["image"], binarised_once(grey, "image", 5, 255).x["image"])
    assert not torch.equal(one.x["image"], binarised_once(grey, "image", 6, 255).x["image"])
    expected = torch.rand(400, 5, generator=torch.Generator().manual_seed(5)) < LEVELS / 255
    seen = grey.mask["image"]
    assert torch.equal(one.x["image"][seen], expected[seen].float())
    assert torch.equal(one.mask["image"], seen) and torch.equal(one.x["label"], grey.x["label"])


def test_the_grey_batch_is_untouched_and_doubles_stay(grey):
    before = grey.x["image"].clone()
    Binarised(grey, "image", 255)[:]
    binarised_once(grey, "image", 0, 255)
    assert torch.equal(grey.x["image"], before)
    double = binarised_once(Batch({"image": (LEVELS / 255).double().expand(400, 5)}), "image", 5)
    single = binarised_once(Batch({"image": (LEVELS / 255).expand(400, 5)}), "image", 5)
    assert double.x["image"].dtype == torch.float64 and torch.equal(double.x["image"].float(), single.x["image"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("image", 200), "modality 'image' must hold grey values from 0 to 200.*it has 0 to 255"),
        (("sound", 255), "unknown modality 'sound'"),
        (("image", 0), "levels must be positive"),
    ],
)
def test_refuses(grey, arguments, words):
    with pytest.raises(ValueError, match=words):
        Binarised(grey, *arguments)
    with pytest.raises(ValueError, match=words):
        binarised_once(grey, arguments[0], 0, arguments[1])


def test_negative_values_are_refused():
    with pytest.raises(ValueError, match=r"it has -0\.5 to 1"):
        Binarised(Batch({"image": torch.tensor([[-0.5], [1.0]])}), "image")
