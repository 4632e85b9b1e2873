"""Optimisers that step one after the other at every minibatch."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import nn

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.modality import Modality
from pyro_mm.objectives import Warmup, adversarial, discrimination, elbo
from pyro_mm.training import NonFiniteLoss, Stage, fit, in_turn
from pyro_mm.training.leg import Leg
from tests.helpers.training import At, Losses, data, pair, same, values


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))

    def forward(self, x):
        return self.net(x).squeeze(-1)


def parts():
    model, guide = pair()
    critic = Critic()
    critic(data().x["image"])
    joint = elbo(model, guide, beta=Warmup(2))
    sharp = adversarial(model, guide, "image", critic)
    told = discrimination(model, guide, "image", critic)
    moved = [[guide, model.decoders["label"]], [model.decoders["image"]], [critic]]
    return (model, guide, critic), (joint, sharp, told), moved


def stage(epochs: int = 2):
    modules, objectives, moved = parts()
    turns = [Stage(o, 1, m, n) for o, m, n in zip(objectives, moved, ("joint", "generator", "critic"), strict=True)]
    return modules, in_turn(epochs, *turns, name="gan")


OPTIONS = {"batch_size": 8, "seed": 3, "progress": False, "lr": 1e-2}


def test_three_steps_at_every_minibatch_as_written_by_hand() -> None:
    modules, alternating = stage()
    losses = Losses()
    history = fit([alternating], data(), callbacks=[losses], **OPTIONS)
    others, objectives, moved = parts()
    pyro.set_rng_seed(3)
    order, expected = torch.Generator().manual_seed(3), []
    optimisers = [torch.optim.Adam([p for m in ms for p in m.parameters()], 1e-2, fused=True) for ms in moved]
    for epoch in range(2):
        for i, rows in enumerate(torch.randperm(22, generator=order).split(8)):
            found = []
            for objective, optimiser in zip(objectives, optimisers, strict=True):
                getattr(objective, "set_progress")(epoch + i / 3)  # noqa: B009
                for module in others:
                    module.zero_grad()
                loss = objective(data()[rows])
                loss.backward()
                optimiser.step()
                found.append(loss.item())
            expected.append(found[0])
    assert list(losses.by_step.values()) == expected
    assert same(values(*modules), values(*others))
    row = history.rows[-1]
    assert {"joint/elbo/image", "generator/adversarial", "critic/discrimination/spread"} <= row.keys()
    assert row["loss"] == pytest.approx(sum(expected[3:][i] * n for i, n in enumerate((8, 8, 6))) / 22)


@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, step) -> None:
    straight, alternating = stage()
    fit([alternating], data(), folder=tmp_path / "straight", **OPTIONS)
    real = Leg.step

    def broken(self, batch, number, rows):
        if number == step + 1:
            raise KeyboardInterrupt
        return real(self, batch, number, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Leg, "step", broken)
        _, alternating = stage()
        assert fit([alternating], data(), folder=tmp_path / "broken", **OPTIONS).interrupted
    resumed, alternating = stage()
    history = fit([alternating], data(), folder=tmp_path / "broken", resume=True, **OPTIONS)
    assert len(history.rows) == 2 and same(values(*straight), values(*resumed))


def test_validation_watches_the_first_turn_and_gradients_are_switched_back_on() -> None:
    (model, guide, critic), alternating = stage(1)
    history = fit([alternating], data(), validation=data(9), **OPTIONS)
    row = history.rows[0]
    *data_terms, divergence = (row[f"validation/joint/elbo/{part}"] for part in ("image", "label", "count", "kl"))
    assert row["validation"] == pytest.approx(divergence - sum(data_terms), rel=1e-5)
    assert repr(alternating.objective).startswith("in turn  joint: maximise") and not alternating.objective.training
    assert all(p.requires_grad for part in (model, guide, critic) for p in part.parameters())


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_parameter_of_any_turn_that_is_not_finite_stops_the_run(part) -> None:
    _, alternating = stage(1)

    def spoil(state) -> None:
        with torch.no_grad():
            next(iter(alternating.turns[part].chosen[0].parameters())).fill_(torch.nan)

    with pytest.raises(NonFiniteLoss, match="the parameters are not finite after the last step"):
        fit([alternating], data(), callbacks=[At(3, spoil)], **OPTIONS)


def test_turns_that_make_no_sense() -> None:
    (model, guide, _), (joint, sharp, _), _ = parts()
    with pytest.raises(ValueError, match="two or more turns with distinct names"):
        in_turn(1, Stage(joint, 1, guide))
    with pytest.raises(ValueError, match="turns 'turn 1' and 'turn 2' would both move a parameter"):
        in_turn(1, Stage(joint, 1, [guide, model]), Stage(sharp, 1, model.decoders["image"]))
    _, alternating = stage(1)
    with pytest.warns(UserWarning, match="only training of stages without turns is compiled; this is eager"):
        fit([alternating], data(), compile=True, **OPTIONS)


def gan():
    modalities = [
        Modality("image", (4,), likelihoods.Normal(0.5), networks.MLP((6,))),
        Modality("label", (), likelihoods.Categorical(3), networks.Embedding(6, (6,))),
    ]
    torch.manual_seed(0)
    return variants.jmvae_gan(modalities, 3, width=16, alpha=0.3, gamma=0.7, beta=1.5, weights={"label": 2.0})


def test_jmvae_gans_three_losses_by_hand() -> None:
    """(1) beta KL(q || p) - log p + alpha sum KL(q || q_m); (2) -gamma log p(x|z) - log D - log D; (3) D's own."""
    recipe, n = gan(), 5
    image, label = torch.randn(n, 4), torch.arange(n) % 3
    batch = Batch({"image": image, "label": label})
    joint, sharp, told = recipe.stages[0].turns
    assert [s.name for s in recipe.stages[0].turns] == ["joint", "generator", "discriminator"]
    decoders, critic = recipe.model.decoders, recipe.modules["discriminator"].eval()
    q = recipe.guide.joint.net(batch)
    alone = [recipe.guide.unimodal.encoders[m](batch.x[m]) for m in ("image", "label")]
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(n, 3), 1.0), 1)
    kls = [torch.distributions.kl_divergence(q.base_dist, p.base_dist).sum(-1) for p in (prior, *alone)]

    def densities(z):
        return decoders["image"](z).log_prob(image), decoders["label"](z).log_prob(label)

    def minus_log(logit):
        return torch.nn.functional.softplus(-logit)

    torch.manual_seed(3)
    z = q.rsample()
    of_image, of_label = densities(z)
    expected = (1.5 * kls[0] - of_image - 2.0 * of_label + 0.3 * (kls[1] + kls[2])).mean()
    torch.manual_seed(3)
    torch.testing.assert_close(joint.objective(batch), expected)
    torch.manual_seed(3)
    z, z_p, z_q = q.rsample(), torch.randn(n, 3), q.rsample()
    fakes = [decoders["image"](v).mean for v in (z_p, z_q)]
    expected = (-0.7 * densities(z)[0] + sum(minus_log(critic(f)) for f in fakes)).mean()
    torch.manual_seed(3)
    torch.testing.assert_close(sharp.objective(batch), expected)
    torch.manual_seed(3)
    z_p, z_q = torch.randn(n, 3), q.rsample()
    fakes = [decoders["image"](v).mean for v in (z_p, z_q)]
    expected = (minus_log(critic(image)) + sum(minus_log(-critic(f)) for f in fakes)).mean()
    torch.manual_seed(3)
    torch.testing.assert_close(told.objective(batch), expected)


def test_turns_end_with_their_last_weights_and_have_the_papers_moments() -> None:
    """The first turn's validation loss says nothing of the others: no epoch is the best."""
    recipe, last = gan(), {}
    turns = recipe.stages[0].turns
    for turn in turns:
        adam = turn.optimiser(turn.moving())
        assert adam.param_groups[0]["betas"] == (0.5, 0.999)
    rows = Batch({"image": torch.randn(20, 4), "label": torch.arange(20) % 3})

    class Keep:
        def on_epoch(self, state) -> None:
            last.update({n: p.detach().clone() for n, p in recipe.model.named_parameters()})

    worse = Batch({"image": 9 - rows.x["image"], "label": rows.x["label"]})  # the better the fit, the worse they are
    fit(recipe, rows, 3, validation=worse, batch_size=10, lr=1e-2, progress=False, callbacks=[Keep()])
    assert all(torch.equal(p, last[n]) for n, p in recipe.model.named_parameters())


def test_jmvae_gan_moves_all_of_its_parts_and_is_stored(tmp_path) -> None:
    torch.manual_seed(0)
    modalities = [
        Modality("image", (1, 8, 8), likelihoods.Bernoulli(), networks.Conv((4,), 8)),
        Modality("label", (), likelihoods.Categorical(3), networks.Embedding(8, (8,))),
    ]
    recipe = variants.jmvae_gan(modalities, 3, width=16, lr=1e-3)
    assert recipe.stages[0].turns[1].chosen == [recipe.model.decoders["image"]]
    batch = Batch({"image": torch.rand(20, 1, 8, 8), "label": torch.arange(20) % 3})
    before = {n: v.clone() for m in recipe.modules.values() for n, v in m.named_parameters()}
    fit(recipe, batch, 1, batch_size=10, progress=False)
    after = {n: v for m in recipe.modules.values() for n, v in m.named_parameters()}
    assert all(not torch.equal(before[n], after[n]) for n in before)
