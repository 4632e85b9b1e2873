"""One row's experts and likelihoods on a linear-Gaussian model, and recipes whose model is one: for formulas by hand.

E_q log p(x | z) of a Gaussian q is known exactly there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.recipe import Recipe
from tests.helpers.oracle import LG

BETA, LAMBDA = 0.7, {"a": 2.0}
Moments = tuple[Tensor, Tensor]
NAMES = ("a", "b", "c")
COUNT = len(NAMES)
STANDARD = (torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))


class Row:
    """One row's experts and likelihoods, and what can be computed from them exactly."""

    def __init__(self, recipe: Recipe, batch: Batch, i: int) -> None:
        self.recipe, self.x = recipe, {m: batch.x[m][i] for m in NAMES}
        self.seen = tuple(m for m in NAMES if bool(batch.mask[m][i]))
        self.batch = batch[i : i + 1]
        encoders = getattr(recipe.guide, "encoders", {})
        q = {m: encoders[m](self.x[m]).base_dist for m in encoders}
        self.expert = {m: (q[m].loc, q[m].scale) for m in q}

    def likelihood(self, q: Moments, *names: str) -> Tensor:
        """E_q sum_m lambda_m log p(x_m | z), what is missing left out."""
        total = torch.zeros((), dtype=torch.float64)
        for m in set(names) & set(self.seen):
            decoder = self.recipe.model.decoders[m]
            w, s = decoder.net[0].weight, decoder.modality.likelihood.scale
            at_mean = decoder(q[0]).log_prob(self.x[m])
            total = total + LAMBDA.get(m, 1.0) * (at_mean - 0.5 * ((w * q[1]) ** 2).sum() / s**2)
        return total

    def posterior(self, names: tuple[str, ...]) -> Moments:
        """The guide's own posterior of a subset, the prior for the empty one."""
        if not set(names) & set(self.seen):
            return torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        q = self.recipe.guide.posterior(self.batch.only(*names)).base_dist
        return q.loc[0], q.scale[0]

    def product(self, names: tuple[str, ...] = NAMES, prior: float = 0.0) -> Moments:
        """Of the experts of what is seen of `names`, and of a standard normal to the power `prior`."""
        q = [self.expert[m] for m in names if m in self.seen]
        t = sum(s**-2 for _, s in q) + prior
        return sum(mu * s**-2 for mu, s in q) / t, t**-0.5

    def present(self) -> list[Moments]:
        return [self.expert[m] for m in self.seen]


def kl(q: Moments, p: Moments = STANDARD) -> Tensor:
    return kl_divergence(Normal(*q), Normal(*p)).sum()


def elbo(row: Row, q: Moments) -> Tensor:
    return row.likelihood(q, *NAMES) - BETA * kl(q)


OPTIONS: dict[str, dict[str, Any]] = {
    "codevae": {"confidence": 3.0},
    "jmvae_kl": {"width": 8},
    "m2vae": {"width": 8},
    "sum_pooling": {"width": 8},
}


def made(
    name: str,
    missing: bool,
    dim: int = 2,
    sizes: dict[str, int] | None = None,
    noise: float | None = None,
    **options: Any,
) -> tuple[Recipe, Batch, LG]:
    """A recipe whose model is exact and whose other parameters are drawn, in float64."""
    torch.manual_seed(0)
    lg = LG(sizes or {"a": 3, "b": 2, "c": 2}, latent=dim)
    lg.s = lg.s if noise is None else dict.fromkeys(lg.s, noise)
    recipe = getattr(variants, name)(lg.modalities(), dim, **(OPTIONS.get(name, {}) | options))
    for module in (*recipe.modules.values(), recipe.objective):
        module.double()
    for m, decoder in lg.model().decoders.items():
        recipe.model.decoders[m].load_state_dict(decoder.state_dict())
    if name in ("gpoe", "codevae"):
        rule = recipe.guide.fuse
        own = rule.logits if name == "gpoe" else rule.shares.logits
        with torch.no_grad():
            own.add_(0.5 * torch.randn_like(own))
    return recipe, lg.data(10, missing=missing), lg
