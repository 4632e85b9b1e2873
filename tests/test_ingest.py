"""`Batch.of`: arrays, lists, frames, None and NaN become checked tensors; the caller's data stay as they were."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_mm import likelihoods
from pyro_mm.batch import Batch
from pyro_mm.modality import Modality

NAN = float("nan")
IMAGE = Modality("image", (1, 2, 2), likelihoods.Binomial(16))
LABEL = Modality("label", (), likelihoods.Categorical(3))
SOUND = Modality("sound", (2,), likelihoods.Normal())
WORDS = Modality("words", (3,), likelihoods.Tokens(5))


def test_arrays_lists_tensors_and_frames_read_the_same():
    values = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    forms = [
        values,
        tuple(map(tuple, values)),
        np.array(values),
        np.array(values, dtype=np.float32),
        np.array(values)[::-1][::-1],
        np.array(values, dtype=object),
        [np.array(v) for v in values],
        [torch.tensor(v) for v in values],
        torch.tensor(values),
        pd.DataFrame(values, columns=["u", "v"]),
    ]
    for form in forms:
        batch = Batch.of({"sound": form}, [SOUND])
        assert batch.x["sound"].dtype is torch.float32
        assert torch.equal(batch.x["sound"], torch.tensor(values)), type(form)
        assert batch.mask["sound"].all()


@pytest.mark.parametrize(
    "column",
    [
        [2, None, 0],
        [2.0, NAN, 0.0],
        np.array([2, None, 0], dtype=object),
        pd.Series([2, None, 0]),
        pd.Series([2, None, 0], dtype="Int64"),
        torch.tensor([2.0, NAN, 0.0]),
    ],
    ids=["list", "nan", "object", "series", "nullable", "tensor"],
)
def test_a_missing_label_in_any_form(column):
    batch = Batch.of({"label": column}, [LABEL])
    assert batch.mask["label"].tolist() == [True, False, True]
    assert batch.x["label"].dtype is torch.int64
    assert batch.x["label"][[0, 2]].tolist() == [2, 0]


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 2.0], None, [5.0, 6.0]],
        [[1.0, 2.0], [None, None], [5.0, 6.0]],
        [np.array([1.0, 2.0]), None, np.array([5.0, 6.0])],
        np.array([[1.0, 2.0], [NAN, NAN], [5.0, 6.0]]),
        pd.Series([np.array([1.0, 2.0]), None, np.array([5.0, 6.0])]),
    ],
    ids=["none-row", "none-cells", "arrays", "nan", "series-of-arrays"],
)
@pytest.mark.parametrize("modalities", [[SOUND], None])
def test_a_missing_row_in_any_form(rows, modalities):
    batch = Batch.of({"sound": rows}, modalities)
    assert batch.mask["sound"].tolist() == [True, False, True]
    assert batch.x["sound"][[0, 2]].tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert torch.isfinite(batch.x["sound"]).all()


def test_the_callers_data_stay_as_they_were():
    array = np.array([[1.0, NAN], [NAN, NAN]])
    array[0, 1] = 2.0
    tensor, words = torch.tensor([1.0, NAN]), [[1, 0, 0], [2, 3, 4]]
    data = {"sound": array, "label": tensor, "words": words}
    before = array.copy(), tensor.clone()
    batch = Batch.of(data, [SOUND, LABEL, WORDS])
    assert np.array_equal(array, before[0], equal_nan=True)
    assert torch.equal(tensor.nan_to_num(9), before[1].nan_to_num(9))
    assert words == [[1, 0, 0], [2, 3, 4]]
    assert set(data) == {"sound", "label", "words"}
    assert data["sound"] is array
    assert batch.names == ("sound", "label", "words")


def test_a_read_only_array_is_copied_without_a_warning():
    array = np.ones((3, 2), dtype=np.float32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = Batch.of({"sound": array}, [SOUND])
    batch.x["sound"][0] = 5.0
    assert array.sum() == 6.0


def test_modalities_that_the_data_lack_are_missing():
    for data in ({"sound": [[1.0, 2.0]]}, {"sound": [[1.0, 2.0]], "label": None}, {"sound": [[1, 2]], "label": [None]}):
        batch = Batch.of(data, [LABEL, SOUND])
        assert batch.names == ("label", "sound")
        assert batch.mask["label"].tolist() == [False]
        assert batch.x["label"].tolist() == [0]
        assert batch.mask["sound"].tolist() == [True]


def test_a_list_of_none_is_missing_whatever_its_event_shape():
    batch = Batch.of({"sound": [None, None], "label": [1, 2]}, [SOUND, LABEL])
    assert batch.mask["sound"].tolist() == [False, False]
    assert batch.x["sound"].tolist() == [[0.0, 0.0]] * 2


@pytest.mark.parametrize("shape", [(2, 4), (2, 2, 2), (2, 1, 2, 2), (2, 1, 4)])
def test_flat_and_channelless_layouts_are_reshaped_in_order(shape):
    pixels = np.arange(8).reshape(shape)
    batch = Batch.of({"image": pixels}, [IMAGE])
    assert torch.equal(batch.x["image"], torch.arange(8.0).reshape(2, 1, 2, 2))


def test_a_column_of_labels_loses_its_second_dimension():
    assert Batch.of({"label": np.array([[1], [2]])}, [LABEL]).x["label"].tolist() == [1, 2]


def test_dtypes():
    data = {"image": np.zeros((2, 2, 2), np.uint8), "label": np.array([1, 2], np.int16), "words": [[1, 0, 0]] * 2}
    batch = Batch.of(data | {"sound": np.ones((2, 2))}, [IMAGE, LABEL, WORDS, SOUND], dtype=torch.float64)
    types = {m: v.dtype for m, v in batch.x.items()}
    assert types == {"image": torch.float64, "label": torch.int64, "words": torch.int64, "sound": torch.float64}
    plain = Batch.of({"i": np.zeros((2, 2), np.uint8), "f": [True, False], "y": [1, 2], "x": np.ones(2)})
    assert [v.dtype for v in plain.x.values()] == [torch.float32, torch.float32, torch.int64, torch.float32]


def test_no_rows_at_all():
    batch = Batch.of({"sound": np.zeros((0, 2)), "label": np.zeros(0)}, [SOUND, LABEL])
    assert len(batch) == 0


@pytest.mark.parametrize(
    ("data", "modalities", "words"),
    [
        ({"sound": np.ones((2, 3))}, [SOUND], ["'sound'", "(3,)", "(2,)"]),
        ({"image": np.ones((2, 2, 2, 1, 2))}, [IMAGE], ["'image'", "(2, 2, 1, 2)", "(1, 2, 2)"]),
        ({"label": [0, 3]}, [LABEL], ["'label'", "labels 0 to 2", "3"]),
        ({"label": [0, -1]}, [LABEL], ["'label'", "labels 0 to 2", "-1"]),
        ({"label": [0.5, NAN]}, [LABEL], ["'label'", "labels 0 to 2", "0.5"]),
        ({"label": [0, float("inf")]}, [LABEL], ["'label'", "labels 0 to 2"]),
        ({"sound": [[1.0, NAN], [1.0, 2.0], [NAN, 0.0]]}, [SOUND], ["'sound'", "partly NaN", "2 rows", "[0, 2]"]),
        ({"sound": [[1.0, NAN]]}, None, ["'sound'", "partly NaN", "1 rows"]),
        ({"sound": [[1.0, float("inf")]]}, [SOUND], ["'sound'", "finite numbers", "inf"]),
        ({"sound": [[1.0, float("inf")]]}, None, ["'sound'", "infinite"]),
        ({"image": np.full((1, 2, 2), 17)}, [IMAGE], ["'image'", "whole numbers from 0 to 16", "17"]),
        ({"words": [[1, 0, 2]]}, [WORDS], ["'words'", "only padding (0)", "2"]),
        ({"sound": [["x", "y"]]}, [SOUND], ["'sound'", "array of numbers"]),
        ({"sound": [[1.0, 2.0], [3.0]]}, [SOUND], ["'sound'", "array of numbers"]),
        ({"label": 3}, [LABEL], ["'label'", "single number"]),
        ({"label": np.float32(3)}, None, ["'label'", "single number"]),
        ({"label": [1], "sound": [[1, 2], [3, 4]]}, [LABEL, SOUND], ["'label': 1", "'sound': 2"]),
        ({"label": [1], "extra": [1]}, [LABEL], ["'extra'", "'label'"]),
        ({"label": None}, [LABEL], ["every modality is missing"]),
        ({"label": [1], "sound": None}, None, ["'sound' is None", "modalities"]),
    ],
)
def test_bad_data_are_refused_and_the_modality_is_named(data, modalities, words):
    with pytest.raises(ValueError) as error:
        Batch.of(data, modalities)
    assert [w for w in words if w not in str(error.value)] == [], str(error.value)


def test_values_of_missing_rows_are_not_checked():
    label = torch.tensor([NAN, 2.0])
    assert Batch.of({"label": label}, [LABEL]).mask["label"].tolist() == [False, True]
    counts = Modality("n", (2,), likelihoods.Poisson())
    batch = Batch.of({"n": [[NAN, NAN], [3.0, 0.0]]}, [counts])
    assert batch.x["n"].tolist()[1] == [3.0, 0.0]


def test_a_frame_is_a_mapping_of_columns():
    frame = pd.DataFrame({"height": [1.5, NAN, 2.5], "label": [0, 1, 2]})
    batch = Batch.of(frame, [Modality("height", (), likelihoods.Normal()), LABEL])
    assert batch.mask["height"].tolist() == [True, False, True]
    assert batch.x["label"].tolist() == [0, 1, 2]


def test_a_modality_that_no_row_has_holds_values_inside_its_support():
    hot = Modality("hot", (3,), likelihoods.OneHotCategorical())
    words = Modality("words", (3,), likelihoods.Tokens(5, pad=4))
    batch = Batch.of({"hot": [None, None], "words": np.full((2, 3), NAN), "label": [0, 1]}, [hot, words, LABEL])
    assert batch.x["hot"].tolist() == [[1.0, 0.0, 0.0]] * 2
    assert batch.x["words"].tolist() == [[4, 4, 4]] * 2
    assert not batch.present(["hot", "words"]).any()
