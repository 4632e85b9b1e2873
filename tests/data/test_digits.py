"""Scikit-learn's digits: complete, disjoint, and what they say they are."""

import pytest
import torch
from sklearn.datasets import load_digits

from pyro_mm.data import caption_label, caption_text, digit_captions, digit_halves, digits
from pyro_mm.data.digits import VOCABULARY

PER_CLASS = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])  # scikit-learn's documentation
PARTS = ("train", "validation", "test")
RAW = load_digits()


def parts(s):
    return [getattr(s, p) for p in PARTS]


def keys(batch, names=("image",)):
    return [tuple(torch.cat([batch.x[m][i].flatten() for m in names]).tolist()) for i in range(len(batch))]


def test_rows_are_all_digits_once_with_their_labels():
    s = digits()
    truth = {tuple(x.flatten().tolist()): int(y) for x, y in zip(RAW.images, RAW.target, strict=True)}
    assert len(truth) == 1797
    found = [k for b in parts(s) for k in keys(b)]
    assert len(found) == 1797 and set(found) == set(truth)  # so the parts are disjoint and nothing is lost
    for b in parts(s):
        assert [truth[k] for k in keys(b)] == b.x["label"].tolist()


def test_splits_are_stratified_70_10_20():
    counts = [torch.bincount(b.x["label"], minlength=10) for b in parts(digits())]
    first, second = (PER_CLASS * 0.7).round(), (PER_CLASS * 0.8).round()
    assert torch.equal(counts[0], first.long())
    assert torch.equal(counts[1], (second - first).long()) and torch.equal(sum(counts), PER_CLASS)
    assert [len(b) for b in parts(digits())] == [1258, 180, 359]


def test_the_seed_decides_the_split():
    assert digits().fingerprint() == digits(0).fingerprint() != digits(1).fingerprint()
    assert set(keys(digits(1).test)) != set(keys(digits().test))


def test_halves_make_whole_digits_in_the_same_split():
    for half, whole in zip(parts(digit_halves(2)), parts(digits(2)), strict=True):
        assert keys(half, ("top", "bottom")) == keys(whole)
        assert torch.equal(half.x["label"], whole.x["label"])


def test_captions_say_which_digit_and_how_bold():
    s, plain = digit_captions(), digits()
    label, image = plain.train.x["label"], plain.train.x["image"]
    usual = [image[label == c].sum((1, 2)).median() for c in range(10)]
    for b, d in zip(parts(s), parts(plain), strict=True):
        assert torch.equal(b.x["image"], d.x["image"])
        assert torch.equal(caption_label(b.x["caption"]), d.x["label"])
        weights = [text.split()[0] for text in caption_text(b.x["caption"])]
        ink = b.x["image"].sum((1, 2))
        expected = ["bold" if i > usual[c] else "thin" for i, c in zip(ink, d.x["label"].tolist(), strict=True)]
        assert weights == expected
    share = [t.startswith("bold") for t in caption_text(s.train.x["caption"])]
    assert 0.45 < sum(share) / len(share) <= 0.5  # above the median of its class; ties are thin


def test_captions_are_padded_tokens_of_the_vocabulary():
    assert len(VOCABULARY) == 28 == digit_captions().modalities[1].likelihood.vocabulary
    text = caption_text(digit_captions().test.x["caption"])
    tokens = digit_captions().test.x["caption"]
    for t, row in zip(text, tokens.tolist(), strict=True):
        assert row == [VOCABULARY.index(c) for c in t] + [0] * (10 - len(t))


def test_reading_captions_that_a_model_made():
    def spelt(text):
        return [VOCABULARY.index(c) for c in text.ljust(10, "\0")]

    tokens = torch.tensor([spelt("thin two"), spelt("two"), spelt("bold twp"), spelt(""), spelt("six\0nine")])
    assert caption_text(tokens) == ["thin two", "two", "bold twp", "", "six"]
    assert caption_label(tokens).tolist() == [2, 2, -1, -1, 6]
    with pytest.raises(ValueError, match=r"tokens from 0 to 27; got shape \(1, 2\) from 3 to 28"):
        caption_text(torch.tensor([[3, 28]]))
    with pytest.raises(ValueError, match=r"got shape \(10,\)"):
        caption_text(torch.zeros(10).long())


@pytest.mark.parametrize("make", [digits, digit_halves, digit_captions])
def test_values_are_in_their_supports_at_both_ends(make):
    s = make()
    for m in s.modalities:
        for b in parts(s):
            m.likelihood.check(b.x[m.name], m.name)
    first = s.train.x[s.names[0]]
    assert first.min() == 0 and first.max() == 16
    assert s.label == ("label" if "label" in s.names else None)
