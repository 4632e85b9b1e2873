"""Rows on disk are the rows of a Batch: the same values, the same training, far less memory."""

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pyro_mm.batch import Batch
from pyro_mm.data import BlockSampler, OnDisk, write_rows
from pyro_mm.data.array_files import MAPPED
from pyro_mm.evaluation import log_marginal, sharded
from pyro_mm.files import BadFile
from pyro_mm.likelihoods import Binomial, Normal
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP
from pyro_mm.objectives import elbo
from pyro_mm.training import fit
from tests.helpers.oracle import LG, ExactGuide
from tests.helpers.training import MODALITIES, At, Losses, data, pair, raising, same, values

SHAPES = [Modality("a", (2, 3), Normal(), MLP((4,))), Modality("n", (), Binomial(255), MLP((4,)))]


def equal(one, other):
    for m in other.names:
        seen = other.mask[m]
        assert torch.equal(one.mask[m], seen) and torch.equal(one.x[m][seen], other.x[m][seen])
        assert one.x[m].dtype == other.x[m].dtype and bool(torch.isfinite(one.x[m].double()).all())


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(10, 2, 3)).astype("<f4")
    a[4] = np.nan
    return {"a": a, "n": rng.integers(0, 255, 10).astype(np.uint8), "n.mask": np.arange(10) % 3 > 0}


def saved(folder, arrays):
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def zarr_group(folder, arrays, monkeypatch):
    """A stand-in with the three names of zarr's that are used; zarr itself is an extra."""

    class Orthogonal:
        def __init__(self, array):
            self.shape, self.dtype, self.oindex = array.shape, array.dtype, array

    class Group(dict):
        array_keys = dict.keys

    folder.mkdir()
    (folder / "zarr.json").touch()
    group = Group({name: Orthogonal(array) for name, array in arrays.items()})
    monkeypatch.setitem(sys.modules, "zarr", SimpleNamespace(open_group=lambda path, mode: group))
    return folder


@pytest.mark.parametrize("kind", ["npy", "npz", "zarr"])
def test_rows_are_those_of_the_arrays(kind, arrays, tmp_path, monkeypatch):
    path = tmp_path / "rows"
    if kind == "npz":
        np.savez(tmp_path / "rows.npz", **arrays)
        path = tmp_path / "rows.npz"
    else:
        path = saved(path, arrays) if kind == "npy" else zarr_group(path, arrays, monkeypatch)
    rows = OnDisk(path, SHAPES)
    want = Batch.of({"a": arrays["a"], "n": np.where(arrays["n.mask"], arrays["n"], np.nan)}, SHAPES)
    for which in ([0], list(range(10)), [7, 2, 2, 9], [4, 3]):
        equal(rows.__getitems__(which), want[which])
    equal(pickle.loads(pickle.dumps(rows))[3], want[3])
    plain = OnDisk(path)
    assert plain.names == ["a", "n"] and torch.equal(plain.__getitems__([5, 1]).x["a"], want.x["a"][[5, 1]])
    only = rows.only("n")
    assert only.__getitems__([1, 2]).names == ("n",) and len(only) == 10
    with pytest.raises(IndexError, match="rows 3 to 10 of a data set of 10"):
        rows.__getitems__([10, 3])


def test_what_the_writer_writes_comes_back(tmp_path):
    batch = data(30)
    folder = write_rows(tmp_path / "rows", (batch[i : i + 7] for i in range(0, 30, 7)))
    assert sorted(p.name for p in folder.iterdir()) == ["count.mask.npy", "count.npy", "image.npy", "label.npy"]
    equal(OnDisk(folder, MODALITIES).__getitems__(list(range(30))), batch)
    assert np.array_equal(np.load(folder / "image.npy"), batch.x["image"].numpy())
    with pytest.raises(FileExistsError, match="never written over"):
        write_rows(folder, batch)


def test_writing_that_fails_leaves_nothing(tmp_path):
    def then_an_error():
        yield data(5)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_rows(tmp_path / "rows", then_an_error())
    other = data(3)
    for wrong, message in [
        (Batch({**other.x, "image": other.x["image"].double()}), "modality 'image' has event shape .* float64"),
        (Batch({**other.x, "image": torch.zeros(3, 4)}), r"modality 'image' has event shape \(4,\)"),
        (
            Batch({"image": other.x["image"]}),
            r"a batch holds \['image'\], those before it \['image', 'count', 'label'\]",
        ),
        (other.subsets([["image"], ["label"]]), "the mask of 'image' has shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_rows(tmp_path / "rows", [data(5), wrong])
    with pytest.raises(ValueError, match="modality 'a/b' cannot be the name of a file"):
        write_rows(tmp_path / "rows", Batch({"a/b": torch.zeros(2)}))
    with pytest.raises(ValueError, match="no rows"):
        write_rows(tmp_path / "rows", [])
    assert list(tmp_path.iterdir()) == []


def test_files_that_do_not_fit_are_refused(arrays, tmp_path, monkeypatch):
    def refused(change, error, message, modalities=SHAPES):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        saved(folder, arrays | change)
        with pytest.raises(error, match=message):
            OnDisk(folder, modalities).__getitems__(range(10))

    refused({"a": np.zeros((10, 4))}, ValueError, r"modality 'a' has event shape \(4,\), expected \(2, 3\)")
    refused({"a": arrays["a"][:9]}, ValueError, "different numbers of rows: {'a': 9, 'n': 10}")
    refused({"n.mask": np.ones(10)}, ValueError, r"the mask of 'n' must be bool with shape \(10,\); it is float64")
    refused({"n": np.full(10, 256.0)}, ValueError, r"rows \[0, 1, 2\]\.\.\. : modality 'n'")
    refused({"a": np.where(np.arange(3) == 0, np.nan, arrays["a"])}, ValueError, "modality 'a' is partly NaN")
    refused({"a": np.asfortranarray(arrays["a"])}, BadFile, "a.npy is in Fortran's order")
    refused({"a": np.array([None] * 10)}, BadFile, "a.npy holds object")
    short = saved(tmp_path / "short", arrays)
    (short / "a.npy").write_bytes((short / "a.npy").read_bytes()[:-1])
    with pytest.raises(BadFile, match=r"a\.npy is truncated"):
        OnDisk(short)
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    with pytest.raises(BadFile, match=r"small.npz, a.npy is compressed .* numpy.savez"):
        OnDisk(tmp_path / "small.npz")
    with pytest.raises(FileNotFoundError, match="neither a folder of"):
        OnDisk(tmp_path / "nothing")
    monkeypatch.setitem(sys.modules, "zarr", None)
    (tmp_path / "group.zarr").mkdir()
    with pytest.raises(ModuleNotFoundError, match=r"needs zarr: pip install zarr"):
        OnDisk(tmp_path / "group.zarr")


@pytest.mark.parametrize(("n", "block", "buffer"), [(100, 7, 3), (21, 7, 1), (5, 10, 2), (64, 1, 64)])
def test_blocks_are_shuffled_and_every_row_comes_once(n, block, buffer, tmp_path):
    rows = OnDisk(write_rows(tmp_path / "rows", Batch({"i": torch.arange(n)})), block=block, buffer=buffer)
    generator = torch.Generator().manual_seed(0)
    first, second = rows.permutation(generator), rows.permutation(generator)
    assert sorted(first.tolist()) == list(range(n)) == sorted(second.tolist()) and not torch.equal(first, second)
    # Rows that are read near each other lie in few blocks.
    for part in first.split(block):
        assert len({int(i) // block for i in part}) <= 2 * buffer
    sampler = BlockSampler(rows, seed=0)
    loader = DataLoader(rows, 4, sampler=sampler, collate_fn=Batch.collate)
    assert torch.cat([b.x["i"] for b in loader]).tolist() == first.tolist() and len(sampler) == n


def test_training_is_that_on_memory_and_resumes(tmp_path):
    """With the same order the same losses; by blocks in a loader with a worker, interrupted and resumed to the bit."""
    rows = OnDisk(write_rows(tmp_path / "rows", data()), MODALITIES)

    def run(data, **more):
        objective, losses = elbo(*pair()), Losses()
        options = {"batch_size": 8, "progress": False, "lr": 1e-2, **more}
        options["callbacks"] = [losses, *options.get("callbacks", [])]
        fit(objective, data, 2, **options)
        return losses.by_step, values(objective)

    memory, disk = run(data()), run(rows)
    assert memory[0] == disk[0] and same(memory[1], disk[1])

    def loader(workers=1):
        blocks = OnDisk(tmp_path / "rows", MODALITIES, block=4, buffer=2)
        return DataLoader(blocks, 8, sampler=BlockSampler(blocks), num_workers=workers, collate_fn=Batch.collate)

    straight = run(loader(0), folder=tmp_path / "straight")
    first, _ = run(loader(), folder=tmp_path / "parts", callbacks=[At(4, raising(KeyboardInterrupt()))])
    rest, last = run(loader(), folder=tmp_path / "parts", resume=True)
    assert first | rest == straight[0] and same(last, straight[1]) and len(first) == 4


def test_evaluation_reads_block_by_block(tmp_path):
    """Likelihoods of rows on disk are those of the same rows in memory, and exact under the exact posterior."""
    lg = LG()
    model, guide, batch = lg.model(), ExactGuide(lg), lg.data(11, missing=True)
    rows = OnDisk(write_rows(tmp_path / "rows", batch), dtype=torch.float64)

    def estimate(block, seed):
        assert len(block) <= 4
        return log_marginal(model, guide, block, 20, defensive=0.0, seed=seed)

    found = sharded(estimate, rows, rows=4)
    torch.testing.assert_close(found.estimate, lg.log_marginal(batch), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.estimate, sharded(estimate, batch, rows=4).estimate)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_stays_far_below_the_files_size(tmp_path):
    """A file of 262 MB, read whole in order and in part at random, keeps to a bit more than what a map may hold."""
    folder = tmp_path / "rows"
    folder.mkdir()
    event, n = 1 << 16, 1000
    array = np.lib.format.open_memmap(folder / "a.npy", "w+", np.float32, (n, event))  # empty pages: nothing is written
    array[n - 1] = 3.0
    del array

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    rows = OnDisk(folder)
    rows.__getitems__([0, 1])
    before, most = resident(), 0
    for start in range(0, n, 8):
        batch = rows.__getitems__(list(range(start, start + 8)))
        most = max(most, resident() - before)
    assert bool((batch.x["a"][-1] == 3).all()) and (folder / "a.npy").stat().st_size > 260e6
    for part in torch.randperm(n)[:200].split(8):
        rows.__getitems__(part.tolist())
        most = max(most, resident() - before)
    assert most < 2.5 * MAPPED, most  # 84 MB
