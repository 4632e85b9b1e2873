"""Pairing by class: every row of the leading part once, the others at random within the class, anew or once."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pyro_mm.batch import Batch
from pyro_mm.data import Binarised, Paired, Splits
from pyro_mm.likelihoods import Categorical, Normal
from pyro_mm.modality import Modality

A = torch.tensor([0, 1, 0, 0, 1, 0])  # four of class 0, two of class 1
B = torch.tensor([1, 1, 0, 1, 0, 1, 1])  # two of class 0, five of class 1


def part(name, labels, start=0):
    """Values say which row they are: 10 * class + row."""
    x = (10.0 * labels + torch.arange(len(labels)) + start)[:, None]
    return Batch({name: x, "label": labels})


def pairs():
    return Paired({"one": part("a", A), "two": part("b", B, 100)})


def test_rows_are_of_one_class_and_the_larger_part_leads():
    data = pairs()
    assert len(data) == 4 + 5 and data.names == ("a", "b", "label")
    rows = data[range(9)]
    assert rows.x["label"].tolist() == [0] * 4 + [1] * 5
    assert rows.x["a"][:4].flatten().tolist() == [0, 2, 3, 5]  # class 0: each of the larger part's rows once
    assert rows.x["b"][4:].flatten().tolist() == [110, 111, 113, 115, 116]
    assert set(rows.x["b"][:4].flatten().tolist()) <= {102, 104}
    assert set(rows.x["a"][4:].flatten().tolist()) <= {11, 14}


def test_partners_are_drawn_anew_with_equal_chances():
    data = pairs()
    loader = DataLoader(data, 4, collate_fn=Batch.collate)
    drawn = torch.stack([Batch.collate(list(loader)).x["b"][:4].flatten() for _ in range(500)])
    share = (drawn == 102).double().mean(0)
    assert bool(((share - 0.5).abs() < 4 * 0.5 / 500**0.5).all())
    together = torch.corrcoef((drawn == 102).double().T)[0, 1:]
    assert bool((together.abs() < 4 / 500**0.5).all())  # rows are paired independently


def test_fixed_pairs_use_every_partner_equally_often_and_no_global_noise():
    data = Paired({"one": part("a", torch.zeros(100, dtype=torch.long)), "two": part("b", torch.zeros(7).long())})
    before = torch.get_rng_state()
    one, again, other = data.fixed(3), data.fixed(3), data.fixed(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.x["b"], again.x["b"]) and not torch.equal(one.x["b"], other.x["b"])
    counts = one.x["b"].flatten().long().bincount(minlength=7)
    assert sorted(set(counts.tolist())) == [14, 15] and sorted(one.x["a"].flatten().tolist()) == list(range(100))


def test_masks_pixels_and_single_rows_travel_along():
    missing = torch.tensor([True, True, False, False, True, True])
    grey = Batch({"a": torch.full((6, 3), 0.5), "label": A}, {"a": missing})
    data = Paired({"one": Binarised(grey, "a"), "two": part("b", B)})
    rows = data[list(range(4))]
    assert rows.mask["a"].tolist() == [True, False, False, True]
    assert set(rows.x["a"].unique().tolist()) == {0.0, 1.0}
    assert len(data[2]) == 1
    many = torch.stack([data[[0]].x["a"] for _ in range(400)])
    assert (many.mean(0) - 0.5).abs().max() < 4 * 0.5 / 400**0.5
    assert torch.equal(data.fixed(1).x["a"], data.fixed(1).x["a"])


def test_it_is_a_training_set_that_can_be_narrowed():
    modalities = [Modality("a", (1,), Normal()), Modality("b", (1,), Normal()), Modality("label", (), Categorical(2))]
    splits = Splits("s", modalities, pairs(), pairs().fixed(0), pairs().fixed(1), "label")
    assert len(splits.train_batch()) == 9
    narrow = splits.only("b", "label")
    assert narrow.train_batch(1).names == ("b", "label") and len(narrow.train_batch()) == 9
    assert narrow.train_batch().x["b"][4:].flatten().tolist() == [110, 111, 113, 115, 116]
    assert splits.only("b").train_batch().names == ("b",)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "nothing to pair"),
        ({"one": Batch({"a": torch.zeros(2)})}, r"'one' lacks the class labels 'label'; it has \['a'\]"),
        ({"one": part("a", A), "two": part("a", B)}, "modality 'a' is in 'one' and in 'two'"),
        ({"one": part("a", A), "two": part("b", B + 1)}, "'one' has no rows of class 2"),
        (
            {
                "one": Batch(
                    {"a": torch.zeros(2), "label": torch.zeros(2).long()}, {"label": torch.tensor([True, False])}
                )
            },
            "'one' has rows without a class label",
        ),
    ],
)
def test_what_cannot_be_paired_is_named(parts, message):
    with pytest.raises(ValueError, match=message):
        Paired(parts)


def two(labels_a, labels_b):
    return {
        "a": Batch({"a": torch.arange(len(labels_a)).float(), "label": labels_a}),
        "b": Batch({"b": torch.arange(len(labels_b)).float(), "label": labels_b}),
    }


@pytest.mark.parametrize("kind", [int, torch.tensor, np.int64, lambda i: torch.tensor([i])])
def test_one_row_is_paired_within_its_class_however_it_is_asked_for(kind):
    labels = torch.arange(30) % 3
    pairs = Paired(two(labels, torch.arange(9) % 3))
    for i in range(30):
        row = pairs[kind(i)]
        assert len(row) == 1 and int(row.x["b"]) % 3 == int(row.x["a"]) % 3 == int(row.x["label"])


def test_fixed_pairs_come_in_random_order():
    """The first rows are not all of one class, and every leading row is there once."""
    labels = torch.arange(300).div(100, rounding_mode="floor")
    fixed = Paired(two(labels, torch.arange(9) % 3)).fixed(0)
    assert torch.equal(fixed.x["a"].sort().values, torch.arange(300).float())
    assert torch.equal(labels[fixed.x["a"].long()], fixed.x["label"])
    assert torch.bincount(fixed.x["label"][:60], minlength=3).min() > 8


@pytest.mark.parametrize("bad", [torch.eye(3)[torch.arange(9) % 3].long(), torch.arange(9) / 3])
def test_labels_that_are_no_classes_are_refused(bad):
    with pytest.raises(ValueError, match="'label' of 'b' holds no classes"):
        Paired(two(torch.arange(9) % 3, torch.arange(9) % 3) | {"b": Batch({"b": torch.zeros(9), "label": bad})})
