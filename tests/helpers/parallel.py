"""Losses and data for runs in several processes: what each was asked for, and what spoils one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset

from pyro_mm.batch import Batch
from tests.helpers.oracle import LG, MeanField
from tests.helpers.training import Noisy, data, rows_of


def told(history: Any, objective: nn.Module) -> dict[str, Any]:
    flat = torch.cat([p.detach().double().flatten() for p in objective.parameters()])
    return {"rows": rows_of(history), "parameters": flat.tolist(), "stopped": history.stopped_early}


def doubled(batch: Batch) -> Batch:
    return batch.to(torch.float64)


def seeded(module: nn.Module) -> dict[str, Any]:
    """A state that does not depend on where torch's stream stands."""
    g = torch.Generator().manual_seed(11)
    state = {n: 0.3 * torch.randn(v.shape, generator=g, dtype=torch.float64) for n, v in module.named_parameters()}
    return module.state_dict() | state


class Fixed(nn.Module):
    """A loss without randomness; with `norm`, one that keeps statistics of its minibatches."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2).double()
        self.norm = nn.BatchNorm1d(2).double() if norm else nn.Identity()
        with torch.no_grad():
            self.net.weight.copy_(torch.arange(6.0).view(2, 3) / 6)
            self.net.bias.zero_()

    def forward(self, batch: Batch) -> Any:
        return (self.norm(self.net(batch.x["image"])) - batch.x["count"] / 16).square().sum(-1).mean()


class Shared(Noisy):
    """Remembers which rows this process was asked for."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self.asked: list[int] = []

    def __getitems__(self, rows: list[int]) -> Batch:
        self.asked += rows
        return super().__getitems__(rows)


def exact_loss() -> float:
    """Minus the mean ELBO of `monte_carlo`, in closed form."""
    lg = LG()
    batch, guide = lg.data(19), MeanField(lg)
    with torch.no_grad():
        loc, scale = guide.moments(batch)
        bound = -0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum(-1)
        for m in lg.dims:
            mean, sd = loc @ lg.w[m].T + lg.b[m], torch.tensor(lg.s[m])
            spread = (lg.w[m].square() * scale.square()).sum()
            bound = bound + torch.distributions.Normal(mean, sd).log_prob(batch.x[m]).sum(-1) - spread / (2 * sd**2)
    return -bound.mean().item()


class Spoilt(nn.Module):
    """NaN from one process at one call, in training or in evaluation."""

    def __init__(self, objective: nn.Module, call: int, training: bool, here: bool) -> None:
        super().__init__()
        self.objective, self.call, self.when, self.here, self.count = objective, call, training, here, 0

    def forward(self, batch: Batch) -> Any:
        loss = self.objective(batch)
        self.count += self.training is self.when
        return loss * (torch.nan if self.here and self.training is self.when and self.count == self.call else 1.0)


class Stream(IterableDataset):
    """More minibatches for the first process than for the second."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter([data(4, seed=i) for i in range(self.batches)])
