"""Missingness: exact expected shares, dependence on what it should depend on, and nothing else."""

import pytest
import torch

from pyro_mm.batch import Batch
from pyro_mm.data import Binarised, few_labels, mar, mcar, mnar

N = 40_000
PER_CLASS = [0.0, 0.1, 0.25, 0.5, 1.0]


@pytest.fixture(scope="module")
def batch() -> Batch:
    g = torch.Generator().manual_seed(3)
    label = torch.randint(0, 5, (N,), generator=g)
    return Batch({"image": torch.rand(N, 2, generator=g), "sound": torch.randn(N, 3, generator=g), "label": label})


def lost(batch, m):
    return (~batch.mask[m]).double().mean().item()


def standard_errors(found, expected, n):
    return abs(found - expected) / max((expected * (1 - expected) / n) ** 0.5, 1e-12)


def test_mcar_shares_and_independence(batch):
    shares = {"image": 0.3, "sound": 0.6, "label": 0.5}
    hidden = mcar(batch, shares, seed=1, keep_one=False)
    for m, p in shares.items():
        assert standard_errors(lost(hidden, m), p, N) < 4
    gone = {m: ~hidden.mask[m] for m in shares}
    for a, b in (("image", "sound"), ("image", "label"), ("sound", "label")):
        assert standard_errors((gone[a] & gone[b]).double().mean().item(), shares[a] * shares[b], N) < 4
    assert standard_errors((~hidden.present()).double().mean().item(), 0.3 * 0.6 * 0.5, N) < 4
    for c in range(5):  # nor does it depend on values
        rows = batch.x["label"] == c
        assert standard_errors(gone["sound"][rows].double().mean().item(), 0.6, int(rows.sum())) < 4


def test_mcar_keeps_one_and_says_what_that_costs(batch):
    shares = {"image": 0.3, "sound": 0.6, "label": 0.5}
    hidden = mcar(batch, shares, seed=1)
    assert bool(hidden.present().all())
    for m, p in shares.items():
        assert standard_errors(lost(hidden, m), p - 0.3 * 0.6 * 0.5 / 3, N) < 4
    free = mcar(batch, shares, seed=1, keep_one=False)
    for m in shares:  # only rows that had lost everything differ
        assert torch.equal(free.mask[m][free.present()], hidden.mask[m][free.present()])


def test_the_kept_modality_is_uniform_among_those_the_row_had(batch):
    hidden = mcar(batch, 1.0, seed=2)
    count = sum(hidden.mask[m].long() for m in hidden.names)
    assert torch.equal(count, torch.ones(N).long())
    for m in hidden.names:
        assert standard_errors(1 - lost(hidden, m), 1 / 3, N) < 4
    two = mcar(batch.without("sound"), 1.0, seed=2)
    assert lost(two, "sound") == 1 and standard_errors(lost(two, "image"), 0.5, N) < 4


def test_one_share_for_all_and_extremes(batch):
    hidden = mcar(batch, 0.5, seed=4, keep_one=False)
    assert all(standard_errors(lost(hidden, m), 0.5, N) < 4 for m in batch.names)
    assert lost(mcar(batch, {"image": 1.0}), "image") == 1 and lost(mcar(batch, {"image": 0.0}), "image") == 0
    assert lost(mcar(batch, {}), "image") == 0


def test_mar_follows_the_label(batch):
    hidden = mar(batch, "image", "label", PER_CLASS, seed=1)
    for c, p in enumerate(PER_CLASS):
        rows = batch.x["label"] == c
        assert standard_errors((~hidden.mask["image"][rows]).double().mean().item(), p, int(rows.sum())) < 4
    assert lost(hidden, "sound") == lost(hidden, "label") == 0


def test_mar_follows_a_function_of_values(batch):
    def chance(sound):
        return torch.sigmoid(3 * sound[:, 0])

    hidden = mar(batch, "image", "sound", chance, seed=1)
    p = chance(batch.x["sound"]).double()
    gone = (~hidden.mask["image"]).double()
    for rows in (p < 0.1, (p > 0.4) & (p < 0.6), p > 0.9):
        spread = (p[rows] * (1 - p[rows])).sum().sqrt()
        assert abs((gone[rows] - p[rows]).sum()) < 4 * spread


def test_mnar_follows_the_hidden_value_itself(batch):
    hidden = mnar(batch, "label", PER_CLASS, seed=1)
    for c, p in enumerate(PER_CLASS):
        rows = batch.x["label"] == c
        assert standard_errors((~hidden.mask["label"][rows]).double().mean().item(), p, int(rows.sum())) < 4
    assert 4 not in hidden.x["label"]  # lost with certainty, so it cannot be read from under the mask


def test_mnar_by_the_class_behind_an_image(batch):
    images = Batch({m: batch.x[m] for m in ("image", "sound")})
    hidden = mnar(images, "image", PER_CLASS, cause=batch.x["label"], seed=1)
    for c, p in enumerate(PER_CLASS):
        rows = batch.x["label"] == c
        assert standard_errors((~hidden.mask["image"][rows]).double().mean().item(), p, int(rows.sum())) < 4


def test_mnar_keeps_the_last_modality_unless_told(batch):
    alone = batch.only("label")
    assert torch.equal(mnar(alone, "label", [1.0] * 5).mask["label"], alone.mask["label"])
    assert lost(mnar(alone, "label", [1.0] * 5, keep_one=False), "label") == 1


def test_rows_missing_before_stay_missing_and_need_no_class(batch):
    mask = torch.arange(N) % 2 == 0
    half = Batch(batch.x, {"image": mask})
    cause = torch.where(mask, batch.x["label"], -1)
    hidden = mnar(half, "image", [0.5] * 5, cause=cause, seed=1)
    assert not hidden.mask["image"][~mask].any()
    assert standard_errors(hidden.mask["image"][mask].double().mean().item(), 0.5, N // 2) < 4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda b: mcar(b, {"image": 0.5}, seed=0), lambda b: mnar(b, "image", lambda x: torch.full((len(x),), 0.5))),
        (lambda b: mcar(b, {"image": 0.5}, seed=0), lambda b: mcar(b, {"image": 0.5}, seed=1)),
    ],
)
def test_two_steps_are_independent(batch, first, second):
    """Had they shared their random numbers, the second step would hide nothing that the first had left."""
    assert standard_errors(lost(second(first(batch)), "image"), 0.75, N) < 4


def test_draws_depend_on_name_row_and_seed_alone(batch):
    turned = Batch({m: batch.x[m] for m in ("label", "sound", "image")})
    torch.manual_seed(99)
    state = torch.get_rng_state()
    one, two = mcar(batch, 0.4, seed=5), mcar(turned, 0.4, seed=5)
    assert all(torch.equal(one.mask[m], two.mask[m]) for m in batch.names)
    assert not torch.equal(one.mask["image"], mcar(batch, 0.4, seed=6).mask["image"])
    assert torch.equal(torch.get_rng_state(), state)


def test_the_callers_batch_is_untouched(batch):
    before = {m: (batch.x[m].clone(), batch.mask[m].clone()) for m in batch.names}
    mcar(batch, 0.5)
    mar(batch, "image", "label", PER_CLASS)
    mnar(batch, "label", PER_CLASS)
    for m, (x, mask) in before.items():
        assert torch.equal(batch.x[m], x) and torch.equal(batch.mask[m], mask)


def test_hidden_values_are_gone(batch):
    hidden = mcar(batch, {"sound": 0.5}, seed=1)
    gone = ~hidden.mask["sound"]
    assert not (hidden.x["sound"][gone] == batch.x["sound"][gone]).any()
    assert torch.equal(hidden.x["sound"][~gone], batch.x["sound"][~gone])


def test_redrawn_pixels_keep_one_mask():
    grey = Batch({"image": torch.full((300, 5), 128, dtype=torch.uint8), "label": torch.arange(300) % 5})
    data = mcar(Binarised(grey, "image", 255), {"image": 0.5}, seed=1)
    assert isinstance(data, Binarised)
    one, two = data[:], data[:]
    assert torch.equal(one.mask["image"], two.mask["image"]) and not torch.equal(one.x["image"], two.x["image"])
    assert torch.equal(one.mask["image"], mcar(grey, {"image": 0.5}, seed=1).mask["image"])
    for hidden in (mar(data, "image", "label", [1.0, 0, 0, 0, 0]), mnar(data, "label", [1.0, 0, 0, 0, 0])):
        assert isinstance(hidden, Binarised)
    gone = ~mar(Binarised(grey, "image", 255), "image", "label", [1.0, 0, 0, 0, 0])[:].mask["image"]
    assert torch.equal(gone, grey.x["label"] == 0)


@pytest.mark.parametrize(
    ("hide", "words"),
    [
        (lambda b: mcar(b, 1.5), "shares of 'image' must be probabilities"),
        (lambda b: mcar(b, float("nan")), "must be probabilities"),
        (lambda b: mcar(b, {"smell": 0.5}), r"unknown modality \['smell'\]"),
        (lambda b: mcar(b.subsets([("image",)]), 0.5), r"masks must be \(N,\)"),
        (lambda b: mar(b, "image", "image", PER_CLASS), "mnar"),
        (lambda b: mar(b, "image", "sound", PER_CLASS), r"'sound' has shape \(40000, 3\)"),
        (lambda b: mar(b.without("label"), "image", "label", PER_CLASS), "40000 rows lack it"),
        (lambda b: mar(b, "image", "label", [0.5, 0.5]), "'label' has classes 0 to 4, but there are 2"),
        (lambda b: mar(b, "image", "smell", PER_CLASS), "unknown modality"),
        (lambda b: mnar(b, "image", lambda x: x), r"shares of 'image' have shape \(40000, 2\), expected \(40000,\)"),
        (lambda b: mnar(b, "image", lambda x: x[:, 0] + 1), "must be probabilities"),
        (lambda b: mnar(b, "image", PER_CLASS, cause=torch.zeros(3).long()), "3 rows, the batch 40000"),
    ],
)
def test_refuses(batch, hide, words):
    with pytest.raises(ValueError, match=words):
        hide(batch)


def test_no_more_labels_are_kept_than_asked_for():
    """Rows that have nothing but a label lose it like others."""
    labels = torch.arange(100) % 5
    batch = Batch({"x": torch.randn(100, 2), "label": labels}, {"x": torch.arange(100) % 3 > 0})
    kept = few_labels(batch, 20)
    assert torch.bincount(labels[kept.mask["label"]]).tolist() == [4] * 5


def test_classes_far_apart_are_balanced():
    labels = torch.tensor([0, 500]).repeat(10)
    kept = few_labels(Batch({"x": torch.zeros(20, 1), "label": labels}), 4)
    assert sorted(labels[kept.mask["label"]].tolist()) == [0, 0, 500, 500]


def test_sets_that_draw_their_rows_are_named():
    from pyro_mm.data import Paired

    rows = Batch({"x": torch.zeros(4, 1), "label": torch.arange(4) % 2})
    with pytest.raises(TypeError, match=r"not in a Paired.*train_batch"):
        mcar(Paired({"x": rows}), 0.5)
