"""Two-sided ends of log p(x) on data simulated from the model, where an exact posterior draw is known."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.generation import simulate
from pyro_mm.evaluation.marginal import require_likelihood
from pyro_mm.evaluation.proposals import Proposal, evaluating, shares_of
from pyro_mm.handlers import Program

__all__ = ["Certificate", "sandwich"]


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
    lower, upper = [], []
    plan = Plan.for_batch(batch, k, chunk)
    with evaluating(model, guide, seed=seed):
        data, truth = simulate(model, batch)
        offset = 0
        for block in plan.blocks(data):
            rows = slice(offset, offset + len(block))
            offset += len(block)
            proposal = Proposal(model, [(guide, block)], shares_of(1, defensive), independent=True)
            exact = {n: v[rows].unsqueeze(0).unsqueeze(0) for n, v in truth.items()}
            log_w = [proposal.draw(block, which).log_weight() for which in plan.slices(proposal.assign(k))]
            known = set(proposal.draw(block, torch.zeros(1, 1, dtype=torch.long)).values)
            first = proposal.at(block, {n: v for n, v in exact.items() if n in known}).log_weight()
            drawn = torch.cat(log_w).double()
            lower.append(torch.logsumexp(drawn, 0) - log(k))
            upper.append(torch.logsumexp(torch.cat([first.double(), drawn[1:]]), 0) - log(k))
    return Certificate(torch.cat(lower), torch.cat(upper), data, k)
