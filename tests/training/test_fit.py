"""`fit` against loops written by hand, and what it does with validation data, callbacks and a progress bar."""

import math
import subprocess
import sys
from contextlib import nullcontext

import pyro
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.half import HalfLayers
from pyro_mm.handlers import given
from pyro_mm.objectives import Warmup, elbo, kl
from pyro_mm.training import fit
from pyro_mm.variants import mvae
from tests.helpers.training import MODALITIES, Losses, Noisy, data, pair, same, values


def by_hand(objective, batch, epochs, size=8, seed=3, clip=None, set_progress=False):
    """The loop that `fit` promises to be, with plain torch."""
    pyro.set_rng_seed(seed)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(objective.parameters(), 1e-2, fused=True)
    losses = []
    for epoch in range(epochs):
        chunks = torch.randperm(len(batch), generator=order).split(size)
        for i, rows in enumerate(chunks):
            if set_progress:
                objective.set_progress(epoch + i / len(chunks))
            optimiser.zero_grad()
            loss = objective(batch[rows] if isinstance(batch, Batch) else batch.__getitems__(rows.tolist()))
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(objective.parameters(), clip)
            optimiser.step()
            losses.append(loss.item())
    return losses


def fitted(objective, batch, epochs, **options):
    losses = Losses()
    options = {"batch_size": 8, "seed": 3, "lr": 1e-2, "progress": False, "callbacks": [losses]} | options
    history = fit(objective, batch, epochs, **options)
    return history, list(losses.by_step.values())


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", ["batch", "noisy"])
def test_equals_a_loop_by_hand_bit_for_bit(clip, kind):
    rows = data() if kind == "batch" else Noisy(data())
    first, second = pair(), pair()
    expected = by_hand(elbo(*first, beta=Warmup(2)), rows, 3, clip=clip, set_progress=True)
    history, losses = fitted(elbo(*second, beta=Warmup(2)), rows, 3, clip_norm=clip)
    assert losses == expected
    assert same(values(*first), values(*second))
    sizes = [8, 8, 6]
    for i, row in enumerate(history):
        mean = sum(n * x for n, x in zip(sizes, expected[3 * i : 3 * i + 3], strict=True)) / 22
        assert row["loss"] == pytest.approx(mean, rel=1e-12)
        parts = row["elbo/image"] + row["elbo/count"] + row["elbo/label"] - row["elbo/kl"]
        assert row["elbo"] == pytest.approx(parts, rel=1e-5) == pytest.approx(-row["loss"], rel=1e-5)


def test_random_subsets_by_hand():
    objectives = [mvae_sampled(7), mvae_sampled(7)]
    expected = by_hand(objectives[0], data(), 2)
    assert fitted(objectives[1], data(), 2)[1] == expected
    assert same(values(objectives[0]), values(objectives[1]))


def mvae_sampled(seed):
    from pyro_mm.variants import mvae_sampled as build

    torch.manual_seed(seed)
    return build(MODALITIES, 2).objective


def test_double_precision_is_a_double_module():
    first, second = pair(), pair()
    expected = by_hand(elbo(*[p.double() for p in first]), data(), 2)
    _, losses = fitted(elbo(*second), data(), 2, precision="64-true")
    assert same(values(*first), values(*second))
    assert losses == pytest.approx(expected, rel=1e-6)  # Fabric hands the loss out in single precision


def test_layers_in_bfloat16_are_a_loop_by_hand_under_half_layers():
    """And the gradient is that of full precision but for bfloat16's rounding, 2^-9 of a layer's numbers."""
    first, second, third = pair(), pair(), pair()
    with HalfLayers():
        expected = by_hand(elbo(*first), data(), 3)
    _, losses = fitted(elbo(*second), data(), 3, precision="bf16-layers")
    assert losses == expected
    assert same(values(*first), values(*second))
    _, full = fitted(elbo(*third), data(), 3)
    assert losses != full
    assert losses == pytest.approx(full, rel=0.01)
    assert all(v.dtype == torch.float32 for v in values(*second).values())
    gradients = []
    for fresh, context in ((pair(), nullcontext()), (pair(), HalfLayers())):
        pyro.set_rng_seed(0)
        objective = elbo(*fresh)
        with context:
            loss = objective(data())
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in objective.parameters()]))
    assert 1e-5 < (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.02


def test_a_dataloader_keeps_its_own_order():
    rows = data()
    first, second = pair(), pair()
    loader = DataLoader(
        rows, 5, shuffle=True, collate_fn=Batch.collate, generator=torch.Generator().manual_seed(11), drop_last=True
    )
    pyro.set_rng_seed(3)
    objective, expected = elbo(*first), []
    optimiser = torch.optim.Adam(objective.parameters(), 1e-2, fused=True)
    for _ in range(2):
        for batch in loader:
            optimiser.zero_grad()
            loss = objective(batch)
            loss.backward()
            optimiser.step()
            expected.append(loss.item())
    loader.generator.manual_seed(11)
    _, losses = fitted(elbo(*second), loader, 2)
    assert len(losses) == 8 and losses == expected


def test_one_seed_decides_everything():
    runs = [fitted(elbo(*pair()), Noisy(data()), 2, seed=seed)[1] for seed in (3, 3, 4)]
    assert runs[0] == runs[1] and runs[0] != runs[2]
    pyro.set_rng_seed(5)
    free = [fitted(elbo(*pair()), Noisy(data()), 2, seed=None)[1]]
    pyro.set_rng_seed(5)
    free.append(fitted(elbo(*pair()), Noisy(data()), 2, seed=None)[1])
    assert free[0] == free[1] != runs[0]


class Scripted(nn.Module):
    """Every step adds 1 to w (SGD, lr 1); the validation loss is the one at place w of a script."""

    def __init__(self, script):
        super().__init__()
        self.w, self.script = nn.Parameter(torch.zeros(())), script

    def forward(self, batch):
        return -self.w if self.training else torch.tensor(self.script[int(self.w)])


def scripted(script, epochs=None, **options):
    objective = Scripted([math.inf, *script])
    options = {"optimiser": torch.optim.SGD, "lr": 1.0, "progress": False} | options
    one = data(4)
    return objective, fit(objective, one, epochs or len(script), validation=one, **options)


def test_early_stopping_restores_the_best_weights_exactly():
    objective, history = scripted([5.0, 4.0, 6.0, 3.0, 7.0, 3.0, 2.0], patience=2)
    assert history["validation"] == [5.0, 4.0, 6.0, 3.0, 7.0, 3.0]  # the tie with epoch 4 is no improvement
    assert (history.best_epoch, history.stopped_early, objective.w.item()) == (4, True, 4.0)


def test_best_weights_come_back_without_early_stopping_too():
    objective, history = scripted([5.0, 4.0, 6.0])
    assert (history.best_epoch, history.stopped_early, objective.w.item()) == (2, False, 2.0)
    objective, _ = scripted([5.0, 4.0, 6.0], restore_best=False)
    assert objective.w.item() == 3.0


def test_plateau_sees_the_validation_loss():
    _, history = scripted(
        [5.0, 6.0, 6.0, 4.0, 9.0, 9.0, 9.0],
        schedule=lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0),
        optimiser=lambda p, lr: torch.optim.SGD([{"params": p, "lr": lr}, {"params": [nn.Parameter(torch.ones(1))]}]),
        epochs=2,
    )
    assert history["lr"] == [1.0, 1.0]  # the rate an epoch was trained with
    objective = Scripted([math.inf, 5.0, 6.0, 6.0, 6.0])
    rates = []
    fit(
        objective, data(4), 2, validation=data(4), optimiser=torch.optim.SGD, lr=1.0, progress=False,
        schedule=lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0),
        callbacks=[type("C", (), {"on_epoch": lambda self, s: rates.append(s.optimiser.param_groups[0]["lr"])})()],
    )  # fmt: skip
    assert rates == [1.0, 0.5]


def test_schedules_step_once_per_epoch():
    history, _ = fitted(elbo(*pair()), data(), 5, schedule=lambda o: StepLR(o, 2, gamma=0.1))
    assert history["lr"] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4])


def test_clipping_shortens_the_step_to_the_norm():
    first, second = pair(), pair()
    before = torch.cat([p.detach().flatten().clone() for p in elbo(*first).parameters()])
    steps = []
    for objective, clip in ((elbo(*first), None), (elbo(*second), 0.25)):
        history, _ = fitted(objective, data(), 1, batch_size=22, optimiser=torch.optim.SGD, lr=1e-3, clip_norm=clip)
        steps.append((torch.cat([p.detach().flatten() for p in objective.parameters()]) - before) / 1e-3)
    free, clipped = steps
    assert history["gradient_norm"][0] == pytest.approx(free.norm().item(), rel=1e-3)  # before clipping
    assert clipped.norm().item() == pytest.approx(0.25, rel=1e-3)
    assert torch.cosine_similarity(free, clipped, 0).item() == pytest.approx(1.0, abs=1e-4)


def test_validation_does_not_disturb_training():
    plain, watched = pair(), pair()
    _, losses = fitted(elbo(*plain, beta=Warmup(5)), Noisy(data()), 3)
    loader = DataLoader(data(9, seed=2), 4, shuffle=True, collate_fn=Batch.collate)
    _, again = fitted(elbo(*watched, beta=Warmup(5)), Noisy(data()), 3, validation=loader, restore_best=False)
    assert again == losses and same(values(*plain), values(*watched))


@pytest.mark.parametrize("shuffled", [False, True])
def test_validation_losses_of_equal_weights_are_equal(shuffled):
    """Nothing moves at learning rate 0: same noise, same order, and schedules at their end in every epoch."""
    valid = data(9, seed=2)
    loader = DataLoader(valid, 4, shuffle=shuffled, generator=torch.Generator(), collate_fn=Batch.collate)
    objective = elbo(*pair(), beta=Warmup(10))
    history, _ = fitted(objective, data(), 3, validation=loader, optimiser=torch.optim.SGD, lr=0.0)
    assert len(set(history["validation"])) == 1 and len(set(history["loss"])) == 3
    assert objective.terms[0].beta.value.item() == pytest.approx(0.3)  # where training left it
    if not shuffled:
        pyro.set_rng_seed(3)
        end = elbo(*pair(), beta=1.0)
        with torch.no_grad():
            total = sum(len(b) * end(b).item() for b in (valid[:4], valid[4:8], valid[8:]))
        assert history["validation"][0] == pytest.approx(total / 9, rel=1e-6)


class LazyEncoder(nn.Module):
    """Has no parameters until it has seen data."""

    def __init__(self):
        super().__init__()
        self.net = nn.LazyLinear(4)

    def forward(self, x):
        loc, raw = self.net(x).chunk(2, -1)
        return pyro.distributions.Normal(loc, raw.exp()).to_event(1)


def test_lazy_parameters_are_trained():
    model, _ = pair()
    guide = Experts({"image": LazyEncoder()}, product_of_experts)
    fitted(elbo(model, guide), data(), 1, lr=0.0)
    before = guide.encoders["image"].net.weight.detach().clone()
    fitted(elbo(model, guide), data(), 1)
    assert before.shape == (4, 3) and (guide.encoders["image"].net.weight != before).all()


def test_callbacks_see_every_step_and_can_stop():
    seen = []

    class Watch:
        def on_step(self, state):
            seen.append((state.step, state.epoch, state.row))
            state.stop = state.step == 5

        def on_epoch(self, state):
            seen.append(state.row["epoch"])

    history, _ = fitted(elbo(*pair()), data(), 9, callbacks=[Watch()])
    assert seen == [(1, 1, {}), (2, 1, {}), (3, 1, {}), 1, (4, 2, {}), (5, 2, {}), 2]
    assert history.stopped_early and history["step"] == [3, 5]


def test_recipe_is_a_target_and_networks_end_in_evaluation_mode():
    torch.manual_seed(0)
    recipe = mvae(MODALITIES, 2)
    before = values(recipe.model, recipe.guide)
    history, _ = fitted(recipe, data(), 1)
    assert all(not torch.equal(before[n], v) for n, v in values(recipe.model, recipe.guide).items())
    assert len(history) == 1 and not recipe.model.training and not recipe.guide.training


def test_progress_bar_shows_bound_terms_and_kl(capsys):
    model, guide = pair()
    fit(elbo(model, guide), data(170), 2, batch_size=8, validation=data(9))
    shown = capsys.readouterr().err
    last = shown.rstrip().rpartition("\r")[2]
    assert "training, epoch 2/2" in last and "44/44" in last
    for name in ("elbo=", "image=", "count=", "label=", "kl=", "validation="):
        assert name in last
    fit(elbo(model, guide) + kl(guide, given(guide, "image")), data(9), 1)
    several = capsys.readouterr().err
    assert "elbo=" in several and "kl=" in several and "image=" not in several


def test_any_module_is_an_objective():
    torch.manual_seed(0)
    objective = pyro.infer.Trace_ELBO(max_plate_nesting=3)(*pair())
    pyro.set_rng_seed(3)
    order = torch.randperm(22, generator=torch.Generator().manual_seed(3))
    expected = objective(data()[order]).item()
    history, losses = fitted(objective, data(), 1, batch_size=22)
    assert losses[0] == expected
    assert set(history.rows[0]) == {"stage", "epoch", "step", "seconds", "lr", "loss", "gradient_norm"}


def test_import_leaves_fabric_alone():
    code = "import sys, pyro_mm.training; sys.exit('lightning_fabric' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
