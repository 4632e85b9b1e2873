"""Pairs that share nothing with the library but its conventions, as a user would write them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture

SIZES = {"a": 3, "b": 2}


class Model(nn.Module):
    """z ~ N(0, I);  x_m ~ N(W_m z + b_m, 1/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleDict({m: nn.Linear(2, d) for m, d in SIZES.items()})

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = self.prior(batch)
            for m in SIZES:
                self.observe(m, self.observation(m, z, batch), batch)

    def prior(self, batch: Batch) -> Tensor:
        return pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        return dist.Normal(self.nets[m](z), 0.5).to_event(1)

    def observe(self, m: str, px: dist.TorchDistribution, batch: Batch) -> None:
        with poutine.mask(mask=batch.mask[m]):
            pyro.sample(m, px, obs=batch.x[m])


class Guide(nn.Module):
    """q(z | x_S) = p(z) prod_S N(z; f_m(x_m), s_m^2), normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleDict({m: nn.Linear(d, 2) for m, d in SIZES.items()})
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        precision: Tensor | float = 1.0
        moment: Tensor | float = 0.0
        for i, m in enumerate(SIZES):
            seen, gain = self.seen(m, batch), (-2 * self.log_scale[i]).exp()
            precision = precision + torch.where(seen, gain, 0.0)
            moment = moment + torch.where(seen, gain * self.expert(m, batch), 0.0)
        return self.family(moment / precision, precision**-0.5 * torch.ones(2))

    def seen(self, m: str, batch: Batch) -> Tensor:
        return batch.mask[m].unsqueeze(-1)

    def expert(self, m: str, batch: Batch) -> Tensor:
        return self.nets[m](batch.x[m])

    def family(self, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return dist.Normal(loc, scale).to_event(1)


def some(batch: Batch) -> Tensor:
    return batch.present().unsqueeze(-1)


def data(n: int = 30) -> Batch:
    source = torch.Generator().manual_seed(1)
    return Batch({m: torch.randn(n, d, generator=source, dtype=torch.float64) for m, d in SIZES.items()})


def pair(model: type = Model, guide: type = Guide) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return model().double(), guide().double()


# Other pairs that keep the contract.


class WithPrivate(Model):
    """Also w_a ~ N(0, 1), a latent of modality a alone, masked where a is missing; and u, which no guide knows."""

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        if m == "b":
            return super().observation(m, z + 0.1 * pyro.sample("u", dist.Normal(0.0, 1.0)).unsqueeze(-1), batch)
        with poutine.mask(mask=batch.mask["a"]):
            w = pyro.sample("w_a", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        return dist.Normal(self.nets["a"](z) + w, 0.5).to_event(1)


class GuideOfPrivate(Guide):
    """w_a ~ q(w_a | x_a), read from a even where it is hidden: its mask says that the value means nothing there."""

    def forward(self, batch: Batch) -> None:
        super().forward(batch)
        with pyro.plate("data", len(batch), dim=-1), poutine.mask(mask=batch.mask["a"]):
            pyro.sample("w_a", dist.Normal(batch.x["a"].mean(-1, keepdim=True), 1.0).to_event(1))


class MoE(Guide):
    """The mixture of both experts."""

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        loc = torch.stack([torch.where(self.seen(m, batch), self.expert(m, batch), 0.0) for m in SIZES], -2)
        scale = self.log_scale.exp().unsqueeze(-1).expand_as(loc)
        prior = torch.zeros_like(loc[..., :1, :])  # N(0, 1), for rows with nothing present
        loc, scale = torch.cat([loc, prior], -2), torch.cat([scale, prior + 1], -2)
        return self.mixture(loc, scale, torch.cat([self.mask(batch), ~some(batch)], -1))

    def mask(self, batch: Batch) -> Tensor:
        return torch.stack([batch.mask[m] for m in SIZES], -1)

    def mixture(self, loc: Tensor, scale: Tensor, weights: Tensor) -> dist.TorchDistribution:
        return Mixture(loc, scale, weights)


class Nested(Model):
    """z is log-normal, and y_1..y_3 ~ N(0, 1) stand in a plate of their own: one latent per element of a."""

    def prior(self, batch: Batch) -> Tensor:
        with pyro.plate("elements", 3, dim=-2):
            self.y = pyro.sample("y", dist.Normal(torch.zeros(()).double(), 1.0)).transpose(-1, -2)
        return pyro.sample("z", dist.LogNormal(torch.zeros(2).double(), 1.0).to_event(1))

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        y = self.y.unsqueeze(-3) if z.dim() > 2 else self.y
        return dist.Normal(self.nets[m](z) + (y if m == "a" else 0.0), 0.5).to_event(1)


class GuideOfNested(Guide):
    """A log-normal q(z | x_S), and q(y_i | x_a) per element."""

    def forward(self, batch: Batch) -> None:
        super().forward(batch)
        seen, x = batch.mask["a"], batch.x["a"].transpose(-1, -2)
        with pyro.plate("data", len(batch), dim=-1), pyro.plate("elements", 3, dim=-2):
            pyro.sample("y", dist.Normal(torch.where(seen, 0.2 * x, 0.0), torch.where(seen, 0.8, 1.0).double()))

    def family(self, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return dist.LogNormal(loc, scale).to_event(1)
