"""Stock Pyro SVI: the way that trains nothing, and the way that trains everything."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_mm.models.priors import LearntScale
from pyro_mm.objectives import elbo
from pyro_mm.training import stock_trains_nothing, svi
from tests.helpers.training import data, pair, same, values


def names(model, guide):
    modules = {"model": model, "guide": guide}
    return [f"{k}.{n}" for k, m in modules.items() for n, _ in m.named_parameters()]


def test_stock_svi_on_plain_modules_trains_nothing():
    """Trap 1: no error, no warning, no training."""
    model, guide = pair()
    before = values(model, guide)
    with pyro.get_param_store().scope():
        stock = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(max_plate_nesting=3))
        losses = [stock.step(data()) for _ in range(20)]
        assert len(pyro.get_param_store()) == 0
    assert same(before, values(model, guide)) and all(loss > 0 for loss in losses)
    assert stock_trains_nothing(model, guide, data()) == names(model, guide)


def test_svi_equals_adam_on_the_sum_over_rows():
    (model, guide), (model2, guide2) = pair(), pair()
    stock = svi(model, guide, pyro.optim.Adam({"lr": 1e-2}))
    pyro.set_rng_seed(3)
    losses = [stock.step(data()) for _ in range(5)]
    objective = Trace_ELBO(max_plate_nesting=3)
    optimiser = torch.optim.Adam([*model2.parameters(), *guide2.parameters()], 1e-2)
    pyro.set_rng_seed(3)
    for expected in losses:
        optimiser.zero_grad()
        loss = objective.differentiable_loss(model2, guide2, data())
        loss.backward()
        optimiser.step()
        assert loss.item() == pytest.approx(expected, rel=1e-6)
    for n, t in values(model2, guide2).items():
        torch.testing.assert_close(values(model, guide)[n], t, rtol=1e-5, atol=1e-6)
    assert len(pyro.get_param_store()) == 0


def test_evaluate_loss_moves_nothing_and_losses_are_exchangeable():
    model, guide = pair()
    before = values(model, guide)
    stock = svi(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO(max_plate_nesting=3))
    pyro.set_rng_seed(0)
    value = stock.evaluate_loss(data())
    assert same(before, values(model, guide))
    pyro.set_rng_seed(0)
    assert value == pytest.approx(22 * elbo(model, guide, analytic_kl=True)(data()).item(), rel=1e-5)


def test_a_parameter_whose_memory_is_not_contiguous_is_trained():
    """`pyro.module` would copy it and train the copy."""
    model, guide = pair()
    layer = guide.encoders["image"].net[1]
    layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    assert not layer.weight.is_contiguous()
    before = layer.weight.detach().clone()
    svi(model, guide, pyro.optim.Adam({"lr": 1e-2})).step(data())
    assert (layer.weight != before).float().mean() > 0.5


def test_a_shared_module_is_stepped_once():
    """A learnt prior in both programs: one SGD step, not two."""
    model, guide = pair()
    prior = LearntScale(2, dist.Normal)
    prior.raw.data.copy_(torch.tensor([0.3, -0.2]))
    model.prior = guide.prior = prior
    guide.fuse = _with_prior(guide.fuse)
    before = prior.raw.detach().clone()
    pyro.set_rng_seed(3)
    Trace_ELBO(max_plate_nesting=3).differentiable_loss(model, guide, data()).backward()
    gradient = prior.raw.grad.clone()
    prior.raw.grad = None
    pyro.set_rng_seed(3)
    svi(model, guide, pyro.optim.SGD({"lr": 1e-3})).step(data())
    torch.testing.assert_close(prior.raw.detach(), before - 1e-3 * gradient)
    assert gradient.abs().min() > 0


def _with_prior(fuse):
    def fused(loc, scale, mask, prior):
        return fuse(loc, scale + 0 * prior[1], mask)

    return fused


class PyroPair(PyroModule):
    """Conjugate: z ~ N(0, 1), x ~ N(z, s).  Both programs call their parameters `loc` and `scale`."""

    def __init__(self, value):
        super().__init__()
        self.scale = PyroParam(torch.tensor(value), dist.constraints.positive)
        self.shift = nn.Linear(1, 1)


class PyroModel(PyroPair):
    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Normal(self.shift(z.unsqueeze(-1)).squeeze(-1), self.scale), obs=batch.x["image"][:, 0]
            )


class PyroGuide(PyroPair):
    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(self.shift(batch.x["image"][:, :1]).squeeze(-1), self.scale))


def pyro_pair():
    model, guide = PyroModel(1.0), PyroGuide(2.0)
    return model, guide, values(model, guide)


def test_module_local_pyro_modules():
    """Trap 1 again: stock SVI raises AttributeError."""
    with pyro.settings.context(module_local_params=True):
        model, guide, before = pyro_pair()
        with pyro.get_param_store().scope(), pytest.raises(AttributeError):
            SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(data())
        assert stock_trains_nothing(model, guide, data()) == names(model, guide)
        svi(model, guide, pyro.optim.Adam({"lr": 1e-2})).step(data())
    assert [n for n, t in values(model, guide).items() if not torch.equal(t, before[n])] == list(before)
    assert model.scale.item() != guide.scale.item() and len(pyro.get_param_store()) == 0


def test_global_pyro_modules_with_one_name_for_two_parameters():
    """Stock SVI makes `scale` of both programs one, and never trains the model's."""
    model, guide, before = pyro_pair()
    found = stock_trains_nothing(model, guide, data())
    assert found == ["model.scale_unconstrained", "model.shift.weight", "model.shift.bias"]
    assert model.scale_unconstrained is not guide.scale_unconstrained and same(before, values(model, guide))
    with pytest.raises(ValueError, match=r"both have parameters \['scale'\]"):
        svi(model, guide, pyro.optim.Adam({"lr": 1e-2})).step(data())


def test_global_pyro_modules_with_distinct_names():
    model, guide, before = PyroModel(1.0), pair()[1], None
    guide.encoders = nn.ModuleDict({"image": guide.encoders["image"]})
    model.forward = lambda batch: _two_dimensional(model, batch)
    before = values(model, guide)
    svi(model, guide, pyro.optim.Adam({"lr": 1e-2})).step(data())
    assert [n for n, t in values(model, guide).items() if not torch.equal(t, before[n])] == list(before)


def _two_dimensional(model, batch):
    with pyro.plate("data", len(batch), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(model.shift(z[..., :1]).squeeze(-1), model.scale), obs=batch.x["image"][:, 0])


def test_autoguides_train_from_their_second_step():
    """Their parameters exist only after the first call."""

    def model(batch):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch.x["image"][:, 0])

    with pyro.settings.context(module_local_params=True):
        guide = AutoNormal(model)
        stock = svi(model, guide, pyro.optim.Adam({"lr": 5e-3}))
        for _ in range(1000):
            stock.step(data())
    x = data().x["image"][:, 0]
    assert guide.locs.z.item() == pytest.approx((x.sum() / (1 + len(x))).item(), abs=0.08)
    assert guide.scales.z.item() == pytest.approx((1 + len(x)) ** -0.5, rel=0.15)


def test_frozen_parameters_and_a_programs_own_param():
    model, guide = pair()
    model.requires_grad_(False)
    before = values(model)

    class WithParam(nn.Module):
        def forward(self, batch):
            factor = pyro.param("factor", torch.ones(()))
            with pyro.poutine.scale(scale=factor):
                guide(batch)

    stock = svi(model, WithParam(), pyro.optim.Adam({"lr": 1e-2}))
    stock.step(data())
    stock.step(data())
    assert same(before, values(model)) and stock.store["params"]["factor"].item() != 1.0


def test_plain_functions_have_no_parameters_to_find():
    with pytest.raises(TypeError, match="plain functions"):
        svi(lambda batch: None, lambda batch: None, pyro.optim.Adam({"lr": 1e-2}))


def test_detection_leaves_streams_and_store_alone():
    model, guide = pair()
    state = torch.get_rng_state()
    with pyro.get_param_store().scope():
        pyro.param("mine", torch.ones(1))
        stock_trains_nothing(model, guide, data())
        assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.equal(state, torch.get_rng_state())


class Registered(nn.Module):
    """A program that follows Pyro's documented way."""

    def __init__(self, program):
        super().__init__()
        self.program = program

    def forward(self, batch):
        pyro.module("program", self.program)
        return self.program(batch)


def test_registered_programs_pass_the_detection():
    model, guide = pair()
    found = stock_trains_nothing(model, Registered(guide), data())
    assert found == [n for n in names(model, guide) if n.startswith("model")]
