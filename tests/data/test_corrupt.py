"""Spoilt values: of the stated kind and amount, within the support, in the rows that have them, by the seed alone."""

from math import erf

import pytest
import torch

from pyro_mm.batch import Batch
from pyro_mm.data import corrupted, few_labels, gaussian_noise, occluded, salt_and_pepper, swapped

N = 2000


def near(found, p, n):
    assert abs(found - p) < 4 * (p * (1 - p) / n) ** 0.5 + 1e-12, (found, p)


@pytest.fixture(scope="module")
def batch():
    g = torch.Generator().manual_seed(1)
    x = {
        "bits": (torch.rand(N, 1, 8, 8, generator=g) < 0.3).float(),
        "grey": torch.rand(N, 1, 8, 6, generator=g),
        "real": torch.randn(N, 5, generator=g),
        "label": torch.arange(N) % 4,
    }
    return Batch(x, {"real": torch.arange(N) % 5 > 0})


def test_gaussian_noise_has_its_size_and_keeps_the_support(batch):
    real = batch.mask["real"]
    noise = (gaussian_noise(batch, "real", 0.5).x["real"] - batch.x["real"])[real]
    assert abs(noise.std() - 0.5) < 0.02 and abs(noise.mean()) < 0.02
    flips = (gaussian_noise(batch, "bits", 0.4).x["bits"] != batch.x["bits"]).double().mean().item()
    near(flips, 0.5 * (1 - erf(1 / (2 * 0.4) / 2**0.5)), N * 64)
    grey = gaussian_noise(batch, "grey", 0.3).x["grey"]
    assert grey.min() == 0 and grey.max() == 1
    inside = (batch.x["grey"] - 0.5).abs() < 0.1  # four standard deviations from both ends
    grey = gaussian_noise(batch, "grey", 0.1).x["grey"]
    assert abs((grey - batch.x["grey"])[inside].std() - 0.1) < 0.005
    assert torch.equal(gaussian_noise(batch, "grey", 0.0).x["grey"], batch.x["grey"])


def test_salt_and_pepper_are_the_extremes_in_equal_shares(batch):
    spoilt = salt_and_pepper(batch, "grey", 0.2).x["grey"]
    changed = spoilt != batch.x["grey"]
    near(changed.double().mean().item(), 0.2, changed.numel())
    low, high = batch.x["grey"].min(), batch.x["grey"].max()
    assert set(spoilt[changed].tolist()) == {low.item(), high.item()}
    near((spoilt[changed] == high).double().mean().item(), 0.5, int(changed.sum()))
    bits = salt_and_pepper(batch, "bits", 1.0).x["bits"]
    near(bits.mean().item(), 0.5, bits.numel())


@pytest.mark.parametrize(("name", "share", "size"), [("grey", 0.25, 4 * 3), ("grey", 1.0, 48), ("real", 0.4, 2)])
def test_occlusion_is_one_block_anywhere(batch, name, share, size):
    spoilt, low = occluded(batch, name, share), batch.x[name][batch.mask[name]].min()
    dark = (spoilt.x[name] == low)[batch.mask[name]].flatten(1)
    assert set(dark.sum(1).tolist()) <= {size, size + 1}  # one more where the least value lay elsewhere
    if share < 1:
        near(dark[:, 0].double().mean().item(), {"grey": 0.05, "real": 0.25}[name], len(dark))  # the corner
        assert (dark.double().mean(0) < 0.65).all()


def test_a_swapped_modality_is_another_rows(batch):
    spoilt = swapped(batch, "grey", 0.3, seed=2)
    moved = (spoilt.x["grey"] != batch.x["grey"]).flatten(1).any(1)
    near(moved.double().mean().item(), 0.3, N)
    known = {row.numpy().tobytes() for row in batch.x["grey"]}
    assert all(row.numpy().tobytes() in known for row in spoilt.x["grey"][moved][:50])
    assert torch.equal(spoilt.x["bits"], batch.x["bits"])
    labels = swapped(batch, "label", 1.0, label="label").x["label"]
    assert (labels != batch.x["label"]).all()
    held = swapped(batch, "real", 1.0)
    assert torch.equal(held.mask["real"], batch.mask["real"])


@pytest.mark.parametrize("kind", ["gaussian", "salt_and_pepper", "occlusion", "swap"])
def test_the_seed_decides(batch, kind):
    one, two, other = (corrupted(batch, "grey", kind, 0.3, seed) for seed in (1, 1, 2))
    assert torch.equal(one.x["grey"], two.x["grey"]) and not torch.equal(one.x["grey"], other.x["grey"])
    before = torch.get_rng_state()
    corrupted(batch, "grey", kind, 0.3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: corrupted(b, "grey", "blur", 1), "unknown corruption 'blur'; there are gaussian"),
        (lambda b: corrupted(b, "gray", "gaussian", 1), r"unknown modality 'gray'; this batch has"),
        (lambda b: gaussian_noise(b, "grey", -1), "'grey': the noise's standard deviation must not be negative"),
        (lambda b: salt_and_pepper(b, "grey", 1.5), r"'grey': the share must be between 0 and 1, got 1.5"),
        (lambda b: gaussian_noise(b, "label", 1), "'label' holds labels or tokens"),
        (lambda b: swapped(b[:1], "grey"), "there is no other row"),
        (lambda b: swapped(b[::4], "grey", label="label"), "there is no other class"),
    ],
)
def test_mistakes_are_named(batch, call, message):
    with pytest.raises(ValueError, match=message):
        call(batch)


def test_few_labels_are_spread_over_classes_and_nested(batch):
    for count in (4, 6, 40, N):
        kept = few_labels(batch, count, seed=3).mask["label"]
        assert kept.sum() == count
        counts = batch.x["label"][kept].bincount(minlength=4)
        assert counts.max() - counts.min() <= 1
    small, large = (few_labels(batch, n, seed=3).mask["label"] for n in (10, 50))
    assert not (small & ~large).any()
    assert not torch.equal(small, few_labels(batch, 10, seed=4).mask["label"])
    assert torch.equal(few_labels(batch, 10).mask["grey"], batch.mask["grey"])
    for count in (3, N + 1):
        with pytest.raises(ValueError, match=f"between 4 and {N} rows can keep 'label', not {count}"):
            few_labels(batch, count)
    with pytest.raises(ValueError, match="'grey' holds no class labels"):
        few_labels(batch, 10, label="grey")


def test_counts_stay_counts_within_their_range():
    counts = torch.randint(0, 17, (50, 4, 4)).float()
    noisy = gaussian_noise(Batch({"x": counts}), "x", 3.0).x["x"]
    assert torch.equal(noisy, noisy.round()) and noisy.min() >= 0 and noisy.max() <= 16
    assert not torch.equal(noisy, counts)


def test_rows_without_a_label_are_not_swapped():
    labels = torch.arange(40) % 4
    batch = Batch({"x": torch.arange(40).float(), "label": labels}, {"label": torch.arange(40) % 2 > 0})
    x = swapped(batch, "x", 1.0, label="label").x["x"].long()
    unlabelled = ~batch.mask["label"]
    assert torch.equal(x[unlabelled], torch.arange(40)[unlabelled])
    assert bool((labels[x] != labels)[~unlabelled].all())
