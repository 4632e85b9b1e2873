"""A run that is interrupted, killed or cut short goes on bit for bit as if nothing had happened."""

import csv
import functools

import pyro
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from pyro_mm.batch import Batch
from pyro_mm.objectives import Warmup, elbo, kl
from pyro_mm.training import Stage, fit
from pyro_mm.variants import mvae_sampled
from tests.helpers.training import MODALITIES, At, Losses, Noisy, data, pair, raising, rows_of, same, values

EPOCHS, STEPS = 4, 3  # epochs, and steps in each


def warmup():
    return elbo(*pair(), beta=Warmup(3)), data(), {}


def plateau_and_patience():
    plateau = functools.partial(ReduceLROnPlateau, factor=0.3, patience=0, threshold=0.5)
    return elbo(*pair()), data(), {"validation": data(9, seed=2), "patience": 2, "schedule": plateau}


def noisy_validation():
    return elbo(*pair()), Noisy(data()), {"validation": Noisy(data(9, seed=2)), "patience": 1, "lr": 0.1}


def random_subsets():
    torch.manual_seed(5)
    return mvae_sampled(MODALITIES, 2).objective, data(), {}


def noisy_data():
    return elbo(*pair(), particles=2), Noisy(data()), {"clip_norm": 3.0}


def milestones():
    return elbo(*pair()), data(), {"schedule": functools.partial(MultiStepLR, milestones=[1, 3])}


def momentum():
    sgd = functools.partial(torch.optim.SGD, momentum=0.9)
    return elbo(*pair()), data(), {"optimiser": sgd, "schedule": functools.partial(CosineAnnealingLR, T_max=4)}


def own_seed():
    return elbo(*pair()), Noisy(data()), {"seed": None}


def shuffled_loader():
    return elbo(*pair()), DataLoader(Noisy(data()), 8, shuffle=True, collate_fn=Batch.collate), {}


def loader_with_generators():
    order, base = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    sampler = torch.utils.data.RandomSampler(data(), replacement=True, num_samples=22, generator=order)
    return elbo(*pair()), DataLoader(Noisy(data()), 8, sampler=sampler, generator=base, collate_fn=Batch.collate), {}


def workers():
    loader = DataLoader(Noisy(data()), 8, shuffle=True, collate_fn=Batch.collate, num_workers=2)
    return elbo(*pair()), loader, {}


def stages():
    model, guide = pair()
    first = Stage(elbo(model, guide, beta=Warmup(2)), 2, name="all")
    return [first, Stage(elbo(model, guide) + kl(guide, guide), 2, train=guide, name="guide", lr=3e-3)], data(), {}


CASES = [
    warmup, plateau_and_patience, noisy_validation, random_subsets, noisy_data, milestones, momentum, own_seed,
    shuffled_loader, loader_with_generators, stages,
]  # fmt: skip


def run(case, folder, callbacks=(), resume=False, **more):
    """One process's part of a run: freshly made modules and data, streams that stand anywhere."""
    objective, rows, options = case()
    torch.manual_seed(123 if not resume else 456)
    losses = Losses()
    options = {"lr": 1e-2, "batch_size": 8, "seed": 3, "progress": False} | options | more
    epochs = None if isinstance(objective, list) else EPOCHS
    history, error = None, None
    try:
        history = fit(objective, rows, epochs, folder=folder, resume=resume, callbacks=[losses, *callbacks], **options)
    except RuntimeError as caught:
        error = caught
    modules = [s.objective for s in objective] if isinstance(objective, list) else [objective]
    return losses.by_step, history, values(*modules), error


def check(case, folder, parts):
    """Run straight, then in `parts` (callbacks of each but the last), and compare everything."""
    straight, history, weights, _ = run(case, folder / "straight")
    assert len(straight) >= 2 * STEPS
    losses = {}
    for i, callback in enumerate(parts):
        some, partial, _, _ = run(case, folder / "parts", [callback], resume=i > 0)
        losses |= some
        assert partial is None or partial.interrupted
    rest, again, last, _ = run(case, folder / "parts", resume=True)
    assert losses | rest == straight
    assert rows_of(again) == rows_of(history) and again.best_epoch == history.best_epoch
    assert again.stopped_early == history.stopped_early and not again.interrupted
    assert same(weights, last)
    logged = list(csv.DictReader((folder / "parts" / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in logged] == [str(s) for s in history["step"]]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_interrupted_after_a_step(case, step, tmp_path):
    check(case, tmp_path, [At(step, raising(KeyboardInterrupt()))])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_interrupted_three_times(case, tmp_path):
    check(case, tmp_path, [At(s, raising(KeyboardInterrupt())) for s in (2, 5, 6)])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_crashed_between_checkpoints(case, tmp_path):
    """An error saves nothing: the run goes on from the last epoch's end, or from the start."""
    check(case, tmp_path, [At(s, raising(RuntimeError("power cut"))) for s in (2, 5)])


def test_data_loader_workers(tmp_path):
    check(workers, tmp_path, [At(5, raising(KeyboardInterrupt()))])


@pytest.mark.parametrize("every", [2, 3])
def test_sparse_checkpoints(every, tmp_path):
    case = functools.partial(with_options, warmup, checkpoint_every=every)
    check(case, tmp_path, [At(11, raising(RuntimeError("power cut")))])


def with_options(case, **more):
    objective, rows, options = case()
    return objective, rows, options | more


def test_a_finished_run_is_only_loaded(tmp_path):
    case = functools.partial(with_options, warmup, validation=data(9, seed=2))
    _, history, weights, _ = run(case, tmp_path)
    losses, again, last, _ = run(case, tmp_path, resume=True)
    assert losses == {} and again == history and same(weights, last)


def test_more_epochs_continue_a_finished_run(tmp_path):
    def of(epochs, folder, resume=False):
        objective, losses = elbo(*pair(), beta=Warmup(3)), Losses()
        history = fit(
            objective, Noisy(data()), epochs, folder=folder, resume=resume, batch_size=8, progress=False,
            validation=data(9, seed=2), callbacks=[losses],
        )  # fmt: skip
        return losses.by_step, rows_of(history), values(objective)

    straight, short, longer = of(5, tmp_path / "a"), of(2, tmp_path / "b"), of(5, tmp_path / "b", resume=True)
    assert short[0] | longer[0] == straight[0] and longer[1] == straight[1] and same(longer[2], straight[2])


def test_resume_in_an_empty_folder_starts(tmp_path):
    straight, *_ = run(warmup, None)
    assert run(warmup, tmp_path / "new" / "folder", resume=True)[0] == straight


def test_an_existing_run_is_not_written_over(tmp_path):
    run(warmup, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(FileExistsError, match="already holds a run: resume=True"):
        run(warmup, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4}, "batch_size was 8, is 4"),
        ({"seed": 4}, "seed was 3, is 4"),
        ({"lr": 1e-3}, "lr was 0.01, is 0.001"),
        ({"clip_norm": 1.0}, "clip_norm was None, is 1.0"),
        ({"optimiser": torch.optim.SGD}, "optimiser was 'Adam', is 'SGD'"),
        ({"schedule": functools.partial(MultiStepLR, milestones=[1])}, r"schedule was None, is 'MultiStepLR\(milest"),
        ({"validation": data(9)}, "validation was False"),
        ({"precision": "64-true"}, "precision was '32-true', is '64-true'"),
    ],
)
def test_other_settings_are_refused(options, message, tmp_path):
    run(warmup, tmp_path)
    with pytest.raises(ValueError, match=f"belongs to another run: {message}"):
        run(functools.partial(with_options, warmup, **options), tmp_path, resume=True)


def test_other_data_objectives_and_networks_are_refused(tmp_path):
    run(warmup, tmp_path)
    objective, rows, _ = warmup()
    for other, batch, message in [
        (elbo(*pair()), rows, r"stages\.training\.objective was .*beta.*stages\.training\.schedules was .*Warmup"),
        (objective, data(21), "data.rows was 22, is 21"),
        (objective, data(22, seed=9), "data.checksum was"),
        (elbo(*pair(dim=3), beta=Warmup(3)), rows, r"does not fit these modules: training\.terms\.0\.\S+ has shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(other, batch, 4, lr=1e-2, batch_size=8, seed=3, progress=False, folder=tmp_path, resume=True)


def test_python_and_numpy_streams_come_back(tmp_path):
    import random

    import numpy as np

    class Augmented(Noisy):
        def __getitems__(self, rows):
            some = self.batch[rows]
            shift = random.random() + np.random.rand() + np.random.randn()
            return Batch({**some.x, "image": some.x["image"] + shift}, some.mask)

    def case():
        return elbo(*pair()), Augmented(data()), {}

    check(case, tmp_path, [At(5, raising(KeyboardInterrupt()))])
    assert pyro.get_param_store().keys() == set()
