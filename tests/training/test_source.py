"""Every row once per pass, the same order from any place in it, and equal shares for several ranks."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

from pyro_mm.batch import Batch
from pyro_mm.ranks import Ranks
from pyro_mm.training.noise import aside, noise_state, set_noise
from pyro_mm.training.source import Loader, Rows, fingerprint, shared, source
from tests.helpers.training import Noisy, data

BATCH = Batch({"n": torch.arange(22.0)})


def numbers(batches):
    return [b.x["n"].tolist() for b in batches]


def flat(batches):
    return [n for b in batches for n in b]


@pytest.mark.parametrize("skip", [0, 1, 2, 3, 4])
def test_a_pass_can_be_opened_anywhere(skip):
    whole = numbers(Rows(BATCH, 8, torch.Generator().manual_seed(1)).open())
    rows = Rows(BATCH, 8, torch.Generator().manual_seed(1))
    assert numbers(rows.open(skip=skip)) == whole[skip:]
    assert [len(b) for b in whole] == [8, 8, 6] and rows.length == 3
    assert sorted(flat(whole)) == BATCH.x["n"].tolist() != flat(whole)
    loader = DataLoader(BATCH, 8, shuffle=True, generator=torch.Generator().manual_seed(1), collate_fn=Batch.collate)
    first = numbers(Loader(loader).open())
    loader.generator.manual_seed(1)
    assert numbers(Loader(loader).open(skip=skip)) == first[skip:]


def test_passes_differ_and_unshuffled_ones_do_not():
    rows = Rows(BATCH, 8, torch.Generator().manual_seed(1))
    assert numbers(rows.open()) != numbers(rows.open())
    still = Rows(BATCH, 8)
    assert flat(numbers(still.open())) == BATCH.x["n"].tolist()


@pytest.mark.parametrize(("n", "world", "size"), [(22, 2, 3), (22, 3, 3), (22, 4, 3), (9, 2, 4), (13, 3, 4), (1, 2, 5)])
def test_ranks_share_a_pass(n, world, size):
    """Minibatch i of all ranks together is minibatch i of one process; rows that fill up count for nothing."""
    one = Rows(BATCH[:n], size * world, torch.Generator().manual_seed(1))
    shares = [Rows(BATCH[:n], size, torch.Generator().manual_seed(1), (rank, world)) for rank in range(world)]
    whole, parts = numbers(one.open()), [numbers(s.open()) for s in shares]
    assert {len(p) for p in parts} == {len(whole)} == {s.length for s in shares}
    for i, rows in enumerate(whole):
        counts = [s.counts(i) for s in shares]
        assert {total for _, total in counts} == {len(rows)} == {one.counts(i)[1]}
        counted = [p[i][:own] for p, (own, _) in zip(parts, counts, strict=True)]
        assert sorted(flat(counted)) == sorted(rows)
        assert all(len(p[i]) == (own or min(n, size)) for p, (own, _) in zip(parts, counts, strict=True))


def test_evaluation_is_shared_without_repeats():
    loader = DataLoader(BATCH, 4, collate_fn=Batch.collate)
    ranks = [_Ranks(r, 3) for r in range(3)]
    for sources in ([Rows(BATCH, 4, share=(r, 3)) for r in range(3)], [Loader(loader)] * 3):
        parts = [list(shared(s, r)) for s, r in zip(sources, ranks, strict=True)]
        assert sorted(flat(numbers([part.batch for p in parts for part in p]))) == BATCH.x["n"].tolist()
        assert sum(part.rows for p in parts for part in p) == 22


def test_a_part_says_which_rows_of_which_minibatch_it_has():
    """Of minibatch `number` in one process: every world-th row of a shared one, or all rows of a whole one."""
    loader = DataLoader(BATCH, 4, collate_fn=Batch.collate)
    for sources, alone in (
        ([Rows(BATCH, 4, share=(r, 3)) for r in range(3)], Rows(BATCH, 12)),
        ([Loader(loader)] * 3, Loader(loader)),
    ):
        whole = numbers(part.batch for part in shared(alone, _Ranks(0, 1)))
        for rank, own in enumerate(sources):
            for part in shared(own, _Ranks(rank, 3)):
                first, every = part.share
                assert part.batch.x["n"].tolist()[: part.rows] == whole[part.number][first::every]
                assert part.total == len(whole[part.number])


class _Ranks(Ranks):
    """Of a world that is not there: for what asks nobody."""

    def __init__(self, rank, world):
        self.rank, self.world = rank, world


def test_a_data_set_may_draw_its_own_order():
    class Backwards(Noisy):
        def permutation(self, generator):
            return torch.arange(len(self) - 1, -1, -1) + 0 * torch.randint(9, (), generator=generator)

    rows = Rows(Backwards(data(5)), 2, torch.Generator().manual_seed(1))
    assert torch.equal(torch.cat([b.x["count"] for b in rows.open()]), data(5).x["count"].flip(0))


def test_subsets_and_item_by_item_data_sets():
    assert flat(numbers(source(Subset(BATCH, [5, 3, 4]), 2).open())) == [5, 3, 4]

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return Batch({"n": torch.tensor([10.0 * i])})

    assert numbers(source(Items(), 2).open()) == [[0.0, 10.0], [20.0]]


def test_iterable_data_go_in_a_loader():
    class Stream(IterableDataset):
        def __iter__(self):
            return (BATCH[i] for i in range(4))

    with pytest.raises(TypeError, match="put an iterable data set in a DataLoader"):
        source(Stream(), 2)
    streamed = source(DataLoader(Stream(), 3, collate_fn=Batch.collate), 99)
    assert numbers(streamed.open()) == [[0, 1, 2], [3]] and streamed.length is None and streamed.rows is None


def test_a_samplers_epoch_is_set():
    sampler = torch.utils.data.DistributedSampler(BATCH, num_replicas=1, rank=0, seed=3)
    rows = source(DataLoader(BATCH, 22, sampler=sampler, collate_fn=Batch.collate), 1)
    first, second, again = (flat(numbers(rows.open(epoch))) for epoch in (0, 1, 0))
    assert first == again != second


def test_fingerprints_tell_data_apart():
    one = fingerprint(data())
    assert one == fingerprint(data()) and one["rows"] == 22 and one["shapes"]["image"] == [3]
    changed = data()
    changed.x["image"][21, 2] += 1e-3
    assert fingerprint(changed)["checksum"] != one["checksum"]
    hidden = Batch(data().x, {"label": torch.arange(22) > 0})
    assert fingerprint(hidden)["checksum"] != one["checksum"]
    still = Noisy(data())
    still.fixed, still.__getitems__ = True, still.batch.__getitems__
    assert fingerprint(still) == one == fingerprint(DataLoader(still, 3))
    assert fingerprint(Noisy(data())) == fingerprint(DataLoader(Noisy(data()), 3)) == {"rows": 22}


def test_noise_drawn_aside_leaves_no_trace():
    import random

    import numpy as np

    cpu, own = torch.device("cpu"), torch.Generator().manual_seed(4)
    before, place = noise_state(cpu), own.get_state()

    def draw():
        return torch.rand(2).tolist(), random.random(), np.random.rand(), torch.rand(1, generator=own).item()

    with aside(cpu, 7, [own]):
        one = draw()
    with pytest.raises(RuntimeError), aside(cpu, 7, [own]):
        two = draw()
        raise RuntimeError
    assert one == two
    assert torch.equal(noise_state(cpu)["torch"], before["torch"]) and torch.equal(own.get_state(), place)
    after = draw()
    set_noise(before, cpu)
    own.set_state(place)
    assert draw() == after != one
