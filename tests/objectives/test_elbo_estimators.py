"""Pyro's estimators in an objective, and what an objective refuses."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import nn

from pyro_mm import objectives
from pyro_mm.batch import Batch
from pyro_mm.guides import mixture_of_experts
from pyro_mm.handlers import given
from pyro_mm.objectives import elbo, nll
from tests.helpers.noise import WithNoise
from tests.helpers.objectives import pair
from tests.helpers.oracle import assert_same_gradients, gradients
from tests.helpers.programs import BottomUp, Layers

D = torch.float64
Normal = torch.distributions.Normal


class Letters(nn.Module):
    """y ~ Categorical;  x | y ~ N(centre_y, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.4, 0.5], dtype=D))
        self.centres = nn.Parameter(torch.tensor([-2.0, 0.0, 3.0], dtype=D))

    @config_enumerate
    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.Normal(self.centres[y], 1.0), obs=batch.x["x"])


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 3).double()

    @config_enumerate
    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("y", dist.Categorical(logits=self.net(batch.x["x"].unsqueeze(-1))))


def test_an_enumerating_estimator_passes_through_and_is_exact():
    model, guide, batch = Letters(), Reader(), Batch({"x": torch.randn(6, dtype=D)})
    loss = elbo(model, guide, estimator=TraceEnum_ELBO(max_plate_nesting=1))(batch)
    log_q = guide.net(batch.x["x"].unsqueeze(-1)).log_softmax(-1)
    log_p = model.logits.log_softmax(-1) + Normal(model.centres, 1.0).log_prob(batch.x["x"].unsqueeze(-1))
    truth = (log_q.exp() * (log_q - log_p)).sum() / 6
    programs = nn.ModuleList([model, guide])
    torch.testing.assert_close(loss, truth)
    assert_same_gradients(gradients(loss, programs), gradients(truth, programs))
    with torch.no_grad():  # as in validation, where TraceEnum_ELBO by itself would raise
        value = elbo(model, guide, estimator=TraceEnum_ELBO(max_plate_nesting=1))(batch)
    torch.testing.assert_close(value, truth.detach())
    assert not value.requires_grad


def test_an_estimator_sees_weights_beta_and_counted_rows():
    lg, model, guide = pair()
    batch = lg.data(10, missing=True)
    quiet = WithNoise(guide, z=torch.randn(10, 2, dtype=D))
    how = {"beta": 0.5, "weights": {"b": 3.0}}
    for p, q in ((model, quiet), (given(model, "b"), given(quiet, "a"))):
        through = elbo(p, q, estimator=Trace_ELBO(max_plate_nesting=1), **how)
        torch.testing.assert_close(through(batch), elbo(p, q, **how)(batch), rtol=1e-12, atol=1e-12)
        assert through.report() == {"elbo": pytest.approx(-through(batch).item())}


def test_an_estimator_that_cannot_be_used_is_refused_at_once():
    _, model, guide = pair()
    with pytest.raises(TypeError, match=r"RenyiELBO has no differentiable_loss: use iwae\(\) or dreg\(\)"):
        elbo(model, guide, estimator=RenyiELBO(num_particles=2))
    for how in ({"particles": 3}, {"analytic_kl": True}, {"stl": True}):
        with pytest.raises(ValueError, match="brings its own particles and KL"):
            elbo(model, guide, estimator=Trace_ELBO(), **how)


@pytest.mark.parametrize("how", [{}, {"analytic_kl": True}, {"stl": True}, {"particles": 2}], ids=str)
@pytest.mark.parametrize("objective", [elbo, nll])
def test_a_site_without_reparameterisation_is_refused(objective, how):
    """Its gradient through the likelihood would be missing, closed-form KL or not."""
    if objective is nll and how != {"particles": 2}:
        how = {}
    with pytest.raises(ValueError, match=r"guide site 'y' \(Categorical\) is not reparameterised"):
        objective(Letters(), Reader(), **how)(Batch({"x": torch.randn(6, dtype=D)}))


def test_a_closed_form_is_refused_for_a_bottom_up_guide():
    """Trap 2: Pyro's mean-field ELBO only warns, and its loss is far too high."""
    model, guide, batch = Layers(), BottomUp(), Batch({"x": torch.randn(400, dtype=D)})
    with pytest.raises(ValueError, match="analytic KL is not valid at site 'z': the model draws 'u' before it"):
        elbo(model, guide, analytic_kl=True)(batch)
    stock = TraceMeanField_ELBO(max_plate_nesting=1)
    with torch.no_grad():
        true = torch.stack([elbo(model, guide)(batch) for _ in range(30)])
        with pytest.warns(UserWarning, match="mean field"):
            wrong = torch.stack([stock.differentiable_loss(model, guide, batch) / 400 for _ in range(30)])
    bound = -model.log_marginal(batch.x["x"]).mean().item()
    error = true.std().item() / 30**0.5
    assert bound < true.mean().item() + 4 * error
    assert wrong.mean().item() > true.mean().item() + 0.1


def test_counts_and_terms_that_make_no_sense():
    lg, model, guide = pair()
    with pytest.raises(ValueError, match="particles must be at least 1, got 0"):
        elbo(model, guide, particles=0)

    class Empty(nn.Module):
        def forward(self, batch: Batch) -> None:
            pass

    with pytest.raises(ValueError, match="has no terms"):
        elbo(Empty(), Empty())(lg.data(2))


@pytest.mark.parametrize("make", ["elbo", "nll", "componentwise_elbo", "iwae", "dreg", "looser"])
def test_a_weight_of_an_unknown_modality_is_refused(make: str) -> None:
    """Also through verbs, which show a program less than it generates."""
    _, model, guide = pair(mixture_of_experts, {"a": 2, "b": 2})
    k = {"k": 2} if make in ("iwae", "dreg", "looser") else {}
    build = getattr(objectives, make)
    with pytest.raises(ValueError, match=r"weights for \['lable'\], but Joint generates a, b"):
        build(model, guide, weights={"a": 2.0, "lable": 50.0}, **k)
    build(model, guide, weights={"b": 2.0}, **k)
    if make == "elbo":
        build(given(model, "a"), given(guide, "a"), weights={"b": 2.0})
        with pytest.raises(ValueError, match="lable"):
            build(given(model, "a"), guide, weights={"lable": 2.0})
