"""Stages: what moves, what keeps still, and how one follows another."""

import pyro
import pytest
import torch
from torch import nn

from pyro_mm.handlers import given
from pyro_mm.objectives import Warmup, elbo, kl
from pyro_mm.training import Stage, fit
from tests.helpers.training import At, Losses, data, pair, raising, same, values


def run(stages, **options):
    return fit(stages, data(), **{"batch_size": 8, "seed": 3, "progress": False, "lr": 1e-2} | options)


def test_only_the_chosen_modules_move():
    model, guide = pair()
    before = values(model), values(guide)
    encoder = guide.encoders["image"]
    run([Stage(elbo(model, guide), 1, train=[model.decoders["label"], encoder])])
    for module, old, moved in ((model, before[0], "decoders.label"), (guide, before[1], "encoders.image")):
        changed = {n for n, t in values(module).items() if not torch.equal(t, old[n])}
        assert changed == {n for n in old if moved in n}
    moving = {id(p) for part in (model.decoders["label"], encoder) for p in part.parameters()}
    for p in [*model.parameters(), *guide.parameters()]:
        assert p.requires_grad and (p.grad is not None) == (id(p) in moving)


def test_two_stages_by_hand():
    """Each has its own optimiser, learning rate and warm-up; the order of rows goes on."""
    (model, guide), (model2, guide2) = pair(), pair()
    losses = Losses()
    stages = [
        Stage(elbo(model, guide, beta=Warmup(2)), 2, lr=5e-3),
        Stage(elbo(model, given(guide, "image"), beta=Warmup(2)), 1, train=guide),
    ]
    history = run(stages, callbacks=[losses])
    pyro.set_rng_seed(3)
    order, expected = torch.Generator().manual_seed(3), []
    for objective, epochs, lr, params in (
        (elbo(model2, guide2, beta=Warmup(2)), 2, 5e-3, [*model2.parameters(), *guide2.parameters()]),
        (elbo(model2, given(guide2, "image"), beta=Warmup(2)), 1, 1e-2, list(guide2.parameters())),
    ):
        optimiser = torch.optim.Adam(params, lr, fused=True)
        for epoch in range(epochs):
            for i, rows in enumerate(torch.randperm(22, generator=order).split(8)):
                objective.set_progress(epoch + i / 3)
                optimiser.zero_grad()
                loss = objective(data()[rows])
                loss.backward()
                optimiser.step()
                expected.append(loss.item())
    assert list(losses.by_step.values()) == expected
    assert same(values(model, guide), values(model2, guide2))
    assert history["stage"] == ["stage 1", "stage 1", "stage 2"] and history["lr"] == [5e-3, 5e-3, 1e-2]


def test_what_keeps_still_runs_in_evaluation_mode():
    """Batch statistics of a frozen network must not move either."""
    model, guide = pair()
    model.decoders["image"].net.insert(1, nn.BatchNorm1d(16))
    guide.encoders["image"].net.insert(2, nn.BatchNorm1d(16))
    moved, still = guide.encoders["image"].net[2], model.decoders["image"].net[1]
    modes = []
    watch = At(1, lambda s: modes.extend([moved.training, still.training, guide.training]))
    run([Stage(elbo(model, guide), 1, train=guide)], callbacks=[watch])
    assert modes == [True, False, True]
    assert still.num_batches_tracked == 0 and (still.running_mean == 0).all()
    assert moved.num_batches_tracked == 3 and (moved.running_mean != 0).all()


def test_each_stage_ends_with_its_best_weights(tmp_path):
    """The second stage starts from the best epoch of the first, and the log has both."""
    model, guide = pair()
    starts = []
    stages = [
        Stage(elbo(model, guide), 6, lr=0.5, name="wild"),
        Stage(kl(guide, given(guide, "image")), 1, lr=0.0, name="rest"),
    ]
    first = 6 * 3 + 1
    history = run(
        stages, validation=data(9, seed=2), folder=tmp_path,
        callbacks=[At(first, lambda s: starts.append(values(model, guide)))],
    )  # fmt: skip
    wild = [r["validation"] for r in history if r["stage"] == "wild"]
    assert wild.index(min(wild)) < 5  # else the last epoch was the best and this shows nothing
    (model2, guide2) = pair()
    best = wild.index(min(wild)) + 1
    run([Stage(elbo(model2, guide2), best, lr=0.5, name="wild")])
    assert same(starts[0], values(model2, guide2))


def test_gradients_are_switched_back_on_after_an_error():
    model, guide = pair()
    for error in (RuntimeError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            run([Stage(elbo(model, guide), 1, train=guide)], callbacks=[At(1, raising(error))])
        assert all(p.requires_grad for p in model.parameters())


def test_parameters_the_user_froze_stay_frozen():
    model, guide = pair()
    model.requires_grad_(False)
    before = values(model)
    run(elbo(model, guide), epochs=1)
    assert same(before, values(model)) and not any(p.requires_grad for p in model.parameters())


def test_epochs_replaces_every_stages_own():
    objective = elbo(*pair())
    history = run([Stage(objective, 5, name="a"), Stage(objective, 7, name="b")], epochs=1)
    assert history["stage"] == ["a", "b"]


@pytest.mark.parametrize(
    ("stages", "options", "error", "message"),
    [
        (lambda o: [Stage(o, 1, train=nn.Linear(1, 1), name="x")], {}, ValueError, "x has nothing to train: of its 25"),
        (lambda o: [Stage(o, 1, name="x"), Stage(o, 1, name="x")], {}, ValueError, "distinct names"),
        (lambda o: [Stage(o, 1, name="x")], {"modules": {"x": nn.Identity()}}, ValueError, "both a stage and a mod"),
        (lambda o: [], {}, TypeError, "fit takes an objective"),
        (lambda o: o, {}, ValueError, "say for how many epochs"),
    ],
)
def test_stages_that_make_no_sense(stages, options, error, message):
    with pytest.raises(error, match=message):
        run(stages(elbo(*pair())), **options)
