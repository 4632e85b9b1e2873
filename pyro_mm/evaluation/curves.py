"""How fast the K-sample bound rises to log p(x): one set of draws, cut into blocks of every size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.evidence import Evidence, over, those_scored
from pyro_mm.evaluation.marginal import about, evidence_of, quantity_of, require_likelihood
from pyro_mm.evaluation.proposals import Proposal, evaluating, shares_of
from pyro_mm.evaluation.streaming import WeightSums
from pyro_mm.handlers import Program

__all__ = ["KCurve", "k_curve"]


@dataclass(frozen=True)
class KCurve:
    """L_K = E log (w_1 + ... + w_K)/K, nats, for several K.

    Attributes:
        ks: the sizes K, ascending.
        blocks: how many blocks of K draws were averaged.
        estimate: average over blocks, `(len(ks), N)`.
        se: its Monte Carlo standard error, `(len(ks), N)`: from the blocks' spread, or, of a single block, by the
            delta method.
        evidence: the estimate from all draws at once, with its diagnostics.
    """

    ks: tuple[int, ...]
    blocks: tuple[int, ...]
    estimate: Tensor
    se: Tensor
    evidence: Evidence

    @property
    def mean(self) -> Tensor:
        """Mean over the data, `(len(ks),)`."""
        return over(self.evidence.scored, self.estimate).mean(-1)

    @property
    def mean_se_mc(self) -> Tensor:
        """Monte Carlo standard error of `mean` for these very data, `(len(ks),)`."""
        return over(self.evidence.scored, self.se).square().sum(-1).sqrt() / self.evidence.n

    def summary(self) -> dict[str, Any]:
        """Numbers for a table or JSON."""
        return {
            "quantity": self.evidence.quantity,
            "proposal": self.evidence.proposal,
            "n": self.evidence.n,
            "k": list(self.ks),
            "blocks": list(self.blocks),
            "mean": self.mean.tolist(),
            "mc_se": self.mean_se_mc.tolist(),
            "se_data": self.evidence.mean_se,
            "khat_above": self.evidence.unreliable_share,
            "prior_sites": list(self.evidence.prior_sites),
        }

    def __repr__(self) -> str:
        e, n = self.evidence, self.evidence.n
        lines = [f"K-sample bounds of {e.quantity}, nats (N={n}, {e.proposal}; data SE {e.mean_se:.3f})"]
        for k, b, mean, se in zip(self.ks, self.blocks, self.mean.tolist(), self.mean_se_mc.tolist(), strict=True):
            lines.append(f"K = {k:<6} {mean:10.3f} +- {se:.4f} MC   {b} block{'s' if b > 1 else ''} a datum")
        return "\n".join(lines)


def k_curve(
    model: Program,
    guide: Program,
    batch: Batch,
    ks: Sequence[int] = (1, 10, 100, 1000),
    *,
    defensive: float = 0.1,
    independent: bool = True,
    chunk: int | None = None,
    seed: int | None = None,
) -> KCurve:
    """L_K(x) = E log 1/K sum_k p(x_S, z_k) / q_mix(z_k) per datum, z_k ~ q_mix, for every K (Burda et al. 2016, th. 1).

    L_1 <= L_10 <= ... <= log p(x_S): the curve rises in expectation, to the truth (q_mix as in `log_marginal`).  All K
    share one set of max(ks) draws, of which every K takes as many disjoint blocks as there are.  With `defensive=0`,
    L_1 is the ELBO; otherwise the prior draws pull it down, and larger K hardly.

    Args:
        ks: sizes of the blocks, the largest of which is the number of draws per datum.
        defensive, chunk, seed: as in `log_marginal`.
        independent: draw components at random, as the bound wants.  In fixed proportions a small block is no fair
            sample of q_mix: the curve is smoother, and only its end is a bound.

    Raises:
        NoLikelihood: the model defines no such density.
        ValueError: `ks` are not whole numbers from 1 up, or the pair breaks a convention.
    """
    require_likelihood(model)
    if not ks or any(k < 1 or k != int(k) for k in ks):
        raise ValueError(f"ks must be whole numbers from 1 up, got {list(ks)}")
    sizes = tuple(sorted({int(k) for k in ks}))
    total = sizes[-1]
    name = f"{1 - defensive:g} guide + {defensive:g} prior" if defensive else "guide"
    plan = Plan.for_batch(batch, total, chunk)
    parts, estimates, errors = [], [], []
    with evaluating(model, guide, seed=seed):
        for rows in plan.blocks(batch):
            proposal = Proposal(model, [(guide, rows)], shares_of(1, defensive), independent)
            sums, blocks = WeightSums(total), [BlockSums(k) for k in sizes]
            prior_sites: tuple[str, ...] = ()
            for which in plan.slices(proposal.assign(total)):
                draws = proposal.draw(rows, which)
                log_w = draws.log_weight()
                sums.add(log_w)
                for b in blocks:
                    b.add(log_w)
                prior_sites = draws.prior_sites
            evidence = evidence_of(sums, quantity_of(model, batch), name, prior_sites)
            parts.append(evidence)
            estimates.append(torch.stack([b.mean for b in blocks]))
            errors.append(torch.stack([b.se if b.count > 1 else _single(b.k, evidence) for b in blocks]))
    counts = tuple(total // k for k in sizes)
    found = replace(Evidence.join(parts), scored=those_scored(about(model, batch)))
    return KCurve(sizes, counts, torch.cat(estimates, -1), torch.cat(errors, -1), found)


def _single(k: int, evidence: Evidence) -> Tensor:
    """The standard error of one block of K of the draws, from that of all draws."""
    return evidence.se * sqrt(evidence.k / k)


class BlockSums:
    """log of the mean weight of every block of K draws, in order of arrival, averaged over complete blocks."""

    def __init__(self, k: int) -> None:
        self.k, self.count, self.filled = k, 0, 0
        self.open: Any = -torch.inf  # log sum of the weights in the block that is being filled
        self.first: Any = None
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def add(self, log_w: Tensor) -> None:
        """Take in log-weights `(k, N)`."""
        log_w = log_w.double()
        if self.filled:
            log_w = self._fill(log_w)
        whole = len(log_w) // self.k
        if whole:
            full = log_w[: whole * self.k].view(whole, self.k, -1)
            self._close(torch.logsumexp(full, 1))
        self._fill(log_w[whole * self.k :])

    def _fill(self, log_w: Tensor) -> Tensor:
        """Put into the open block what fits; the rest."""
        some = log_w[: self.k - self.filled]
        if len(some):
            found = torch.logsumexp(some, 0)
            self.open = torch.logaddexp(self.open, found) if self.filled else found
            self.filled += len(some)
        if self.filled == self.k:
            self._close(self.open.unsqueeze(0))
            self.filled = 0
        return log_w[len(some) :]

    def _close(self, log_sums: Tensor) -> None:
        """Count complete blocks `(b, N)`, relative to the first, so that squares keep their digits."""
        estimates = log_sums - log(self.k)
        if self.first is None:
            self.first = torch.where(torch.isfinite(estimates[0]), estimates[0], 0.0)
        away = estimates - self.first
        self.total, self.squares = self.total + away.sum(0), self.squares + away.square().sum(0)
        self.count += len(estimates)

    @property
    def mean(self) -> Tensor:
        """Average over complete blocks, `(N,)`."""
        assert self.count, "no block is complete"
        return self.first + self.total / self.count

    @property
    def se(self) -> Tensor:
        """Standard error of `mean` by the blocks' spread, `(N,)`; of at least two; inf where one has weight 0."""
        variance = (self.squares - self.total.square() / self.count) / (self.count - 1)
        return (variance.clamp(min=0.0) / self.count).sqrt().nan_to_num(nan=torch.inf)
