"""Layers in bfloat16: what is computed in it, what is not, and what is said of it."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.overrides import _get_current_function_mode_stack

from pyro_mm import log_conditional, log_conditional_difference, log_marginal
from pyro_mm.batch import Batch
from pyro_mm.evaluation import Evidence, GradientSteps
from pyro_mm.half import HalfLayers, together

PIXELS, ROWS = 200, 30


def active() -> bool:
    return any(isinstance(m, HalfLayers) for m in _get_current_function_mode_stack())


class Watched(nn.Linear):
    """Writes down whether it was run in bfloat16, and whether with gradients."""

    def __init__(self, *size: int) -> None:
        super().__init__(*size)
        self.seen: set[tuple[bool, bool]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add((active(), torch.is_grad_enabled()))
        return super().forward(x)


class Model(nn.Module):
    """z ~ N(0, I_4);  x_i ~ Bernoulli,  y ~ Categorical, each by one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.pixels, self.classes = Watched(4, 64), nn.Linear(64, PIXELS), nn.Linear(64, 5)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            h = self.hidden(z).tanh()
            pyro.sample("x", dist.Bernoulli(logits=4 * self.pixels(h)).to_event(1), obs=batch.x["x"])
            pyro.sample("y", dist.Categorical(logits=4 * self.classes(h)), obs=batch.x["y"])


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Watched(PIXELS, 4)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(0.3 * self.net(batch.x["x"] - 0.5), 0.9).to_event(1))


@pytest.fixture
def made() -> tuple[Model, Guide, Batch]:
    torch.manual_seed(1)
    model, guide = Model(), Guide()
    batch = Batch({"x": torch.rand(ROWS, PIXELS).round(), "y": torch.randint(5, (ROWS,))})
    return model, guide, batch


def test_layers_alone_are_computed_in_it() -> None:
    x, w, b = torch.randn(7, 30), torch.randn(5, 30), torch.randn(5)
    image, kernel = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with HalfLayers():
        layer, product, convolved = linear(x, w, b), x @ w.T, conv2d(image, kernel, padding=1)
        double, named = linear(x.double(), w.double()), linear(input=x, weight=w, bias=b)
    half = linear(x.bfloat16(), w.bfloat16(), b.bfloat16())
    assert layer.dtype == torch.float32 and torch.equal(layer, half.float())
    assert torch.equal(named, layer)
    assert convolved.dtype == torch.float32
    assert torch.equal(convolved, conv2d(image.bfloat16(), kernel.bfloat16(), padding=1).float())
    assert torch.equal(product, x @ w.T), "products outside of layers are part of densities"
    assert torch.equal(double, linear(x.double(), w.double()))
    assert (layer - linear(x, w, b)).abs().max() > 1e-4


@pytest.mark.parametrize("refine", [None, GradientSteps(5)])
def test_the_change_is_small_and_said(made: tuple[Model, Guide, Batch], refine: Any) -> None:
    """Of the same noise: the estimates differ by what `rounding` says of the first rows, hundredths of a nat."""
    model, guide, batch = made
    full, half = (log_marginal(model, guide, batch, 500, refine=refine, seed=0, bf16=b) for b in (False, True))
    change = half.estimate - full.estimate
    assert 0 < change.abs().max() < 0.5 and abs(change.mean()) < 0.05
    assert full.rounding is None and half.rounding is not None
    mean, most, n = half.rounding
    assert n == 16 and 0 < most < 0.5
    assert abs(mean - change[:16].mean().item()) < 0.05  # by other draws
    assert f"bf16 layers: {mean:+.3f} on average, at most {most:.3f} (16 rows)" in repr(half)
    assert half.summary()["rounding"] == half.rounding and "rounding" not in full.summary()


class Still(nn.Module):
    """x ~ Bernoulli whose logits are a layer of constants: whatever z is drawn, log p(x) is known."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, PIXELS)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            logits = self.net(torch.linspace(-3, 3, 8)).expand(len(batch), -1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=batch.x["x"])


def prior(batch: Batch) -> None:
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))


def test_the_change_is_that_of_the_layers(made: tuple[Model, Guide, Batch]) -> None:
    """By hand, where the draws do not matter; and a program wholly in bfloat16 would be wrong by much more."""
    model, x = Still(), made[2].x["x"]
    batch, inputs = Batch({"x": x}), torch.linspace(-3, 3, 8)
    logits = model.net(inputs).detach()
    near = linear(inputs.bfloat16(), model.net.weight.bfloat16(), model.net.bias.bfloat16()).detach()
    exact, half, whole = (dist.Bernoulli(logits=v).log_prob(x.to(v)).sum(-1) for v in (logits, near.float(), near))
    found = log_marginal(model, prior, batch, 50, seed=0, bf16=True)
    torch.testing.assert_close(found.estimate, half.double(), rtol=0, atol=2e-4)
    change = half[:16] - exact[:16]
    assert found.rounding == (
        pytest.approx(change.mean().item(), abs=1e-4),
        pytest.approx(change.abs().max().item(), abs=1e-4),
        16,
    )
    assert (whole.float() - half).abs().mean() > 5 * (half - exact).abs().mean()


def test_what_cannot_be_refined_is_compared_as_it_is() -> None:
    """With a target, proposals are refined where they can be; a discrete latent of the guide cannot."""

    class Choice(nn.Module):
        def __init__(self, observed: bool) -> None:
            super().__init__()
            self.net, self.observed = nn.Linear(3, PIXELS), observed

        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                c = pyro.sample("c", dist.OneHotCategorical(torch.ones(3) / 3))
                if self.observed:
                    pyro.sample("x", dist.Bernoulli(logits=self.net(c)).to_event(1), obs=batch.x["x"])

    batch = Batch({"x": torch.rand(20, PIXELS).round()})
    found = log_marginal(Choice(True), Choice(False), batch, 500, target_se=0.3, seed=0, bf16=True)
    assert found.rounding is not None and found.rounding[2] == 16


def test_only_the_models_draws_are_computed_in_it(made: tuple[Model, Guide, Batch]) -> None:
    """Not the guide, whose density must be that of what it draws, nor a refiner's gradients."""
    model, guide, batch = made
    log_marginal(model, guide, batch, 100, refine=GradientSteps(3), seed=0, bf16=True)
    assert (True, False) in model.hidden.seen and (False, True) in model.hidden.seen
    assert (True, True) not in model.hidden.seen
    assert all(not half for half, _ in guide.net.seen)
    assert not active()


def test_conditionals_and_targets_say_so_too(made: tuple[Model, Guide, Batch]) -> None:
    model, guide, batch = made
    model.names = ("x", "y")  # type: ignore[assignment]
    found: list[Evidence] = [
        log_marginal(model, guide, batch, target_se=0.2, seed=0, bf16=True),
        log_conditional(model, guide, batch, "y", "x", 300, seed=0, bf16=True),
    ]
    assert all(e.rounding is not None and 0 < e.rounding[1] < 0.5 and e.rounding[2] == 16 for e in found)


def test_a_differences_rounding_is_bounded_by_its_parts(made: tuple[Model, Guide, Batch]) -> None:
    class Masked(Model):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
                h = self.hidden(z).tanh()
                with pyro.poutine.mask(mask=batch.mask["x"]):
                    pyro.sample("x", dist.Bernoulli(logits=self.pixels(h)).to_event(1), obs=batch.x["x"])
                with pyro.poutine.mask(mask=batch.mask["y"]):
                    pyro.sample("y", dist.Categorical(logits=self.classes(h)), obs=batch.x["y"])

    model, (_, guide, batch) = Masked(), made
    whole = log_conditional_difference(model, guide, batch, "y", "x", 200, seed=3, bf16=True)
    both = log_marginal(model, guide, batch, 200, seed=3, bf16=True)
    part = log_marginal(model, guide, batch.only("x"), 200, seed=4, bf16=True)
    assert whole.rounding and both.rounding and part.rounding
    assert whole.rounding[0] == pytest.approx(both.rounding[0] - part.rounding[0])
    assert whole.rounding[1] == pytest.approx(both.rounding[1] + part.rounding[1])


def test_parts_are_put_together() -> None:
    assert together([None, None]) is None
    assert together([(0.1, 0.3, 10), None, (-0.2, 0.2, 5)]) == (pytest.approx(0.0), 0.3, 15)
