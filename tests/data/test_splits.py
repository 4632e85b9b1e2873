"""The container of a data set, and the division of rows."""

import pytest
import torch
from torch.utils.data import Dataset

from pyro_mm.batch import Batch
from pyro_mm.data import Binarised, Splits, mcar, stratified
from pyro_mm.likelihoods import Bernoulli, Categorical, Normal
from pyro_mm.modality import Modality

MODALITIES = (Modality("image", (2,), Bernoulli()), Modality("label", (), Categorical(3)))


def rows(n, start=0):
    label = torch.arange(start, start + n) % 3
    return Batch({"image": torch.stack([label == 0, label == 1], -1).float(), "label": label})


def splits(**changes):
    parts = {"train": rows(6), "validation": rows(3, 1), "test": rows(4, 2)}
    return Splits(**{"name": "tiny", "modalities": MODALITIES, "label": "label", "note": "made up", **parts, **changes})


class Drawn(Dataset):
    """A dataset of Normal noise with no `__getitems__`."""

    def __len__(self):
        return 5

    def __getitem__(self, row):
        return Batch({"image": torch.randn(1, 2), "label": torch.tensor([row % 3])})


NOISE = {"modalities": (Modality("image", (2,), Normal()), MODALITIES[1])}


def test_stratified_counts_are_exact_and_parts_disjoint():
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] * 33).roll(17)
    parts = stratified(labels, (0.7, 0.1, 0.2), seed=3)
    counts = [torch.bincount(labels[p], minlength=3).tolist() for p in parts]
    assert counts == [[7, 14, 23], [1, 2, 3], [2, 4, 7]]  # 33 is cut at 23.1 and 26.4
    assert sorted(torch.cat(parts).tolist()) == list(range(63))
    assert all(torch.equal(p, p.sort().values) for p in parts)


def test_stratified_is_the_same_everywhere():
    """Ordered by sha256("seed/row"): rows 0..7 of seed 0 come as 4 0 6 7 | 2 1 5 3 from `sha256sum`."""
    parts = stratified(torch.zeros(8).long(), (0.5, 0.5), seed=0)
    assert [p.tolist() for p in parts] == [[0, 4, 6, 7], [1, 2, 3, 5]]
    assert not torch.equal(parts[0], stratified(torch.zeros(8).long(), (0.5, 0.5), seed=1)[0])


@pytest.mark.parametrize("shares", [(0.5, 0.4), (1.0, 0.0), (1.2, -0.2)])
def test_stratified_refuses_shares(shares):
    with pytest.raises(ValueError, match="shares must be positive and sum to 1"):
        stratified(torch.zeros(8), shares)


def test_train_batch_of_a_batch_is_itself():
    s = splits()
    assert s.train_batch() is s.train and s.names == ("image", "label")


@pytest.mark.parametrize("fetch", ["__getitems__", "__getitem__"])
def test_train_batch_of_a_drawn_set_is_fixed_by_its_seed(fetch):
    if fetch == "__getitems__":
        s = splits(train=Binarised(Batch({"image": torch.full((5, 2), 0.5), "label": torch.arange(5) % 3}), "image"))
    else:
        s = splits(train=Drawn(), **NOISE)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one = s.train_batch(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.x["image"], s.train_batch(seed=1).x["image"])
    assert not torch.equal(one.x["image"], s.train_batch(seed=2).x["image"])
    assert one.x["label"].tolist() == [0, 1, 2, 0, 1]


def test_some_training_rows_are_drawn_by_their_seed():
    s = splits(train=Binarised(Batch({"image": torch.full((5, 2), 0.5), "label": torch.arange(5) % 3}), "image"))
    state = torch.get_rng_state()
    few = s.some(3, seed=1)
    assert torch.equal(torch.get_rng_state(), state) and len(few) == 3 and len(s.some(50)) == 5
    assert all(torch.equal(few.x[m], s.some(3, seed=1).x[m]) for m in few.x)
    whole = splits()
    assert sorted(whole.some(10**6).x["label"].tolist()) == sorted(whole.train.x["label"].tolist())
    assert not torch.equal(whole.some(10**6).x["label"], whole.train.x["label"])


def test_making_splits_leaves_the_generator_alone():
    state = torch.get_rng_state()
    splits(train=Drawn(), **NOISE)
    assert torch.equal(torch.get_rng_state(), state)


def test_fingerprint_is_equal_exactly_when_data_are():
    base = splits().fingerprint()
    assert base == splits(name="other", note="").fingerprint() and len(base) == 12
    one_pixel = rows(6).x["image"].clone()
    one_pixel[5, 1] = 1 - one_pixel[5, 1]
    label = rows(6).x["label"]
    hidden = mcar(rows(6), {"label": 1.0})
    changed = [
        {"train": Batch({"image": one_pixel, "label": label})},
        {"train": rows(6).without("label")},
        {"train": hidden[:5]},
        {"train": Batch(rows(6).x, {"label": torch.arange(6) < 3})},  # the same labels 0 1 2,
        {"train": Batch(rows(6).x, {"label": torch.arange(6) >= 3})},  # of other rows
        {"validation": rows(4, 2), "test": rows(3, 1)},
        {"train": Batch({"image": rows(6).x["image"].double(), "label": label})},
    ]
    prints = [splits(**c).fingerprint() for c in changed]
    assert len({base, *prints}) == 8


def test_fingerprint_ignores_what_lies_under_a_mask():
    mask = {"label": torch.arange(6) > 2}
    one = Batch(rows(6).x, mask)
    other = Batch._view({**one.x, "label": torch.where(mask["label"], one.x["label"], 1)}, one.mask)
    assert not torch.equal(one.x["label"], other.x["label"])
    assert splits(train=one).fingerprint() == splits(train=other).fingerprint()


def test_describe():
    s = splits(test=Batch(rows(4).x, {"image": torch.tensor([True, False, True, True])}))
    assert s.describe().splitlines() == [
        "tiny: made up",
        "modality  shape  likelihood              train (6)  validation (3)  test (4)",
        "image     (2,)   Bernoulli()             100.0%     100.0%          75.0%",
        "label     ()     Categorical(classes=3)  100.0%     100.0%          100.0%",
        f"label: label; fingerprint {s.fingerprint()}",
    ]


def test_only_drops_modalities_for_good():
    for train in (rows(6), Binarised(rows(6), "image")):
        s = splits(train=train).only("label")
        assert s.names == ("label",) and s.label == "label"
        assert s.train_batch().names == s.validation.names == s.test.names == ("label",)
        assert torch.equal(s.train_batch().x["label"], rows(6).x["label"])
        image = splits(train=train).only("image")
        assert image.label is None and torch.equal(image.train_batch().x["image"], rows(6).x["image"])
    assert isinstance(splits(train=Binarised(rows(6), "image")).only("image").train, Binarised)
    with pytest.raises(ValueError, match=r"data set 'tiny' has no \['sound'\]"):
        splits().only("sound")
    with pytest.raises(TypeError, match="cannot drop modalities of a Drawn"):
        splits(train=Drawn(), **NOISE).only("image")


LABELS = torch.arange(6) % 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": "class"}, "label 'class' is none of its modalities"),
        ({"test": rows(4)[:0]}, "tiny/test has no rows"),
        ({"validation": Batch({"image": torch.zeros(3, 2)})}, r"tiny/validation holds \['image'\]"),
        ({"test": Batch({"image": torch.zeros(6, 3), "label": LABELS})}, r"'image' has event shape \(3,\)"),
        ({"train": Batch({"image": torch.zeros(6, 2), "label": LABELS + 1})}, "tiny/train: modality 'label'.*has 3"),
        ({"train": Batch({"image": torch.full((6, 2), 0.5), "label": LABELS})}, "tiny/train: modality 'image'"),
        ({"test": rows(4).subsets([("image",)])}, r"tiny/test: the mask of 'image' has shape \(1, 4\)"),
        (
            {"train": Binarised(Batch({"image": torch.zeros(6, 2), "label": LABELS + LABELS // 2}), "image")},
            "tiny/train: modality 'label'.*has 3",
        ),
    ],
)
def test_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        splits(**changes)


def test_hidden_values_need_not_be_in_the_support():
    bad = Batch({"image": torch.zeros(6, 2), "label": LABELS + 1}, {"label": LABELS < 2})
    assert splits(train=bad).train_batch().x["label"].max() == 2
