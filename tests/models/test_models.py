"""Generative programs against densities written out by hand."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_mm import likelihoods, networks
from pyro_mm.batch import Batch
from pyro_mm.handlers import in_subsets, particles
from pyro_mm.modality import Modality, decoders
from pyro_mm.models import Conditional, Joint, LearntScale, StandardNormal
from pyro_mm.models.priors import as_prior
from pyro_mm.weights import replay, run
from tests.helpers.oracle import LG, PATTERNS

D = torch.float64
Normal = torch.distributions.Normal


def test_joint_is_prior_times_likelihoods_of_what_is_present():
    lg = LG()
    batch, z = lg.data(5, missing=True), torch.randn(5, 2, dtype=D)
    sites = replay(lg.model(), batch, {"z": z})
    assert list(sites) == ["z", "a", "b", "c"]
    torch.testing.assert_close(sites["z"].log_prob(), Normal(0.0, 1.0).log_prob(z).sum(-1))
    for i, m in enumerate(lg.dims):
        truth = Normal(z @ lg.w[m].T + lg.b[m], lg.s[m]).log_prob(batch.x[m]).sum(-1)
        torch.testing.assert_close(sites[m].log_prob(), torch.where(PATTERNS[:, i], truth, 0.0))
        assert sites[m].observed
        assert sites[m].value is batch.x[m]


def test_particles_and_subsets_are_scored_one_by_one():
    lg = LG()
    batch = lg.data(5, missing=True)
    z = torch.randn(4, 2, 5, 2, dtype=D)
    groups = [("a", "c"), ("b",)]
    sites = replay(particles(in_subsets(lg.model(), groups), 4), batch, {"z": z})
    for k in range(4):
        for s, group in enumerate(groups):
            alone = replay(lg.model(), batch.only(*group), {"z": z[k, s]})
            for m in lg.dims:
                torch.testing.assert_close(sites[m].log_prob()[k, s], alone[m].log_prob())


def test_a_modality_the_batch_lacks_is_scored_nowhere():
    lg = LG()
    whole = lg.data(5)
    less = Batch({m: whole.x[m] for m in ("a", "c")})
    z = torch.randn(5, 2, dtype=D)
    sites = replay(lg.model(), less, {"z": z})
    assert not sites["b"].observed
    assert torch.equal(sites["b"].log_prob(), torch.zeros(5, dtype=D))
    torch.testing.assert_close(sites["a"].log_prob(), replay(lg.model(), whole, {"z": z})["a"].log_prob())


def test_data_of_another_shape_name_the_modality_and_both_shapes():
    batch = LG().data(3)
    batch.x["b"] = torch.zeros(3, 2, dtype=D)
    with pytest.raises(ValueError, match=r"modality 'b': data have event shape \(2,\), the decoder gives \(3,\)"):
        run(LG().model(), batch)


def test_samples_of_the_model_have_its_moments():
    """x_a marginally: mean b, covariance W W' + s^2 I."""
    lg = LG()
    n = 20_000
    batch = Batch.missing(lg.modalities(), n)
    with torch.no_grad():
        x = run(pyro.poutine.uncondition(lg.model()), batch)["a"].value.double()
    truth = lg.w["a"] @ lg.w["a"].T + lg.s["a"] ** 2 * torch.eye(4, dtype=D)
    error = 4.5 * (truth.diagonal() / n).sqrt()
    assert ((x.mean(0) - lg.b["a"]).abs() < error).all()
    spread = (truth.diagonal().unsqueeze(0) * truth.diagonal().unsqueeze(1) + truth**2).sqrt()
    assert ((x.T.cov() - truth).abs() < 4.5 * spread / n**0.5).all()


def test_conditional_scores_its_target_given_the_rest():
    target = Modality("x", (2,), likelihoods.Normal(0.5), networks.Linear())
    given = (
        Modality("y", (), likelihoods.Categorical(3), networks.Linear()),
        Modality("v", (2,), likelihoods.Normal(), networks.Linear()),
    )
    model = Conditional(target, given, 2, width=4).double()
    x = {"x": torch.randn(4, 2, dtype=D), "y": torch.tensor([0, 2, 1, 1]), "v": torch.randn(4, 2, dtype=D)}
    keep = {"x": [1, 1, 0, 1], "y": [1, 0, 1, 1], "v": [1, 1, 1, 1]}
    batch = Batch(x, {m: torch.tensor(v, dtype=torch.bool) for m, v in keep.items()})
    z = torch.randn(5, 1, 4, 2, dtype=D)
    sites = replay(particles(model, 5), batch, {"z": z})
    assert list(sites) == ["z", "x"]
    assert model.names == ("x",)
    assert model.conditioned_on == ("y", "v")
    features = torch.cat(
        [model.condition["y"].net(torch.eye(3, dtype=D)[x["y"]]), model.condition["v"].net(x["v"])], -1
    )
    joined = torch.cat([z[:, 0], features.expand(5, 4, 8)], -1)
    truth = Normal(model.decoder.net(joined.reshape(20, -1)).reshape(5, 4, 2), 0.5).log_prob(x["x"]).sum(-1)
    scored = torch.tensor([True, False, False, True])
    torch.testing.assert_close(sites["x"].log_prob()[:, 0], torch.where(scored, truth, 0.0))


def test_priors():
    z = torch.randn(6, 3)
    assert torch.equal(StandardNormal(3)().log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1))
    learnt = LearntScale(3)
    with torch.no_grad():
        learnt.raw.copy_(torch.tensor([0.0, 1.0, -2.0]))
    scale = learnt.raw.exp() / learnt.raw.exp().sum() * 3
    assert scale.mean().item() == pytest.approx(1)
    torch.testing.assert_close(learnt().log_prob(z), torch.distributions.Laplace(0.0, scale).log_prob(z).sum(-1))
    learnt().log_prob(z).sum().backward()
    assert (learnt.raw.grad != 0).all()
    assert isinstance(LearntScale(2, dist.Normal)().base_dist, dist.Normal)


def test_a_prior_is_a_dimension_or_a_module_and_follows_its_model():
    prior = LearntScale(2)
    assert as_prior(prior) is prior
    model = Joint(decoders(LG().modalities(), 2), 2).double()
    assert model.prior().base_dist.loc.dtype is D
    assert model.names == ("a", "b", "c")
    assert not any("prior" in k for k in model.state_dict())  # N(0, I) has nothing to save


def test_any_module_is_a_decoder():
    """The convention asks for a distribution, not for our classes."""

    class Own(nn.Module):
        def forward(self, z):
            return dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1)

    batch = Batch({"a": torch.zeros(3, 1)})
    z = torch.randn(3, 2)
    torch.testing.assert_close(
        replay(Joint({"a": Own()}, 2), batch, {"z": z})["a"].log_prob(), Normal(z.sum(-1), 1.0).log_prob(torch.zeros(3))
    )


def test_a_conditional_model_may_have_a_prior_of_its_own():
    target, given = (Modality(m, (2,), likelihoods.Normal(0.5), networks.Linear()) for m in "xy")
    model = Conditional(target, (given,), LearntScale(3), width=4)
    batch = Batch({"x": torch.randn(5, 2), "y": torch.randn(5, 2)})
    z = torch.randn(5, 3)
    sites = replay(model, batch, {"z": z})
    torch.testing.assert_close(sites["z"].log_prob(), torch.distributions.Laplace(0.0, 1.0).log_prob(z).sum(-1))
    joined = torch.cat([z, model.condition["y"].net(batch.x["y"])], -1)
    truth = Normal(model.decoder.net(joined), 0.5).log_prob(batch.x["x"]).sum(-1)
    torch.testing.assert_close(sites["x"].log_prob(), truth)
