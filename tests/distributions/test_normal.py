"""Pyro's Normal, with fewer passes over a shared scale: values, gradients and shapes are Pyro's."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_mm.distributions import Normal


def passes(density: dist.TorchDistribution, x: Tensor) -> int:
    """Operations on as many elements as the event has, forwards."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            moved = isinstance(out, Tensor) and out.numel() == x.numel() and not func.is_view
            self.count += int(moved)
            return out

    with Counter() as counter:
        density.log_prob(x)
    return counter.count


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 1), (4, 3, 5)])
@pytest.mark.parametrize("batch", [None, (4, 3, 5), (2, 4, 3, 5)])
def test_values_and_gradients_are_pyros(shape: tuple[int, ...], batch: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    loc, x = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    log_scale = torch.randn(shape, dtype=torch.float64)
    found = []
    for kind in (Normal, dist.Normal):
        leaves = [t.clone().requires_grad_() for t in (loc, log_scale, x)]
        density = kind(leaves[0], leaves[1].exp(), validate_args=False)
        density = density if batch is None else density.expand(batch)
        value = density.log_prob(leaves[2])
        found.append((value, *torch.autograd.grad((value * x).sum(), leaves)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_it_passes_four_times_where_the_scale_is_shared() -> None:
    loc, scale, x = torch.randn(6, 4096), torch.tensor(0.5), torch.randn(6, 4096)
    assert passes(Normal(loc, scale, validate_args=False), x) == 4
    assert passes(dist.Normal(loc, scale, validate_args=False), x) == 9


def test_it_validates_as_pyros_does() -> None:
    with pytest.raises(ValueError, match="within the support"):
        Normal(torch.zeros(2), torch.ones(2), validate_args=True).log_prob(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="scale"):
        Normal(torch.zeros(2), -torch.ones(2), validate_args=True)
