"""Small pairs: private latents, two latent layers, one set of parameters per row."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture
from tests.helpers.oracle import LG

D = torch.float64


class PerRow(nn.Module):
    """z ~ N(loc_n, exp(log_scale_n)^2) with parameters of its own for every row.

    With R copies of one datum as rows, one backward pass gives R independent draws of the gradient estimator.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor, rows: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.expand(rows, -1).clone())
        self.log_scale = nn.Parameter(log_scale.expand(rows, -1).clone())

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))


class PerRowLayers(nn.Module):
    """u ~ N(m_n, s_n^2), then z ~ N(a_n + b_n u, t_n^2): two layers, parameters per row."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        start = {"m": 0.3, "log_s": -0.2, "a": 0.1, "b": 0.6, "log_t": -0.6}
        for name, value in start.items():
            setattr(self, name, nn.Parameter(torch.full((rows,), value, dtype=D)))

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            u = pyro.sample("u", dist.Normal(self.m, self.log_s.exp()))
            pyro.sample("z", dist.Normal(self.a + self.b * u, self.log_t.exp()))


class Layers(nn.Module):
    """u ~ N(0, 1);  z | u ~ N(u, 0.8^2);  x | z ~ N(w z, 0.5^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.3, dtype=D))

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            u = pyro.sample("u", dist.Normal(torch.zeros((), dtype=D), 1.0))
            z = pyro.sample("z", dist.Normal(u, 0.8))
            pyro.sample("x", dist.Normal(self.w * z, 0.5), obs=batch.x["x"])

    def log_marginal(self, x: Tensor) -> Tensor:
        variance = self.w.detach() ** 2 * (1 + 0.8**2) + 0.25
        return torch.distributions.Normal(0.0, variance.sqrt()).log_prob(x)


class BottomUp(nn.Module):
    """z ~ q(z | x) first, then u ~ q(u | z): the order that makes a closed-form KL wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.5, -0.6, 0.6, -0.4], dtype=D))

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(self.a[0] * batch.x["x"], self.a[1].exp()))
            pyro.sample("u", dist.Normal(self.a[2] * z, self.a[3].exp()))


class Private(nn.Module):
    """z ~ N(0, I);  w_m ~ N(0, I) and x_m | z, w_m where m is present."""

    def __init__(self, lg: LG) -> None:
        super().__init__()
        self.lg = lg
        self.v = nn.ParameterDict({m: torch.randn(d, 2, dtype=D) for m, d in lg.dims.items()})
        self.names = tuple(lg.dims)

    def forward(self, batch: Batch) -> None:
        one = torch.ones(2, dtype=D)
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(0 * one, one).to_event(1))
            for m in self.names:
                with poutine.mask(mask=batch.mask[m]):
                    w = pyro.sample(f"w_{m}", dist.Normal(0 * one, one).to_event(1))
                    mean = z @ self.lg.w[m].T + w @ self.v[m].T + self.lg.b[m]
                    pyro.sample(m, dist.Normal(mean, self.lg.s[m]).to_event(1), obs=batch.x[m])


class PrivateGuide(nn.Module):
    """z from a mean-field guide, w_m ~ q(w_m | x_m) where m is present."""

    def __init__(self, lg: LG, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.heads = nn.ModuleDict({m: nn.Linear(d, 4) for m, d in lg.dims.items()}).double()

    def forward(self, batch: Batch) -> None:
        loc, scale = self.shared.posterior(batch).base_dist.loc, self.shared.posterior(batch).base_dist.scale
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            for m, head in self.heads.items():
                with poutine.mask(mask=batch.mask[m]):
                    a, b = head(batch.x[m]).chunk(2, -1)
                    pyro.sample(f"w_{m}", dist.Normal(a, b.exp()).to_event(1))


class PerRowMixture(nn.Module):
    """z ~ 1/J sum_j N(loc_nj, exp(log_scale_nj)^2) with parameters per row."""

    def __init__(self, loc: Tensor, log_scale: Tensor, rows: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc.expand(rows, *loc.shape).clone())
        self.log_scale = nn.Parameter(log_scale.expand(rows, *log_scale.shape).clone())

    def forward(self, batch: Batch) -> None:
        present = torch.ones(len(batch), self.loc.shape[-2], dtype=torch.bool)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", Mixture(self.loc, self.log_scale.exp(), present))


class Chain(nn.Module):
    """z ~ N(0, 1), u ~ N(z, 1), x ~ N(u, .3^2)."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            u = pyro.sample("u", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(u, 0.3), obs=batch.x["x"])


class TopOnly(nn.Module):
    """q(z | x) of `Chain`, exact, and nothing about u."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(batch.x["x"] / 2.09, (1.09 / 2.09) ** 0.5))
