"""Noise on what encoders see: its law, the bound it trains against an exact answer, and where it must not be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.data import available, with_noise
from pyro_mm.guides.experts import single
from pyro_mm.input_noise import BitFlips, GaussianNoise, InputNoise, noise_like
from pyro_mm.modality import Modality, encoders
from pyro_mm.objectives import Discriminator, elbo
from pyro_mm.settings import Settings, build_recipe
from pyro_mm.storage import load, save
from pyro_mm.tasks import classification
from pyro_mm.training import fit
from tests.helpers.oracle import LG

COPIES, SD = 4000, 0.8


def within(draws: Tensor, exact: float, sigmas: float = 5.0) -> None:
    """The mean of independent draws is the exact value."""
    error = draws.std() / len(draws) ** 0.5
    assert abs(draws.mean() - exact) < sigmas * error, (draws.mean(), exact, error)


def test_gaussian_noise_has_a_level_for_every_row():
    torch.manual_seed(0)
    spoilt = GaussianNoise(0.6)(torch.zeros(2000, 50, 4, dtype=torch.float64), 2)
    squares = spoilt.square().mean((1, 2))
    within(squares, 0.6**2 / 3)  # E s^2 of U(0, sd)
    within(squares**2, 0.6**4 / 5 * (1 + 2 / 200))  # E s^4: one s for a whole row, not one for every element
    assert GaussianNoise(5.0, (0, 1))(torch.rand(100, 3), 1).aminmax() == (0.0, 1.0)


def test_bit_flips_keep_zeros_and_ones():
    torch.manual_seed(0)
    x = (torch.rand(2000, 100) < 0.3).double()
    flipped = (BitFlips(0.4)(x, 1) != x).double()
    within(flipped.mean(-1), 0.4 / 3)
    within(flipped.mean(-1) ** 2, 0.4**2 / 5 + (0.4 / 3 - 0.4**2 / 5) / 100)


def test_the_denoising_criterion_is_the_mean_elbo_over_noise_and_so_is_its_gradient():
    """x~ = x + s e moves the guide's mean m = W x~ + c by W s e, and the ELBO is quadratic in m."""
    torch.manual_seed(0)
    lg = LG({"a": 4})
    model, noisy = lg.model(), [replace(m, noise=GaussianNoise(SD)) for m in lg.modalities()]
    guide = single(encoders(noisy, 2)).double()
    net = guide.encoders["a"].net[-1]
    with torch.no_grad():
        net.weight[2:] = 0  # scales that do not look at x
    objective, rows = elbo(model, guide), lg.data(3)

    def exact(variance: float) -> Tensor:
        """Mean over the rows, with noise of this variance on every element of x."""
        w, loc = net.weight[:2], guide.encoders["a"].net(rows.x["a"])[:, :2]
        s = torch.nn.functional.softplus(net.bias[2:]) + 1e-4
        error = rows.x["a"] - loc @ lg.w["a"].T - lg.b["a"]
        spread = (lg.w["a"] ** 2 @ s**2).sum() + variance * (lg.w["a"] @ w).square().sum()
        fits = -0.5 * (error.square().sum(-1) + spread) / lg.s["a"] ** 2
        fits = fits - 4 * torch.tensor(lg.s["a"] * (2 * torch.pi) ** 0.5).log()
        kl = 0.5 * (s**2 - 1 - 2 * s.log()).sum() + 0.5 * (loc.square().sum(-1) + variance * w.square().sum())
        return (fits - kl).mean()

    many = Batch({"a": rows.x["a"].repeat(COPIES, 1)})
    for train, variance in ((True, SD**2 / 3), (False, 0.0)):
        objective.train(train)
        losses = torch.stack([objective(many).detach() for _ in range(20)])
        within(-losses, exact(variance).item())
        grads = torch.stack([torch.autograd.grad(objective(many), net.weight)[0][0, 1] for _ in range(20)])
        within(-grads, torch.autograd.grad(exact(variance), net.weight)[0][0, 1].item())
    assert exact(SD**2 / 3) < exact(0.0) - 0.5  # the two are told apart
    assert exact(0.0) <= lg.log_marginal(rows).mean()


def test_what_is_missing_stays_zero_for_a_joint_encoder():
    image = Modality("image", (6,), likelihoods.Normal(), networks.MLP((8,)), noise=GaussianNoise(1.0))
    seen = image.apply_net(torch.nn.Identity(), torch.ones(3, 6), torch.tensor([True, False, True]))
    assert (seen[1] == 0).all()
    assert (seen[[0, 2]] != 1).all()


def test_a_discriminator_sees_rows_as_they_are():
    image = Modality("image", (6,), likelihoods.Normal(), networks.MLP((8,)), noise=GaussianNoise(1.0))
    judge, x = Discriminator(image, spectral=False), torch.randn(4, 6)
    assert torch.equal(judge.train()(x), judge(x))
    assert not torch.equal(image.apply_net(judge.net, x).squeeze(-1), judge(x))


def test_noise_suits_the_values():
    torch.manual_seed(0)
    grey, bits = torch.rand(500, 7), (torch.rand(500, 7) < 0.5).float()
    sd, inside, outside = grey.std(unbiased=False).item(), noise_like(grey, 0.5), noise_like(grey * 9 - 2, 1.0)
    assert (inside.sd, inside.bounds) == (pytest.approx(0.5 * sd), (0.0, 1.0))
    assert (outside.sd, outside.bounds) == (pytest.approx(9 * sd), None)
    assert noise_like(bits, 0.5).share == pytest.approx(0.25 * bits.var(unbiased=False).item())
    assert noise_like(bits, 9.0) == BitFlips(0.5)
    for values, level, said in ((torch.ones(5, 2), 1.0, "all alike"), (grey, 0.0, "level must be positive")):
        with pytest.raises(ValueError, match=said):
            noise_like(values, level)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GaussianNoise(0.0), "standard deviation must be positive"),
        (lambda: GaussianNoise(float("nan")), "standard deviation must be positive"),
        (lambda: GaussianNoise(1.0, (1, 0)), "a lower and a larger upper one"),
        (lambda: BitFlips(0.6), "at most a half"),
        (lambda: Modality("text", (5, 3), likelihoods.Normal(), networks.Recurrent(), noise=BitFlips(0.1)), "'text'"),
        (lambda: InputNoise()(torch.zeros(2), 0), "InputNoise spoils nothing"),
    ],
)
def test_what_is_no_noise_is_refused(make, said):
    with pytest.raises((ValueError, NotImplementedError), match=said):
        make()


def test_settings_give_modalities_noise_and_a_saved_recipe_keeps_it(tmp_path):
    splits = available()["digits"]()
    recipe = build_recipe(Settings("mvae", noise={"image": 1.0}, dim=2), splits)
    noise = {m.name: m.noise for m in recipe.modalities}
    assert noise["label"] is None
    assert isinstance(noise["image"], InputNoise)
    save(recipe, tmp_path / "m")
    again, rows = load(tmp_path / "m"), splits.test[:4]
    assert {m.name: m.noise for m in again.modalities} == noise
    for spoilt in (False, True):  # as loaded there is none
        looks = [again.guide.train(spoilt).posterior(rows.only("image")).base_dist.loc for _ in range(2)]
        assert torch.equal(*looks) != spoilt
    assert not load(tmp_path / "m").guide.training
    for bad, said in (({"sound": 1.0}, r"noise for \['sound'\]"), ({"label": 1.0}, "'label' holds labels")):
        with pytest.raises(ValueError, match=said):
            build_recipe(Settings("mvae", noise=bad), splits)
    with pytest.raises(ValueError, match="level of noise must be positive"):
        Settings("mvae", noise={"image": 0.0})


def test_a_guide_trained_with_noise_names_noisy_rows_better():
    splits = available()["digits"]()
    right = {}
    for noise in ({}, {"image": 2.0}):
        recipe = build_recipe(Settings("mopoe", noise=noise, dim=8, weights={"label": 10.0}), splits)
        fit(recipe, splits.train, 12, lr=3e-3, batch_size=64, seed=0, progress=False)
        found = classification(recipe.model, recipe.guide, splits.test, "label", [1.0])
        right[bool(noise)] = found[0]["accuracy"]
    assert right[True] > right[False] + 0.1, right


class Doubled(InputNoise):
    """Draws nothing, so that a loss can differ by what is seen alone."""

    def __call__(self, features, event_dim):
        return 2 * features


def test_with_noise_names_a_modality_that_is_not_there():
    image = Modality("image", (4,), likelihoods.Normal(), networks.MLP((8,)))
    with pytest.raises(ValueError, match="unknown modality 'image'; this batch has"):
        with_noise(image, Batch({"sound": torch.randn(5, 3)}), 1.0)


def test_encoders_of_every_kind_take_it_from_the_modality():
    """Experts, joint encoders, hierarchies, messages, pooling: with it another loss than without, in training only."""
    modalities = [
        Modality("image", (4,), likelihoods.Normal(), networks.MLP((8,))),
        Modality("sound", (3,), likelihoods.Normal(), networks.MLP((8,))),
    ]
    batch = Batch({"image": torch.randn(8, 4), "sound": torch.randn(8, 3)})
    for name in ("mvae", "jmvae_kl", "mmvae", "nexus", "mhvae_2020", "mhvae_2023", "cvae", "sum_pooling"):
        losses = []
        for noise, training in ((None, True), (Doubled(), True), (None, False), (Doubled(), False)):
            torch.manual_seed(0)
            recipe = getattr(variants, name)([replace(m, noise=noise) for m in modalities], 2)
            torch.manual_seed(1)
            losses.append(recipe.objective.train(training)(batch).item())
        assert losses[0] != losses[1], name
        assert losses[2] == losses[3], name
