"""Judges learn real digits, come back as they were kept, and are trained anew when what is kept is not theirs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from pyro_mm import judges as module
from pyro_mm.batch import Batch
from pyro_mm.data import Splits, digits
from pyro_mm.judges import FACTS, WEIGHTS, Judges, train_judges
from pyro_mm.likelihoods import Categorical, Normal, OneHotCategorical
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    return folder, train_judges(digits(), folder=folder)


def small(seed=0, n=60, hide=False, label=None, net=None):
    """Classes 0 to 2 at corners of a square, easily told apart."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(3 * n) % 3
    x = 4 * nn.functional.one_hot(y, 4).float() + 0.1 * torch.randn(3 * n, 4, generator=g)
    mask = {"x": torch.arange(3 * n) % 7 > 0, "label": torch.arange(3 * n) % 5 > 0} if hide else None
    whole = Batch({"x": x, "label": y if label is None else nn.functional.one_hot(y, 3).float()}, mask)
    modalities = (
        Modality("x", (4,), Normal(1.0), net or MLP((16,), norm=nn.BatchNorm1d)),
        Modality("label", () if label is None else (3,), label or Categorical(3)),
    )
    return Splits("small", modalities, whole[:n], whole[n : 2 * n], whole[2 * n :], "label")


def state(judges):
    return judges.state_dict()


def same(a, b):
    return state(a).keys() == state(b).keys() and all(torch.equal(v, state(b)[k]) for k, v in state(a).items())


class Trained(Exception):
    pass


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args):
        raise Trained

    monkeypatch.setattr(module, "_fit", refuse)


def test_real_digits_are_read_and_recoded(kept):
    """Above 90 % on test rows; and the middle of the autoencoder holds what the mean image does not."""
    judges, test = kept[1], digits().test
    assert judges.names == ("image",)
    share = judges.accuracy["image"]
    p = judges.classify("image", test.x["image"])
    assert share.value == (p.argmax(-1) == test.x["label"]).double().mean().item() > 0.9
    assert share.n == len(test) == 359
    torch.testing.assert_close(p.sum(-1), torch.ones(359))
    h = judges.features("image", test.x["image"])
    error = (judges.decoders["image"](h).mean - test.x["image"]).square().mean()
    assert h.shape == (359, 128)
    assert error < 0.25 * (test.x["image"] - test.x["image"].mean(0)).square().mean()


def test_a_rows_verdict_never_depends_on_its_neighbours(tmp_path):
    """Batch statistics are those of training, also after a call of `train()`."""
    splits = small()
    judges = train_judges(splits, 2, folder=tmp_path)
    x = splits.test.x["x"]
    for verdict in (judges.classify, judges.features):
        together = verdict("x", x)
        judges.train()
        alone = torch.cat([verdict("x", row) for row in x.split(1)])
        torch.testing.assert_close(alone, together)
    many = x.repeat(30, 1)  # more than one pass
    torch.testing.assert_close(judges.classify("x", many), judges.classify("x", x).repeat(30, 1))


def test_kept_judges_come_back_without_training(kept, no_training):
    folder, judges = kept
    again = train_judges(digits(), folder=folder)
    assert same(again, judges)
    assert again.accuracy == judges.accuracy
    assert not again.training and not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("damage", ["weights", "cut", "json", "missing", "older", "accuracy"])
def test_damaged_files_are_made_again(tmp_path, damage):
    splits = small()
    judges = train_judges(splits, 2, folder=tmp_path)
    weights, facts = tmp_path / WEIGHTS, tmp_path / FACTS
    raw, good = bytearray(weights.read_bytes()), json.loads(facts.read_text())
    if damage == "weights":
        raw[len(raw) // 2] ^= 1
        weights.write_bytes(raw)
    elif damage == "cut":
        weights.write_bytes(raw[:-100])
    elif damage == "json":
        facts.write_text(facts.read_text()[:-20])
    elif damage == "missing":
        weights.unlink()
    else:
        facts.write_text(json.dumps({**good, **({"format": 0} if damage == "older" else {"accuracy": {"x": 1}})}))
    assert same(train_judges(splits, 2, folder=tmp_path), judges)
    assert json.loads(facts.read_text()) == good
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_fit", None)  # whole again: nothing is left to train
        assert same(train_judges(splits, 2, folder=tmp_path), judges)


def test_other_data_settings_and_networks_are_other_judges(tmp_path, no_training):
    """Equal shapes do not make equal networks: an activation changes what weights mean."""
    splits = small()
    for other in (
        lambda: train_judges(small(seed=1), 2, folder=tmp_path),
        lambda: train_judges(splits, 3, folder=tmp_path),
        lambda: train_judges(splits, 2, seed=1, folder=tmp_path),
        lambda: train_judges(small(net=MLP((16,), nn.Tanh, nn.BatchNorm1d)), 2, folder=tmp_path),
    ):
        _keep(splits, tmp_path)
        train_judges(splits, 2, folder=tmp_path)
        with pytest.raises(Trained):
            other()


def test_a_folder_of_yours_holds_judges_trained_as_you_like(tmp_path, no_training):
    splits = small()
    _keep(splits, tmp_path)
    assert same(train_judges(splits, folder=tmp_path), train_judges(splits, 2, folder=tmp_path))
    with pytest.raises(Trained):
        train_judges(small(seed=1), folder=tmp_path)  # other data


def _keep(splits, folder):
    """Untrained judges, kept as if they had been trained for two epochs."""
    torch.manual_seed(0)
    judges = Judges(splits.modalities, "label", 3)
    facts = {"format": module.FORMAT, "data": splits.fingerprint(), "training": repr(module.Training(2, 0))}
    module._save(judges, folder, {**facts, "networks": module._digest(judges)})


def test_a_seed_repeats_and_the_callers_random_state_stays(tmp_path):
    splits = small()
    before = torch.random.get_rng_state()
    a, b, c = (train_judges(splits, 1, seed=s, folder=tmp_path / str(i)) for i, s in enumerate((3, 3, 4)))
    assert same(a, b) and not same(a, c)
    assert torch.equal(before, torch.random.get_rng_state())


def test_without_a_folder_they_are_kept_in_the_cache_under_the_fingerprint(tmp_path, monkeypatch, no_training):
    splits = small()
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    _keep(splits, tmp_path / "judges" / splits.fingerprint())
    train_judges(splits, 2)
    with pytest.raises(Trained):
        train_judges(small(seed=1), 2)


def test_rows_that_lack_the_modality_or_the_label_do_not_count(tmp_path):
    """Neither in training nor in the accuracy: what is stored under a mask may be anything."""
    splits = small(n=300, hide=True)
    seen = splits.test.mask["x"] & splits.test.mask["label"]
    judges = train_judges(splits, 80, folder=tmp_path / "a")
    assert judges.accuracy["x"].n == int(seen.sum()) < len(splits.test)
    assert judges.accuracy["x"].value == 1.0
    noise = Batch({"x": splits.train.x["x"].clone(), "label": splits.train.x["label"]}, splits.train.mask)
    noise.x["x"][~(noise.mask["x"] & noise.mask["label"])] = 1e6
    assert same(train_judges(replace(splits, train=noise), 80, folder=tmp_path / "b"), judges)


def test_one_hot_labels_are_the_classes_they_are(tmp_path):
    plain, hot = (train_judges(small(label=l), 4, folder=tmp_path / str(l)) for l in (None, OneHotCategorical()))
    assert (plain.classes, hot.classes) == (3, 3)
    assert plain.accuracy == hot.accuracy
    assert same(plain, hot)


def test_the_best_epoch_is_put_back_and_patience_ends_training():
    """Losses by epoch on one weight that descends to 1 and goes on: the held row is at 1."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    seen = []

    def loss(x, y):
        if torch.is_grad_enabled():
            return -net(x).mean()  # pushes the weight up for ever
        seen.append(net.weight.item())
        return (net.weight - 0.25).square().sum()

    how = module.Training(epochs=30, batch_size=2, lr=0.1, patience=3)
    one = (torch.ones(2, 1), torch.zeros(2).long())
    module._fit(net, loss, one, one, how, 1.0)
    best = min(seen, key=lambda w: (w - 0.25) ** 2)
    assert net.weight.item() == pytest.approx(best)
    assert len(seen) == seen.index(best) + 1 + 3 < 30


def test_the_default_number_of_epochs_is_what_the_work_allows():
    """A linear map of 100 x 10 on N rows costs 2 x 1000 N forwards and, for weights alone, as much backwards."""
    net = nn.Linear(100, 10, bias=False)
    rows = (torch.zeros(500, 100), torch.zeros(500).long())
    loss = lambda x, y: net(x).sum()
    how = module.Training()
    assert module._affordable(loss, rows, how, 7.5 * 4000 * 500) == 7
    assert module._affordable(loss, rows, how, 1.0) == module.LEAST
    assert module._affordable(loss, rows, how, 1e15) == module.MOST


def test_errors_say_what_is_missing(tmp_path):
    splits = small()
    with pytest.raises(ValueError, match="'small' has no label: judges are classifiers"):
        train_judges(replace(splits, label=None), folder=tmp_path)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        train_judges(splits, 0, folder=tmp_path)
    judges = Judges(splits.modalities, "label", 3)
    for verdict in (judges.classify, judges.features):
        with pytest.raises(ValueError, match=r"no judge of 'label', only of \['x'\]"):
            verdict("label", torch.zeros(2))
    bare = Batch(splits.train.x, {**splits.train.mask, "x": torch.zeros(60).bool()})
    with pytest.raises(ValueError, match="'small': 'x' has 0 labelled training rows"):
        train_judges(replace(splits, train=bare), 1, folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train_judges(splits, 1, folder=tmp_path / "file" / "below")
