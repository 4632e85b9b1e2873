"""Bounds of many subsets with learnt weights, which need a sum over the subsets rather than a draw of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.handlers import InSubsets, Program, Subsets
from pyro_mm.models.joint import presence
from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.objectives.elbo import elbo
from pyro_mm.objectives.scaling import Weights
from pyro_mm.objectives.schedules import Schedule

__all__ = ["Shares", "entropy", "shared_elbo"]


class Shares(nn.Module):
    """pi = softmax of learnt numbers, one for every group of modalities; equal to begin with.

    Args:
        groups: the groups, in order.
    """

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.groups = tuple(tuple(g) for g in groups)
        self.logits = nn.Parameter(torch.zeros(len(groups)))

    def forward(self) -> Tensor:
        """pi `(S,)`."""
        return self.logits.softmax(-1)

    def rows(self, batch: Batch) -> Tensor:
        """pi of every row `(S, N)`: of the groups that it has whole, renormalised; 0 where it has none."""
        whole = [torch.stack([presence(batch, m) for m in g]).all(0) for g in self.groups]
        share = self().unsqueeze(-1) * torch.stack(whole)
        total = share.sum(0)
        return share / torch.where(total > 0, total, 1.0)


def shared_elbo(
    model: Program,
    guide: Program,
    shares: Shares,
    *,
    beta: float | Schedule = 1.0,
    weights: Weights | None = None,
    analytic_kl: bool = False,
) -> Objective:
    """sum_S pi_S {E_{q(z|x_S)} [log p(X|z)] - beta KL(q(z|x_S) || p(z))} over groups S, with gradients for pi.

    Every term reconstructs the whole row, so that the sum is a lower bound of log p(X) (Mancisidor et al. 2025).  A row
    that lacks something has the terms of the groups that it has whole, with their pi renormalised.
    """
    pair = SharedSubsets(model, shares, True), SharedSubsets(guide, shares, False)
    return elbo(*pair, beta=beta, weights=weights, analytic_kl=analytic_kl)


def entropy(shares: Shares) -> Objective:
    """H(pi), as a bound is: to be added; a mean over rows in nats, of the pi of each row's own groups."""
    return Objective([(1.0, Entropy(shares))])


class SharedSubsets(InSubsets):
    """The program in all groups, every site of a group times its pi."""

    share = "pi_S "

    def __init__(self, program: Program, shares: Shares, whole: bool) -> None:
        super().__init__(program, Subsets(shares.groups), whole)
        self.shares = shares

    def forward(self, batch: Batch) -> Any:
        with Times(self.shares.rows(batch)):
            return super().forward(batch)


class Times(Messenger):
    """Multiply the log-density of every site by `factor` `(S, N)`, which may be 0, unlike in `poutine.scale`."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = factor

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.factor


class Entropy(Term):
    """See `entropy`."""

    label, sign = "entropy", -1

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self.shares = shares

    def forward(self, batch: Batch) -> Tensor:
        pi = self.shares.rows(batch)
        loss = torch.where(pi > 0, pi * torch.where(pi > 0, pi, 1.0).log(), 0.0).sum(0).mean()
        self.report = {"": -loss.detach()}
        return loss

    def formula(self) -> str:
        return "H(pi)"
