"""MHD: miniatures of its official files, and what is said when a file is not one."""

import numpy as np
import pytest
import torch

from pyro_mm.data.mhd import SOUND_RANGE, TRAJECTORY_RANGE, mhd

RANGES = [{"min": low, "max": high} for low, high in (TRAJECTORY_RANGE, SOUND_RANGE)]


def parts(n, seed):
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 10
    image, trajectory = torch.rand(n, 1, 28, 28, generator=g), torch.rand(n, 200, generator=g)
    return [label, image, trajectory, torch.rand(n, 4, 32, 32, generator=g), *RANGES]


@pytest.fixture
def files(tmp_path):
    """A folder with 40 and 20 rows in the official form."""
    data = {"mhd_train.pt": parts(40, 0), "mhd_test.pt": parts(20, 1)}
    for name, value in data.items():
        torch.save(tuple(value), tmp_path / name)
    return tmp_path, data


def test_rows_are_the_files_rows(files):
    root, data = files
    s = mhd(root, seed=3)
    assert (s.name, s.label, s.names) == ("mhd", "label", ("image", "trajectory", "sound", "label"))
    assert (len(s.train), len(s.validation), len(s.test)) == (36, 4, 20)
    label, image, trajectory, chunks, *_ = data["mhd_test.pt"]
    assert torch.equal(s.test.x["image"], image) and torch.equal(s.test.x["trajectory"], trajectory)
    assert torch.equal(s.test.x["label"], label)
    for frame, band in ((0, 0), (5, 31), (31, 32), (17, 127)):  # bands come in four chunks of 32
        assert torch.equal(s.test.x["sound"][:, 0, frame, band], chunks[:, band // 32, band % 32, frame])


def test_validation_is_a_tenth_of_train_by_seed(files):
    root, data = files
    rows = {}
    for seed in (0, 1):
        s = mhd(root, seed)
        both = torch.cat([s.train.x["trajectory"], s.validation.x["trajectory"]])
        every = data["mhd_train.pt"][2]
        place = [int((every == row).all(1).nonzero()) for row in both]
        assert sorted(place) == list(range(40))
        rows[seed] = place[36:]
    assert rows[0] == sorted(np.random.RandomState(0).permutation(40)[:4].tolist()) != rows[1]
    assert mhd(root, 1).fingerprint() == mhd(root, 1).fingerprint() != mhd(root, 0).fingerprint()


def test_lists_and_other_chunks_give_the_same_rows(files):
    root, data = files
    expected = mhd(root).fingerprint()
    for name, (label, image, trajectory, chunks, *ranges) in data.items():
        listed = [[c.clone() for c in row] for row in chunks]
        torch.save((label.tolist(), list(image.clone()), trajectory, listed, *ranges), root / name)
    assert mhd(root).fingerprint() == expected
    for name, (label, image, trajectory, chunks, *ranges) in data.items():
        torch.save((label, image.double(), trajectory, chunks.reshape(-1, 1, 128, 32), *ranges), root / name)
    assert mhd(root).fingerprint() == expected
    (root / "mhd").mkdir()
    for name in data:
        (root / name).rename(root / "mhd" / name)
    assert mhd(root).fingerprint() == expected


def test_missing_files_say_where_to_get_them(files):
    root, _ = files
    with pytest.raises(FileNotFoundError) as error:
        mhd()
    for text in ("1Tj1i-hXA0INQpU0jmuTMO4IwfDoGD2oV", "1qiEjFNCFn1ws383pKmY3zJtm4JDymOU6", "root=", "mhd_like"):
        assert text in str(error.value)
    (root / "mhd_test.pt").unlink()
    with pytest.raises(FileNotFoundError, match=f"no mhd_test.pt in {root} or {root}/mhd"):
        mhd(root)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["mhd_train.pt", "mhd_test.pt"])
def test_truncated_files_are_named(files, name, keep):
    root, _ = files
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match=f"{name} is truncated or corrupt: .*Fetch it again"):
        mhd(root)


def nan(x):
    x = x.clone()
    x.view(-1)[5] = float("nan")
    return x


WRONG = {
    "five parts": (lambda p: p[:5], "holds a tuple of 5, expected a tuple of 6"),
    "no tuple": (lambda p: p[1], "holds a Tensor of 20, expected a tuple of 6"),
    "images": (
        lambda p: [*p[:1], p[1][:, 0], *p[2:]],
        r"part 1 \(images\) holds shape \(20, 28, 28\), expected \(20, 1",
    ),
    "rows": (
        lambda p: [*p[:2], p[2][:19], *p[3:]],
        r"part 2 \(trajectories\) holds shape \(19, 200\), expected \(20, ",
    ),
    "96 bands": (lambda p: [*p[:3], p[3][:, :3], *p[4:]], r"part 3 \(sounds\) holds shape \(20, 3, 32, 32\), .* = 128"),
    "ragged": (
        lambda p: [*p[:3], [p[3][0], p[3][1, :3]], *p[4:]],
        r"part 3 \(sounds\) holds a list that makes no tensor",
    ),
    "labels": (lambda p: [p[0] % 9, *p[1:]], r"part 0 \(labels\) holds labels .*, expected every one of 0 to 9"),
    "scale": (
        lambda p: [p[0], p[1] * 255, *p[2:]],
        r"part 1 \(images\) holds values from .* to 25\d.*expected \[0, 1\]",
    ),
    "NaN": (lambda p: [*p[:2], nan(p[2]), *p[3:]], r"part 2 \(trajectories\) holds values from nan"),
    "range": (
        lambda p: [*p[:4], {"min": 0.0, "max": 1.0}, p[5]],
        r"part 4 \(trajectory range\) holds \(0, 1\), expected \(-2.7723, 2.4121\)",
    ),
    "no range": (lambda p: [*p[:5], 3.0], r"part 5 \(sound range\) holds a float, expected a dictionary"),
    "empty": (lambda p: [x[:0] if torch.is_tensor(x) else x for x in p], r"part 0 \(labels\) holds shape \(0,\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_contents_are_refused_by_file_and_part(files, case):
    root, data = files
    change, message = WRONG[case]
    wrong = change(data["mhd_test.pt"])
    torch.save(tuple(wrong) if isinstance(wrong, list) else wrong, root / "mhd_test.pt")
    with pytest.raises(ValueError, match=rf"mhd_test\.pt.*{message}"):
        mhd(root)


class Intruder:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("guest", [Intruder(), np.arange(20)], ids=["code", "array"])
def test_nothing_is_unpickled(files, guest):
    root, data = files
    torch.save((guest, *data["mhd_test.pt"][1:]), root / "mhd_test.pt")
    with pytest.raises(ValueError, match=r"mhd_test.pt holds more than tensors and numbers.*refused \(.*Unsupported"):
        mhd(root)
