"""CelebA's layout in miniature: official parts, chosen attributes, pictures made small once, damage named."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pyro_mm.batch import Batch
from pyro_mm.data import celeba
from pyro_mm.data.celeba import VISIBLE
from pyro_mm.training import fit
from pyro_mm.variants import mvae

NAMES = [*VISIBLE, "Young", "Attractive"]
N = 30


def colour(i):
    return (8 * i % 256, 255 - 8 * i % 256, 128)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = tmp_path / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    files = [f"{i + 1:06d}.jpg" for i in range(N)]
    values = np.random.RandomState(0).choice([-1, 1], (N, len(NAMES)))
    table = [f"{f}  {' '.join(map(str, row))}" for f, row in zip(files, values, strict=True)]
    (base / "list_attr_celeba.txt").write_text("\n".join([str(N), " ".join(NAMES), *table]))
    (base / "list_eval_partition.txt").write_text(
        "\n".join(f"{f} {i % 5 // 3 + i % 5 // 4}" for i, f in enumerate(files))
    )
    for i, f in enumerate(files):
        picture = np.zeros((218, 178, 3), np.uint8)  # a face in the middle, a frame that is cropped away
        picture[35:183, 15:163] = colour(i)
        Image.fromarray(picture).save(base / "img_align_celeba" / f, quality=95)
    return tmp_path, values


def test_rows_are_the_official_parts(root):
    base, values = root
    s = celeba(base, size=16)
    part = np.array([i % 5 // 3 + i % 5 // 4 for i in range(N)])
    train = s.train[range(len(s.train))]
    for batch, number in ((train, 0), (s.validation, 1), (s.test, 2)):
        rows = np.flatnonzero(part == number)
        assert batch.x["attributes"].tolist() == ((values[rows][:, : len(VISIBLE)] + 1) / 2).tolist()
        wanted = torch.tensor([colour(i) for i in rows]) / 255
        torch.testing.assert_close(batch.x["image"].mean((2, 3)), wanted, atol=0.02, rtol=0)
        assert batch.x["image"].std((2, 3)).max() < 0.02  # nothing of the frame
    assert celeba(base / "celeba", size=16, held=3).test.x["image"].shape == (3, 3, 16, 16)


def test_attributes_are_chosen_by_name(root):
    base, values = root
    s = celeba(base, size=16, attributes=["Young", "Male"])
    found = s.test.x["attributes"]
    rows = [i for i in range(N) if i % 5 == 4]
    assert found.tolist() == [[(values[i, 18] + 1) / 2, (values[i, VISIBLE.index("Male")] + 1) / 2] for i in rows]
    with pytest.raises(ValueError, match=r"unknown attributes \['Beard'\]"):
        celeba(base, size=16, attributes=["Beard"])


def test_pictures_are_read_once_and_again_after_damage(root, tmp_path):
    base, _ = root
    first = celeba(base, size=16).fingerprint()
    (kept,) = (tmp_path / "cache" / "pyro_mm").glob("*.npy")
    for file in (base / "celeba" / "img_align_celeba").iterdir():
        file.rename(file.with_suffix(".moved"))
    assert celeba(base, size=16).fingerprint() == first
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"000001.jpg is missing, truncated or no picture"):
        celeba(base, size=16)
    for file in (base / "celeba" / "img_align_celeba").iterdir():
        file.rename(file.with_suffix(".jpg"))
    assert celeba(base, size=16).fingerprint() == first


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("list_attr_celeba.txt", lambda t: t[: len(t) // 2], r"list_attr_celeba.txt"),
        ("list_attr_celeba.txt", lambda t: t.replace("30\n", "31\n", 1), "promises 31 rows and has 30"),
        (
            "list_attr_celeba.txt",
            lambda t: t.replace(" 1", " 2", 1),
            "line 3: expected a file and 20 values of 1 or -1",
        ),
        ("list_eval_partition.txt", lambda t: t[: len(t) // 2].rsplit("\n", 1)[0], "is truncated: it lacks"),
        ("list_eval_partition.txt", lambda t: t.replace(" 0", " 7", 1), "line 1: expected a file and 0, 1 or 2"),
    ],
)
def test_damaged_lists_are_named(root, name, change, message):
    path = root[0] / "celeba" / name
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        celeba(root[0], size=16)


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"CelebA: where is it.*img_align_celeba.*1.4 GB"):
        celeba()
    with pytest.raises(FileNotFoundError, match=r"neither .*nowhere/celeba nor .*nowhere holds"):
        celeba(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="multiple of 16"):
        celeba(root[0], size=50)


def test_a_variant_trains_on_it(root):
    s = celeba(root[0], size=16)
    recipe = mvae(s.modalities, 4)
    history = fit(recipe.objective, s.train, epochs=3, batch_size=6, progress=False, seed=0)
    assert history["loss"][-1] < history["loss"][0]
    batches = list(DataLoader(s.train, 7, collate_fn=Batch.collate))
    assert sum(map(len, batches)) == len(s.train)


def test_rows_go_to_other_processes_without_their_pictures(root):
    base, _ = root
    faces = celeba(base, size=16).train
    again = pickle.loads(pickle.dumps(faces))
    assert torch.equal(again[range(3)].x["image"], faces[range(3)].x["image"])
    assert len(pickle.dumps(faces)) < len(faces.pictures) * 3 * 16 * 16 // 2


def test_modalities_can_be_left_out(root):
    base, _ = root
    s = celeba(base, size=16)
    alone = s.only("attributes")
    assert alone.train[range(2)].names == alone.test.names == ("attributes",)
    assert torch.equal(alone.train[range(2)].x["attributes"], s.train[range(2)].x["attributes"])
