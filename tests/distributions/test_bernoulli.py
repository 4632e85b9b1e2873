"""Bernoulli, binomial and continuous Bernoulli from logits: torch's values, exact derivatives, and what costs less."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pyro_mm.distributions import Bernoulli, Binomial, ContinuousBernoulli, Normal, log_prob_of

D = torch.float64
EXTREMES = torch.tensor([-200.0, -88.8, -30.0, -3.0, -1e-3, 0.0, 1e-5, 0.05, 0.5, 17.0, 60.0, 104.0, 1000.0], dtype=D)


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    return Bernoulli(logits=logits, validate_args=False).log_prob(x)


def binomial(logits: Tensor, x: Tensor) -> Tensor:
    return Binomial(16, logits=logits, validate_args=False).log_prob(16 * x)


def continuous(logits: Tensor, x: Tensor) -> Tensor:
    return ContinuousBernoulli(logits=logits, validate_args=False).log_prob(x)


KINDS = [bernoulli, binomial, continuous]


def closed_form(kind, logits: Tensor, x: Tensor) -> Tensor:
    """By softplus in float64, which torch computes exactly, and log-factorials."""
    plain = x * logits - torch.nn.functional.softplus(logits, threshold=1e9)
    if kind is bernoulli:
        return plain
    if kind is binomial:
        n = torch.tensor(17.0, dtype=D)
        return 16 * plain + n.lgamma() - (16 * x + 1).lgamma() - (17 - 16 * x).lgamma()
    return plain + torch.where(logits.abs() < 1e-2, 2 + logits**2 / 6, logits / (logits / 2).tanh()).log()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "close"), [(D, 1e-11), (torch.float32, 2e-7)])
def test_values_at_any_logit(kind, dtype: torch.dtype, close: float) -> None:
    x = torch.tensor([[0.0], [0.25], [1.0]], dtype=D)
    logits = torch.tensor([z for z in EXTREMES if abs(z) < 700], dtype=D)  # softplus overflows beyond
    found, exact = kind(logits.to(dtype), x.to(dtype)).double(), closed_form(kind, logits.to(dtype).double(), x)
    assert (found - exact).abs().le(close * (1 + logits.abs()) * (16 if kind is binomial else 1)).all()
    assert found.dtype == D and kind(EXTREMES.to(dtype), x.to(dtype)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_scored_to_a_ten_thousandth_of_a_nat(kind) -> None:
    """The sum of 784 roundings, in float32, as good as torch's own."""
    torch.manual_seed(0)
    logits, x = 8 * torch.randn(50, 784, dtype=D), torch.rand(50, 784, dtype=D).round()
    exact = kind(logits, x).sum(-1)
    rounded = kind(logits.float().double(), x).sum(-1)  # not what rounding the logits does
    found = kind(logits.float(), x.float()).double().sum(-1)
    assert (found - rounded).abs().max() < (1.6e-3 if kind is binomial else 1e-4)
    assert (exact - rounded).abs().max() < 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shapes", [((5,), (5,)), ((3, 1, 5), (2, 5)), ((2, 5), (3, 2, 5)), ((), (4,))])
def test_derivatives_of_first_and_second_order(kind, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    logits, x = (3 * torch.randn(shapes[0], dtype=D)).requires_grad_(), torch.rand(shapes[1], dtype=D)
    leaves = (logits, x) if kind is binomial else (logits, x.requires_grad_())  # torch has no lgamma of second order
    assert gradcheck(kind, leaves, check_forward_ad=kind is not binomial)
    assert gradgradcheck(kind, leaves)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0.0, 1e-9, 0.1, -0.1, 40.0])
def test_derivatives_where_a_formula_turns(kind, at: float) -> None:
    """d log p / dl = x - mean and its derivative, minus the variance: at 0, too, where |l| has none."""
    x, logits = torch.tensor(0.25, dtype=D), torch.tensor(at, dtype=D, requires_grad=True)
    (first,) = torch.autograd.grad(kind(logits, x), logits, create_graph=True)
    (second,) = torch.autograd.grad(first, logits)
    p = torch.tensor(at, dtype=D).sigmoid()
    n = 16.0 if kind is binomial else 1.0
    mean, variance = n * p, n * p * (1 - p)
    if kind is continuous:
        points = torch.linspace(0, 1, 200_001, dtype=D)
        density = kind(logits.detach(), points).exp()
        mean = torch.trapezoid(points * density, points)
        variance = torch.trapezoid((points - mean) ** 2 * density, points)
    assert first.item() == pytest.approx((n * x - mean).item(), abs=1e-7)
    assert second.item() == pytest.approx(-variance.item(), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_function_transforms(kind) -> None:
    torch.manual_seed(0)
    logits, x = torch.randn(4, 3, dtype=D), torch.rand(3, dtype=D)
    torch.testing.assert_close(torch.vmap(kind, (0, None))(logits, x), kind(logits, x))
    slopes = torch.func.vmap(torch.func.grad(lambda l: kind(l, x).sum()))(logits)
    leaf = logits.clone().requires_grad_()
    torch.testing.assert_close(slopes, torch.autograd.grad(kind(leaf, x).sum(), leaf)[0])
    along = torch.func.jvp(lambda l: kind(l, x), (logits,), (torch.ones_like(logits),))[1]
    torch.testing.assert_close(along, slopes)


STOCK = {
    "bernoulli": lambda raw: dist.Bernoulli(logits=raw, validate_args=False),
    "bernoulli of probabilities": lambda raw: dist.Bernoulli(raw.sigmoid(), validate_args=False),
    "binomial": lambda raw: dist.Binomial(4, logits=raw, validate_args=False),
    "normal": lambda raw: dist.Normal(raw, 0.3, validate_args=False),
}


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("events", [0, 1, 2])
def test_a_program_need_not_name_our_classes(name: str, events: int) -> None:
    torch.manual_seed(0)
    raw, x = torch.randn(2, 3, 4, dtype=D), torch.randint(2, (5, 2, 3, 4)).double()
    fn = STOCK[name](raw)
    fn = fn.to_event(events).expand(torch.Size((5, 2, 3, 4)[: 4 - events])) if events else fn
    torch.testing.assert_close(log_prob_of(fn, x), fn.log_prob(x))


class Counted(dist.Bernoulli):
    def log_prob(self, value):
        return super().log_prob(value) + 1


def test_what_is_of_a_class_of_its_own_is_asked_itself_and_values_are_validated() -> None:
    raw, x = torch.randn(3, 4), torch.ones(3, 4)
    own = Counted(logits=raw, validate_args=False)
    torch.testing.assert_close(log_prob_of(own.to_event(1), x), own.log_prob(x).sum(-1))
    for event in (0, 1):
        valid = dist.Bernoulli(logits=raw, validate_args=True).to_event(event)
        quick = dist.Bernoulli(logits=raw, validate_args=False).to_event(event)
        assert torch.equal(log_prob_of(valid, x), log_prob_of(quick, x))  # to the bit: validation is for first passes
        with pytest.raises(ValueError, match="within the support"):
            log_prob_of(dist.Bernoulli(logits=raw, validate_args=True).to_event(event), x + 1)
    for ours in (Bernoulli(logits=raw, validate_args=True), Binomial(2, logits=raw, validate_args=True)):
        with pytest.raises(ValueError, match="within the support"):
            ours.log_prob(x + 2)


def test_expanding_keeps_the_class() -> None:
    for fn in (Bernoulli(logits=torch.zeros(2)), Binomial(3, logits=torch.zeros(2))):
        assert type(fn.expand(torch.Size((3, 2)))) is type(fn)
    assert type(Normal(torch.zeros(2), 1.0).expand(torch.Size((3, 2)))) is Normal


def test_half_precision_is_scored_in_single() -> None:
    raw, x = 9 * torch.randn(3, 784), torch.ones(3, 784)
    found = bernoulli(raw.bfloat16(), x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, bernoulli(raw.bfloat16().float(), x))


def test_only_inputs_are_kept_for_the_gradient() -> None:
    kept: list[Tensor] = []
    logits, x = torch.randn(6, 784, requires_grad=True), torch.ones(784)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        bernoulli(logits, x)
    assert {t.data_ptr() for t in kept} == {logits.data_ptr(), x.data_ptr()}


def test_no_pass_goes_through_the_slow_function() -> None:
    """`log1p` took 9 of 10 parts of torch's Bernoulli."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Named(TorchDispatchMode):
        seen: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Named() as named:
        log_prob_of(dist.Bernoulli(logits=torch.randn(3, 4), validate_args=False).to_event(1), torch.ones(3, 4))
    assert "sigmoid_" in named.seen
    assert not named.seen & {"log1p", "log_sigmoid_forward", "binary_cross_entropy_with_logits", "softplus"}
