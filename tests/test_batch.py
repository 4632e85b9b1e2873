"""Batches: what the constructor accepts and overwrites, rows, views, and use as a data set."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pyro_mm import likelihoods
from pyro_mm.batch import Batch
from pyro_mm.modality import Modality


def bools(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def small() -> Batch:
    x = {"a": torch.arange(10.0).reshape(5, 2), "b": torch.arange(5)}
    return Batch(x, {"a": bools(1, 0, 1, 1, 0), "b": bools(0, 1, 1, 1, 0)})


@pytest.mark.parametrize(
    ("x", "mask", "words"),
    [
        ({}, None, ["at least one modality"]),
        ({"a": torch.ones(3)}, {"q": bools(1, 1, 1)}, ["'q'", "'a'"]),
        ({"a": torch.ones(3), "b": torch.ones(4)}, None, ["'a': 3", "'b': 4"]),
        ({"a": torch.ones(3)}, {"a": torch.ones(3)}, ["'a'", "bool", "torch.float32"]),
        ({"a": torch.ones(3)}, {"a": bools(1, 1)}, ["'a'", "(3,)", "(2,)"]),
        ({"a": torch.ones(3)}, {"a": torch.ones(1, 2, 3, dtype=torch.bool)}, ["'a'", "(1, 2, 3)"]),
        ({"a": torch.tensor([0.0, torch.nan, 1.0, torch.inf])}, None, ["'a'", "NaN or infinite", "[1, 3]"]),
    ],
)
def test_constructor_refuses_and_names_the_modality(x, mask, words):
    with pytest.raises(ValueError) as error:
        Batch(x, mask)
    assert [w for w in words if w not in str(error.value)] == []


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_masked_values_are_overwritten_by_a_present_row_and_the_callers_tensor_is_not(poison):
    mine = torch.tensor([[poison, 1.0], [2.0, 3.0], [poison, poison], [4.0, 5.0]])
    before = mine.clone()
    batch = Batch({"a": mine}, {"a": bools(0, 1, 0, 1)})
    assert torch.equal(batch.x["a"], torch.tensor([[2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [4.0, 5.0]]))
    assert torch.equal(mine.nan_to_num(7.0), before.nan_to_num(7.0))


def test_values_nobody_sees_become_zeros_and_stay_where_one_of_several_views_sees_them():
    assert torch.equal(Batch({"a": torch.full((2, 3), torch.nan)}, {"a": bools(0, 0)}).x["a"], torch.zeros(2, 3))
    x = torch.tensor([1.0, 2.0, torch.nan])
    batch = Batch({"a": x}, {"a": torch.stack([bools(1, 0, 0), bools(0, 1, 0)])})
    assert torch.equal(batch.x["a"], torch.tensor([1.0, 2.0, 1.0]))
    assert len(batch) == 3


def test_integers_keep_their_type_under_a_mask():
    batch = Batch({"y": torch.tensor([7, 3, 9])}, {"y": bools(0, 1, 1)})
    assert batch.x["y"].tolist() == [3, 3, 9]
    assert batch.x["y"].dtype is torch.int64


@pytest.mark.parametrize(
    "rows",
    [
        slice(1, 4),
        slice(None, None, 2),
        [3, 0, 0],
        [],
        torch.tensor([4, 1]),
        bools(1, 0, 0, 1, 1),
        np.array([2, 2]),
    ],
    ids=str,
)
def test_rows_are_chosen_as_torch_does(rows):
    batch = small().only("a")
    index = rows if isinstance(rows, slice) else torch.as_tensor(rows)
    index = index.long() if isinstance(rows, list) and not rows else index
    chosen = batch[rows]
    for m in batch.x:
        assert torch.equal(chosen.x[m], batch.x[m][index])
        assert torch.equal(chosen.mask[m], batch.mask[m][index])
    assert chosen.hidden == {"b"}


@pytest.mark.parametrize("row", [2, -3, np.int64(2), torch.tensor(-3)])
def test_one_row_keeps_its_dimension(row):
    one = small()[row]
    assert len(one) == 1
    assert one.x["a"].tolist() == [[4.0, 5.0]]
    assert one.mask["b"].tolist() == [True]


@pytest.mark.parametrize("row", [5, -6])
def test_a_row_that_is_not_there(row):
    with pytest.raises(IndexError, match=f"row {row} of a batch of 5"):
        small()[row]


def test_views_keep_their_subset_dimension_when_rows_are_chosen():
    views = small().subsets([("a",), ("a", "b")])
    chosen = views[[2, 0]]
    assert chosen.mask["b"].tolist() == [[False, False], [True, False]]
    assert len(chosen) == 2


def test_loading_in_minibatches_gives_every_row_once():
    batch = Batch(small().x | {"b": torch.arange(5)}, {"a": small().mask["a"]})
    loaded = list(DataLoader(batch, batch_size=2, shuffle=True, collate_fn=Batch.collate))
    assert [len(b) for b in loaded] == [2, 2, 1]
    x = torch.cat([b.x["b"] for b in loaded])
    order = x.argsort()
    assert torch.equal(x[order], batch.x["b"])
    assert torch.equal(torch.cat([b.x["a"] for b in loaded])[order], batch.x["a"])
    assert torch.equal(torch.cat([b.mask["a"] for b in loaded])[order], batch.mask["a"])


def test_collating_single_rows_gives_the_batch_back():
    batch = small().only("b")
    again = Batch.collate(list(batch))
    for m in batch.x:
        assert torch.equal(again.x[m], batch.x[m])
        assert torch.equal(again.mask[m], batch.mask[m])
    assert again.hidden == {"a"}
    assert Batch.collate(batch) is batch


def test_hiding_changes_masks_alone():
    batch = small()
    kept = batch.only("b")
    assert kept.mask["a"].tolist() == [False] * 5
    assert torch.equal(kept.mask["b"], batch.mask["b"])
    assert kept.x["a"] is batch.x["a"]
    assert kept.hidden == {"a"}
    assert batch.hidden == frozenset()
    assert batch.mask["a"].tolist() == [True, False, True, True, False]
    without = batch.without("a")
    assert torch.equal(without.mask["b"], kept.mask["b"])
    assert without.hidden == kept.hidden
    assert kept.only("b").hidden == {"a"}


@pytest.mark.parametrize("call", [lambda b: b.only("q"), lambda b: b.without("q"), lambda b: b.subsets([["a", "q"]])])
def test_unknown_modalities_are_named(call):
    with pytest.raises(ValueError, match=r"unknown modality \['q'\]; this batch has \['a', 'b'\]"):
        call(small())


def test_stacked_views_are_the_single_views():
    batch = small()
    groups = [("a", "b"), ("b",), ()]
    views = batch.subsets(groups)
    for s, group in enumerate(groups):
        alone = batch.only(*group)
        for m in batch.mask:
            assert torch.equal(views.mask[m][s], alone.mask[m])
    per_row = {"a": torch.rand(3, 5) < 0.5, "b": torch.rand(3, 5) < 0.5}
    chosen = batch.visible(per_row)
    for m in batch.mask:
        assert torch.equal(chosen.mask[m], batch.mask[m] & per_row[m])


def test_present_rows():
    batch = small()
    assert batch.present().tolist() == [True, True, True, True, False]
    assert batch.present(["b"]).tolist() == [False, True, True, True, False]
    assert batch.present(["q"]).tolist() == [False] * 5
    assert batch.present(["a", "q"]).tolist() == [True, False, True, True, False]
    mixed = Batch(batch.x, {"a": batch.mask["a"], "b": torch.stack([bools(0, 0, 0, 0, 1), bools(0, 1, 0, 0, 0)])})
    assert mixed.present().tolist() == [[True, False, True, True, True], [True, True, True, True, False]]


def test_a_dtype_moves_floats_only():
    batch = Batch({"a": torch.ones(2, 3), "y": torch.tensor([1, 2]), "f": bools(1, 0)}).to(torch.float64)
    assert {m: v.dtype for m, v in batch.x.items()} == {"a": torch.float64, "y": torch.int64, "f": torch.bool}
    assert batch.mask["a"].dtype is torch.bool
    assert small().only("a").to("cpu").hidden == {"b"}


def test_rows_with_nothing_present_hold_values_inside_the_support():
    modalities = [
        Modality("y", (), likelihoods.Categorical(4)),
        Modality("h", (3,), likelihoods.OneHotCategorical()),
        Modality("t", (4,), likelihoods.Tokens(5, pad=2)),
    ]
    batch = Batch.missing(modalities, 3)
    assert not batch.present().any()
    assert batch.x["y"].tolist() == [0, 0, 0]
    assert batch.x["h"].tolist() == [[1.0, 0.0, 0.0]] * 3
    assert batch.x["t"].tolist() == [[2, 2, 2, 2]] * 3
    batch.x["h"][0] = 7.0  # rows are separate memory
    assert batch.x["h"][1].tolist() == [1.0, 0.0, 0.0]


def test_pickle_and_repr():
    again = pickle.loads(pickle.dumps(small().only("a")))
    assert torch.equal(again.x["a"], small().x["a"])
    assert again.hidden == {"b"}
    assert again.names == ("a", "b")
    assert repr(small()) == "Batch(5 rows; a: (2,), 60% present; b: (), 60% present)"
    assert repr(Batch({"a": torch.ones(2, 3, 4)})) == "Batch(2 rows; a: (3, 4))"
