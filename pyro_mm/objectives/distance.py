"""Distances between two guides: what draws the posteriors of different modalities together in coordinated models."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.handlers import Program, masked, rows_of
from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.objectives.elbo import kl
from pyro_mm.objectives.formula import q_of, tex
from pyro_mm.weights import Site, run

__all__ = ["symmetric_kl", "wasserstein"]


def symmetric_kl(q: Program, p: Program) -> Objective:
    """KL(q || p) + KL(p || q) between two guides (Jeffreys' divergence), a mean over rows in nats."""
    return kl(q, p) + kl(p, q)


def wasserstein(q: Program, p: Program, *, power: int = 1) -> Objective:
    """W_2(q, p), or its square with `power=2`, between two guides: a mean over rows, in units of the latent, as a loss.

    W_2^2 = |mu_q - mu_p|^2 + |sigma_q - sigma_p|^2 for Normals with diagonal covariances, which the guides' sites must
    be; several sites add up under the root.  Only rows in which both guides see something count.  At distance 0, where
    the root has no derivative, its gradient is 0.

    Raises:
        ValueError: `power` is neither 1 nor 2; and when called, for guides whose sites differ or are not Normal; the
            message names the site.
    """
    if power not in (1, 2):
        raise ValueError(f"the distance is W_2 or its square: power 1 or 2, got {power}")
    return Objective([(1.0, Wasserstein(q, p, power))])


class Wasserstein(Term):
    """See `wasserstein`."""

    label, sign = "w2", 1

    def __init__(self, q: Program, p: Program, power: int) -> None:
        super().__init__()
        self.q, self.p, self.power = q, p, power
        self.rows = rows_of(q, p)

    def forward(self, batch: Batch) -> Tensor:
        rows = self.rows(batch)
        one, two = run(masked(self.q, rows), batch), run(masked(self.p, rows), batch)
        if not one or one.keys() != two.keys():
            raise ValueError(f"a distance needs guides of the same sites; these have {list(one)} and {list(two)}")
        square: Any = sum(_square(one[name], two[name]) for name in one)
        loss: Tensor = (square if self.power == 2 else _root(square)).sum() / len(batch)
        self.report = {"": loss.detach()}
        return loss

    def formula(self) -> str:
        return f"W2{'^2' if self.power == 2 else ''}({q_of(self.q)}, {q_of(self.p)})"

    def latex(self) -> str:
        return tex(self.formula())


def _square(a: Site, b: Site) -> Tensor:
    """|mu_a - mu_b|^2 + |sigma_a - sigma_b|^2 over the batch shape, 0 where either is masked."""
    (loc, scale), (other_loc, other_scale) = _moments(a), _moments(b)
    square = (loc - other_loc).square() + (scale - other_scale).square()
    inside = tuple(range(-a.fn.event_dim, 0))
    total = square.sum(inside) if inside else square
    return scale_and_mask(scale_and_mask(total, 1.0, a.mask), 1.0, b.mask)  # type: ignore[no-any-return]


def _moments(site: Site) -> tuple[Tensor, Tensor]:
    base = getattr(site.fn, "base_dist", site.fn)
    if not isinstance(base, torch.distributions.Normal):
        raise ValueError(
            f"site '{site.name}': the 2-Wasserstein distance is known for Normals with diagonal covariances, "
            f"not for {type(base).__name__}"
        )
    return base.loc, base.scale


def _root(square: Tensor) -> Tensor:
    apart = square > 0
    return torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)
