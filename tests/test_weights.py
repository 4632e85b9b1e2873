"""Importance weights per datum: exact where the answer is known, and loud where a program breaks a convention."""

from __future__ import annotations

from math import exp, log

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, mixture_of_products, product_of_experts
from pyro_mm.handlers import given, in_subsets, particles
from pyro_mm.modality import encoders
from pyro_mm.objectives.multisample import log_mean_exp
from pyro_mm.weights import Run, log_weights, per_datum, replay, run, run_pair, total_log_weight
from tests.helpers.noise import WithNoise
from tests.helpers.oracle import LG, ExactGuide, MeanField

D = torch.float64
Normal = torch.distributions.Normal


def data_plate(batch: Batch, **kwargs: int) -> pyro.plate:
    return pyro.plate("data", kwargs.pop("size", len(batch)), dim=-1, **kwargs)


def program(body) -> nn.Module:
    """A function of `(batch)` as a module."""

    class Program(nn.Module):
        def forward(self, batch: Batch) -> None:
            body(batch)

    return Program()


@pytest.mark.parametrize("missing", [False, True])
def test_the_exact_posterior_gives_constant_weights(missing):
    """Every weight is p(x): the known test for particles and data that were laid out or reduced in the wrong order."""
    lg = LG()
    batch = lg.data(10, missing=missing)
    log_w = log_weights(lg.model(), ExactGuide(lg), batch, 7)
    assert log_w.shape == (7, 10)
    torch.testing.assert_close(log_w, lg.log_marginal(batch).expand(7, 10), rtol=0, atol=1e-12)


def test_weights_by_hand():
    lg = LG()
    batch = lg.data(10, missing=True)
    guide = Experts(encoders(lg.modalities(), 2), mixture_of_products).double()
    torch.manual_seed(1)
    z = guide.posterior(batch).expand((6, 1, 10)).rsample()
    pair = Run(
        replay(particles(lg.model(), 6), batch, {"z": z}),
        replay(particles(guide, 6), batch, {"z": z}),
    )
    truth = Normal(0.0, 1.0).log_prob(z[:, 0]).sum(-1) - guide.posterior(batch).log_prob(z[:, 0])
    for m in lg.dims:
        logp = Normal(z[:, 0] @ lg.w[m].T + lg.b[m], lg.s[m]).log_prob(batch.x[m]).sum(-1)
        truth = truth + torch.where(batch.mask[m], logp, 0.0)
    torch.testing.assert_close(total_log_weight(pair), truth, rtol=1e-12, atol=1e-11)
    assert (truth[:, 3] == 0).all()  # nothing present


def test_the_average_weight_is_the_likelihood():
    """Any guide that covers the posterior: E w = p(x), with the standard error that the weights themselves give."""
    lg = LG()
    batch = lg.data(6)
    log_w = log_weights(lg.model(), MeanField(lg, spread=1.3), batch, 40_000)
    w = (log_w - lg.log_marginal(batch)).exp()
    error = w.std(0) / len(w) ** 0.5
    assert ((w.mean(0) - 1).abs() < 4 * error).all()
    assert (error < 0.02).all()


def test_weights_are_differentiable():
    lg = LG()
    batch, guide = lg.data(3), MeanField(lg)
    noise = torch.randn(5, 1, 3, 2, dtype=D)
    log_w = log_weights(lg.model(), WithNoise(guide, z=noise), batch, 5)
    (found,) = torch.autograd.grad(log_w.sum(), guide.log_s)
    loc, scale = guide.moments(batch)
    z = loc + scale * noise[:, 0]
    by_hand = Normal(0.0, 1.0).log_prob(z).sum(-1) - Normal(loc, scale).log_prob(z).sum(-1)
    for m in lg.dims:
        by_hand = by_hand + Normal(z @ lg.w[m].T + lg.b[m], lg.s[m]).log_prob(batch.x[m]).sum(-1)
    torch.testing.assert_close(log_w, by_hand)
    torch.testing.assert_close(found, torch.autograd.grad(by_hand.sum(), guide.log_s)[0])


def test_views_under_a_plate_of_subsets_keep_their_dimension():
    lg = LG()
    batch = lg.data(5)
    groups = [("a",), ("b", "c"), ()]
    log_w = log_weights(in_subsets(lg.model(), groups), in_subsets(ExactGuide(lg), groups), batch, 4)
    assert log_w.shape == (4, 3, 5)
    truth = torch.stack([lg.log_marginal(batch.only(*g)) for g in groups])
    torch.testing.assert_close(log_w, truth.expand(4, 3, 5), rtol=0, atol=1e-12)
    guide = Experts(encoders(lg.modalities(), 2), product_of_experts).double()
    noise = torch.randn(4, 3, 5, 2, dtype=D)
    together = log_weights(in_subsets(lg.model(), groups), in_subsets(WithNoise(guide, z=noise), groups), batch, 4)
    for s, group in enumerate(groups[:2]):
        one = given(WithNoise(guide, z=noise[:, s : s + 1]), *group)
        torch.testing.assert_close(together[:, s], log_weights(given(lg.model(), *group), one, batch, 4))
    assert torch.equal(together[:, 2], torch.zeros(4, 5, dtype=D))


def test_training_weights_are_dropped_unless_asked_for():
    """poutine.scale (trap: left in, -39.57 for -29.53) and plate subsampling (-277 for -29)."""
    lg = LG()
    batch = lg.data(5, missing=True)
    truth = lg.log_marginal(batch).expand(3, 5)
    scaled = poutine.scale(lg.model(), scale=2.5), poutine.scale(ExactGuide(lg), scale=0.1)
    torch.testing.assert_close(log_weights(*scaled, batch, 3), truth, rtol=0, atol=1e-12)
    pair = run_pair(*scaled, batch)
    model = sum(per_datum(s) for s in pair.model.values())
    guide = sum(per_datum(s) for s in pair.guide.values())
    torch.testing.assert_close(total_log_weight(pair, scaled=True), (2.5 * model - 0.1 * guide)[:, 0])

    def subsampled(batch: Batch) -> None:
        mean, covariance = lg.posterior(batch)
        with data_plate(batch, size=5000, subsample_size=len(batch)):
            pyro.sample("z", dist.MultivariateNormal(mean, covariance))

    torch.testing.assert_close(log_weights(lg.model(), program(subsampled), batch, 3), truth, rtol=0, atol=1e-12)


def test_a_plate_of_pixels_inside_the_datum_is_summed():
    """At dim -2, where subsets would be, and at -4, outside of particles."""
    x = torch.randn(6, 3, dtype=D)  # six pixels, three data
    batch = Batch({"x": x.T})

    def model(batch: Batch, dim: int) -> None:
        with data_plate(batch):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            with pyro.plate("pixels", 6, dim=dim):
                value = batch.x["x"].T if dim == -2 else batch.x["x"].T.reshape(6, 1, 1, 3)
                pyro.sample("x", dist.Normal(z, 0.5), obs=value)

    def guide(batch: Batch) -> None:
        precision = 1 + 6 / 0.25
        with data_plate(batch):
            pyro.sample("z", dist.Normal(batch.x["x"].sum(-1) / 0.25 / precision, precision**-0.5))

    covariance = torch.ones(6, 6, dtype=D) + 0.25 * torch.eye(6, dtype=D)
    truth = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=D), covariance).log_prob(batch.x["x"])
    for dim in (-2, -4):
        log_w = log_weights(program(lambda b, dim=dim: model(b, dim)), program(guide), batch, 4)
        torch.testing.assert_close(log_w, truth.expand(4, 3), rtol=0, atol=1e-12)


def hidden_site(scale: float) -> nn.Module:
    """z, and u | z that no guide knows; x depends on both."""

    def body(batch: Batch) -> None:
        with data_plate(batch):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            u = pyro.sample("u", dist.Normal(z, scale))
            pyro.sample("x", dist.Normal(u, 0.5), obs=batch.x["x"])

    return program(body)


def test_a_latent_the_guide_lacks_is_drawn_from_the_model_and_cancels():
    """Left in the weight its density would add a bias that no number of draws removes."""
    batch = Batch({"x": torch.tensor([0.3, -1.0, 2.0], dtype=D)})

    def posterior(batch: Batch) -> None:
        total = 1 + 0.7**2 + 0.25
        with data_plate(batch):
            pyro.sample("z", dist.Normal(batch.x["x"] / total, (1 - 1 / total) ** 0.5))

    model, guide = hidden_site(0.7), program(posterior)
    pair = run_pair(particles(model, 4000), particles(guide, 4000), batch)
    assert pair.prior_sites == ("u",)
    assert pair.latents == ("z",)
    w = (total_log_weight(pair) - Normal(0.0, (1 + 0.7**2 + 0.25) ** 0.5).log_prob(batch.x["x"])).exp()
    assert ((w.mean(0) - 1).abs() < 4 * w.std(0) / 4000**0.5).all()


def test_masked_sites_add_nothing_and_keep_their_own_rows():
    lg = LG()
    batch = lg.data(5, missing=True)
    z = torch.randn(5, 2, dtype=D)
    site = replay(lg.model(), batch, {"z": z})["b"]
    assert torch.equal(per_datum(site)[0, 0], site.log_prob())
    assert (site.log_prob()[~batch.mask["b"]] == 0).all()


def plain(site: str = "z", outside: str | None = None, twice: bool = False, observed: bool = False) -> nn.Module:
    def body(batch: Batch) -> None:
        if outside:
            pyro.sample(outside, dist.Normal(0.0, 1.0))
        with data_plate(batch):
            pyro.sample(site, dist.Normal(0.0, 1.0), obs=torch.zeros(2) if observed else None)
            if twice:
                pyro.sample(site, dist.Normal(0.0, 1.0))

    return program(body)


@pytest.mark.parametrize(
    ("model", "guide", "words"),
    [
        (plain(outside="theta"), plain(outside="theta"), ["'theta'", "outside the plate 'data'", "dim -1"]),
        (plain(), plain("index"), ["'index' is not in the model", "['z']"]),
        (plain(), plain(observed=True), ["guide site 'z' is observed"]),
        (plain(observed=True), plain(), ["'z'", "observed in the model"]),
        (plain(twice=True), plain(), ["'z' occurs twice"]),
        (plain(), plain(twice=True), ["'z' occurs twice"]),
    ],
    ids=["outside", "guide-only", "observed-guide", "observed-model", "twice-model", "twice-guide"],
)
def test_programs_that_break_a_convention_are_named_site_by_site(model, guide, words):
    with pytest.raises(ValueError) as error:
        log_weights(model, guide, Batch({"x": torch.zeros(2)}), 3)
    assert [w for w in words if w not in str(error.value)] == [], str(error.value)


def test_a_site_of_other_shapes_is_refused_with_both():
    def guide(batch: Batch) -> None:
        with data_plate(batch):
            pyro.sample("z", dist.Normal(torch.zeros(2, 4), 1.0).to_event(1))

    def model(batch: Batch) -> None:
        with data_plate(batch):
            pyro.sample("z", dist.Normal(torch.zeros(2, 3), 1.0).to_event(1))

    with pytest.raises((ValueError, RuntimeError), match="4"):
        log_weights(program(model), program(guide), Batch({"x": torch.zeros(2)}), 3)


def test_another_plate_at_the_data_dimension_is_no_data_plate():
    def body(batch: Batch) -> None:
        with pyro.plate("pixels", 2, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"outside the plate 'data'.*pixels"):
        log_weights(program(body), program(body), Batch({"x": torch.zeros(2)}), 3)


def test_deterministic_sites_are_notes_not_densities():
    """In the guide too, and outside the data plate."""

    def noted(batch: Batch) -> None:
        pyro.deterministic("count", torch.tensor(2.0))
        with data_plate(batch):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)

    torch.testing.assert_close(
        log_weights(program(noted), program(noted), Batch({"x": torch.zeros(2)}), 3), torch.zeros(3, 2)
    )


def test_an_auxiliary_flag_does_not_excuse_a_guide_only_site():
    def guide(batch: Batch) -> None:
        with data_plate(batch):
            pyro.sample("index", dist.Categorical(torch.ones(3)), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'index' is not in the model"):
        log_weights(plain(), program(guide), Batch({"x": torch.zeros(2)}), 3)


def test_running_a_pair_changes_neither_the_batch_nor_the_global_store():
    lg = LG()
    batch = lg.data(5, missing=True)
    before = {m: (v.clone(), batch.mask[m].clone()) for m, v in batch.x.items()}
    log_weights(lg.model(), MeanField(lg), batch, 3)
    assert list(batch.x) == list(before)
    for m, (x, mask) in before.items():
        assert torch.equal(batch.x[m], x)
        assert torch.equal(batch.mask[m], mask)
    assert len(pyro.get_param_store()) == 0


def test_reducing_over_draws():
    log_w = torch.tensor([[0.0, -800.0], [2.0, -801.0]], dtype=D)
    truth = torch.tensor([log((1 + exp(2)) / 2), -800 + log((1 + exp(-1)) / 2)], dtype=D)
    torch.testing.assert_close(log_mean_exp(log_w), truth)
    site = run(particles(ExactGuide(LG()), 2), LG().data(3))["z"]
    assert per_datum(site).shape == (2, 1, 3)
