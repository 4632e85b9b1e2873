"""Two-sided ends of log p(x) on data simulated from the model, where an exact posterior draw is known."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.generation import simulated
from pyro_mm.evaluation.marginal import require_likelihood
from pyro_mm.evaluation.proposals import Proposal, evaluating, shares_of
from pyro_mm.handlers import Program
from pyro_mm.weights import Site

__all__ = ["Certificate", "ends", "sandwich"]


@dataclass(frozen=True)
class Certificate:
    """Ends `(N,)` in nats that enclose log p(x) in expectation, on data simulated from the model."""

    lower: Tensor
    upper: Tensor
    data: Batch
    k: int
    method: str = "sandwich"

    @property
    def gap(self) -> float:
        """Mean of upper - lower."""
        return (self.upper - self.lower).mean().item()

    @property
    def gap_se(self) -> float:
        """Its standard error over the simulated data."""
        return (self.upper - self.lower).std().item() / sqrt(len(self.lower))

    def __repr__(self) -> str:
        return (
            f"{self.method} on {len(self.lower)} simulated data, K={self.k}: {self.lower.mean().item():.3f} to "
            f"{self.upper.mean().item():.3f} nats, gap {self.gap:.4f} +- {self.gap_se:.4f}"
        )


def sandwich(
    model: Program,
    guide: Program,
    batch: Batch,
    k: int = 1000,
    *,
    defensive: float = 0.1,
    chunk: int | None = None,
    seed: int | None = None,
) -> Certificate:
    """Lower and upper ends of log p(x_S) on data drawn from the model with the batch's missingness.

    lower = log mean(w_1..w_K),  w_k = p(x, z_k) / q(z_k), z_k ~ q independently;  upper: the same with w_1 replaced by
    p(x, z_0) / q(z_0), z_0 the latent that the datum came from, an exact posterior draw.
    E[lower] <= log p(x) <= E[upper]: both hold for means over data, not for every datum.  A guide that misses a mode
    shows as a gap.  It certifies the estimator for this model, not the model for real data.
    """
    require_likelihood(model)
    return ends(model, guide, batch, k, defensive=defensive, chunk=chunk, seed=seed)


def ends(
    model: Program,
    guide: Program,
    batch: Batch,
    k: int,
    *,
    defensive: float,
    chunk: int | None = None,
    seed: int | None = None,
) -> Certificate:
    """`sandwich`, of p(x | conditions) for a model that is given something."""
    lower, upper = [], []
    plan = Plan.for_batch(batch, k, chunk)
    with evaluating(model, guide, seed=seed):
        data, truth = simulated(model, batch)
        offset = 0
        for block in plan.blocks(data):
            rows = slice(offset, offset + len(block))
            offset += len(block)
            proposal = Proposal(model, [(guide, block)], shares_of(1, defensive), independent=True)
            exact = {n: _block(site, rows) for n, site in truth.items()}
            first = proposal.at(block, exact).log_weight()
            drawn = torch.cat([proposal.draw(block, which).log_weight() for which in plan.slices(proposal.assign(k))])
            lower.append(torch.logsumexp(drawn, 0) - log(k))
            upper.append(torch.logsumexp(torch.cat([first, drawn[1:]]), 0) - log(k))
    return Certificate(torch.cat(lower), torch.cat(upper), data, k)


def _block(site: Site, rows: slice) -> Tensor:
    """A latent's value in some rows, with its batch dimensions padded to those of one particle, `(1, 1, N, *event)`."""
    event = site.fn.event_dim
    value = site.value.narrow(-1 - event, rows.start, rows.stop - rows.start)
    return value.reshape(*[1] * (3 + event - value.dim()), *value.shape)
