"""Draws where they are needed, until a standard error is reached.

A pilot of the guide says how many draws a datum would need; where that is many, the proposal is refined and piloted
too, in stages that cost more and more, and the better one taken.  The reported estimate uses fresh draws only: their
number and their proposal were fixed before any of them was made.  A datum whose standard error then misses the target
is estimated once more, by more and again fresh draws, never by adding to those at hand: sampling until the standard
error looks small stops where the large weights happen to be missing.  (A trace of that remains, since a datum is done
when its own draws look even: some two squared standard errors where weights are heavy-tailed, less where they are not.)
"""

from __future__ import annotations

from dataclasses import replace
from math import log

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.effort import Effort, Quantity, blank, fit, proposal_of
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.refine import Refined, Refiner

__all__ = ["PILOT", "adaptive"]

PILOT, FEWEST = 50, 100  # draws per datum of a pilot, and the fewest of an estimate
WORTH = (200, 2000, 10_000)  # a datum that needs so many draws is worth the next refiner
HEAVY, FEW = 0.7, 10  # above this k-hat or below this ESS a pilot of the guide says little: the refined one is taken
SAFETY = 1.4  # standard errors scatter
DOUBTFUL = 2  # times as many draws where a k-hat is above its threshold
RATIO = 1.5  # between the numbers of draws that are used: rows of about one need share a pass


def adaptive(quantity: Quantity, block: Batch, effort: Effort, plan: Plan) -> Evidence:
    """The quantity to a standard error of `effort.target_se` per datum, or with `effort.draws` draws."""
    search = Search(quantity, block, effort, plan)
    rows = torch.arange(len(block), device=block.device)
    found = None
    while len(rows):
        search.improve(rows)
        part = search.estimate(rows)
        found = part if found is None else _put(found, rows, part)
        missed = (part.se > search.target) & (search.draws[rows] < effort.draws)
        more = torch.maximum(needed(part, search.target), 2.0 * search.draws[rows])
        rows = rows[missed]
        search.needed[rows] = more[missed].nan_to_num(nan=float(effort.draws))
    assert found is not None
    return replace(found, proposal=" or ".join(dict.fromkeys(found.proposal.split("; "))))


class Search:
    """What is known of a block's rows: how many draws they need, of which proposal."""

    def __init__(self, quantity: Quantity, block: Batch, effort: Effort, plan: Plan) -> None:
        assert effort.target_se is not None
        self.quantity, self.block, self.effort, self.plan = quantity, block, effort, plan
        self.target = effort.target_se
        self.densities: list[Refined] = []
        seen = self._pilot(torch.arange(len(block), device=block.device), ())
        self.needed = needed(seen, self.target)
        self.doubtful = (seen.se > 0) & ((seen.khat > HEAVY) | (seen.ess < FEW))
        self.stage = torch.zeros(len(block), dtype=torch.long, device=block.device)  # refiners tried
        self.refined = torch.zeros(len(block), dtype=torch.bool, device=block.device)
        self.draws = torch.zeros_like(self.stage)

    def improve(self, rows: Tensor) -> None:
        """Refine the proposal of those of the rows for which it pays."""
        for stage, (refiner, worth) in enumerate(zip(self.effort.refiners, WORTH, strict=False)):
            due = self.needed[rows] > worth
            if stage == 0:  # where the pilot cannot be relied on, and everywhere when it was asked for
                due = due | self.doubtful[rows] | (self.effort.refine not in (None, False))
            due = due & (self.stage[rows] == stage)
            hard = rows[due]
            if not len(hard) or not self._refine(hard, refiner):
                continue
            self.stage[hard] = stage + 1

    def _refine(self, rows: Tensor, refiner: Refiner) -> bool:
        """Fit, look, and keep what is better; False where the latents do not allow it and nobody asked for it."""
        try:
            whole = self.densities or blank(self.quantity, self.block, self.plan.units)
            before = [d[rows] for d in whole]
            refit = bool(self.refined[rows].any())
            found = fit(self.quantity, self.block[rows], refiner, before if refit else [], self.plan.units)
        except ValueError:
            if self.effort.refine is None:
                return False
            raise
        if not self.densities:
            for d, f in zip(whole, found, strict=True):
                d.dof = f.dof
        better = needed(self._pilot(rows, found), self.target)
        wins = ((better < self.needed[rows]) | (self.doubtful[rows] & ~self.refined[rows])).nonzero().flatten()
        self.densities = [d.replaced(rows[wins], f[wins]) for d, f in zip(whole, found, strict=True)]
        self.needed[rows[wins]], self.refined[rows[wins]] = better[wins], True
        return True

    def _pilot(self, rows: Tensor, refined: list[Refined] | tuple[()]) -> Evidence:
        block = self.block[rows]
        proposal = proposal_of(self.quantity, block, self.effort, refined)
        return self.quantity.measured(proposal, block, self.plan.regrouped(len(rows)), min(PILOT, self.effort.draws))

    def estimate(self, rows: Tensor) -> Evidence:
        """From as many fresh draws as they need, rows of one need and kind of proposal together."""
        self.draws[rows] = rounded(self.needed[rows], self.effort.draws)
        kinds = torch.stack([self.draws[rows], self.refined[rows].long()], -1)
        parts, places = [], []
        for kind in kinds.unique(dim=0):
            place = (kinds == kind).all(-1).nonzero().flatten()
            block, own = self.block[rows[place]], [d[rows[place]] for d in self.densities] if bool(kind[1]) else []
            proposal = proposal_of(self.quantity, block, self.effort, own)
            parts.append(self.quantity.measured(proposal, block, self.plan.regrouped(len(place)), int(kind[0])))
            places.append(place)
        return Evidence.join(parts).rows(torch.cat(places).argsort())


def needed(seen: Evidence, target: float) -> Tensor:
    """How many draws each row needs for its standard error, `(N,)` float64: variances fall as 1 / K.

    Weights whose k-hat is above its threshold have not shown all of their variance.
    """
    many = SAFETY * seen.draws_per_datum.double() * (seen.se.double() / target) ** 2
    return torch.where(~seen.reliable & (seen.se > 0), DOUBTFUL * many, many).nan_to_num(nan=torch.inf)


def rounded(many: Tensor, most: int) -> Tensor:
    """Whole numbers of draws, few distinct ones."""
    steps = (many.clamp(min=FEWEST, max=max(most, FEWEST)) / FEWEST).log() / log(RATIO)
    return (FEWEST * RATIO ** steps.ceil()).ceil().clamp(max=most).long()


def _put(whole: Evidence, rows: Tensor, part: Evidence) -> Evidence:
    """The result with some of its rows replaced."""
    order = torch.arange(len(whole), device=rows.device)
    order[rows] = len(whole) + torch.arange(len(rows), device=rows.device)
    return Evidence.join([whole, part]).rows(order)
