"""Coordinated systems on linear-Gaussian models, and the terms of their objectives in closed form."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mm.batch import Batch
from pyro_mm.recipe import Recipe
from tests.helpers.hierarchies import affine, hidden, randomised
from tests.helpers.oracle import LG

SIZES = {"a": 4, "b": 3, "c": 2}
D = torch.float64


def made(name: str, missing: bool = False, **options: Any) -> tuple[Recipe, Batch]:
    recipe, data = randomised(name, SIZES, 10, **options)
    return recipe, hidden(data, 1) if missing else data


class Parts:
    """What the formulas are made of, a number per row `(N,)`, 0 where a modality that it needs is missing."""

    def __init__(self, recipe: Recipe, batch: Batch) -> None:
        self.recipe, self.batch = recipe, batch
        self.prior = recipe.model.prior()

    def q(self, m: str) -> Any:
        guide = self.recipe.guide
        return getattr(guide, "shared", guide).encoders[m](self.batch.x[m])

    def where(self, value: Tensor, *names: str) -> Tensor:
        return torch.where(torch.stack([self.batch.mask[m] for m in names]).all(0), value, 0.0)

    def fits(self, i: str, j: str) -> Tensor:
        """E_{q(z|x_i)} log p(x_j|z), and with private latents E_{q(z|x_i) q(w_j|x_j)} log p(x_j|z, w_j)."""
        loc, scale = self.q(i).base_dist.loc, self.q(i).base_dist.scale
        if hasattr(self.recipe.guide, "private"):
            own = self.recipe.guide.private[j](self.batch.x[j]).base_dist
            loc, scale = torch.cat([loc, own.loc], -1), torch.cat([scale, own.scale], -1)
        w, b = affine(self.recipe.model.decoders[j])
        s = 0.6
        logp = dist.Normal(loc @ w.T + b, s).log_prob(self.batch.x[j]).sum(-1)
        return self.where(logp - 0.5 * (scale.square() @ w.square().T).sum(-1) / s**2, i, j)

    def kl(self, i: str) -> Tensor:
        return self.where(kl_divergence(self.q(i), self.prior.expand((len(self.batch),))), i)

    def private_kl(self, i: str) -> Tensor:
        q, p = self.recipe.guide.private[i](self.batch.x[i]), self.recipe.model.private[i]()
        return self.where(kl_divergence(q, p.expand((len(self.batch),))), "a", i)

    def between(self, i: str, j: str) -> Tensor:
        return self.where(kl_divergence(self.q(i), self.q(j)), i, j)

    def transport(self, i: str, j: str) -> Tensor:
        q, p = self.q(i).base_dist, self.q(j).base_dist
        return self.where(((q.loc - p.loc) ** 2 + (q.scale - p.scale) ** 2).sum(-1), i, j)

    def explains(self, i: str) -> Tensor:
        """ELBO(X; q(z|x_i)), X what the row has."""
        return sum(self.fits(i, j) for j in SIZES) - self.kl(i)

    def alone(self, beta: float = 1.0) -> Tensor:
        return sum(self.fits(m, m) - beta * self.kl(m) for m in SIZES)


def mean_of(objective: Any, batch: Batch, repeats: int = 12, copies: int = 100) -> tuple[float, float]:
    """The mean of a sampled loss and its standard error, from draws for many copies of the rows."""
    torch.manual_seed(3)
    many = batch[torch.arange(len(batch)).repeat(copies)]
    with torch.no_grad():
        found = torch.stack([objective(many) for _ in range(repeats)])
    return found.mean().item(), found.std().item() / repeats**0.5


def linear(module: torch.nn.Module) -> torch.nn.Linear:
    """The one linear layer inside."""
    (layer,) = [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
    return layer


def exact(recipe: Recipe, lg: LG) -> None:
    """The model's parameters, and of one latent dimension the exact posteriors of each modality, into a recipe."""
    for module in recipe.modules.values():
        module.double()
    recipe.model.load_state_dict(lg.model().state_dict())
    with torch.no_grad():
        for m, encoder in recipe.guide.encoders.items():
            precision = 1 + lg.w[m].square().sum() / lg.s[m] ** 2
            layer = linear(encoder)
            layer.weight.zero_()
            layer.weight[0] = lg.w[m][:, 0] / lg.s[m] ** 2 / precision
            layer.bias[0] = -(layer.weight[0] @ lg.b[m])
            layer.bias[1] = (precision**-0.5 - 1e-4).expm1().log()
