"""Where a bound loses its nats: in the encoder, or in the family that it encodes into.

    log p(x_S) - ELBO(q)  =  [ELBO(q*) - ELBO(q)]  +  [log p(x_S) - ELBO(q*)]
                              amortisation gap         family gap

q* is the best member of a family for the datum at hand (Cremer et al. 2018).  The first gap is what a better encoder or
longer training of the guide can win, the second what only another family can, or a decoder with simpler posteriors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.calibration import mean_and_error
from pyro_mm.evaluation.chunks import MEMORY, Plan
from pyro_mm.evaluation.collapse import finite
from pyro_mm.evaluation.components import Component
from pyro_mm.evaluation.effort import PILOTS, Effort, piloted
from pyro_mm.evaluation.estimation import estimated, planned
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.marginal import Marginal, quantity_of
from pyro_mm.evaluation.proposals import Proposal, evaluating, shares_of
from pyro_mm.evaluation.refine import GradientSteps, Laplace, Refined
from pyro_mm.evaluation.subsets import Sets, Subset, subsets_asked
from pyro_mm.evaluation.target import Target
from pyro_mm.handlers import Program
from pyro_mm.tables import aligned

__all__ = ["Gaps", "Nats", "Split", "gaps", "posterior_and_draws"]

Source = Component | tuple[Program, Batch]


@dataclass(frozen=True)
class Nats:
    """A quantity per datum and the Monte Carlo standard error of each, `(n,)`; nats."""

    value: Tensor
    se: Tensor

    def __sub__(self, other: Nats) -> Nats:
        return Nats(self.value - other.value, (self.se.square() + other.se.square()).sqrt())

    @property
    def mean(self) -> float:
        """Mean over the data."""
        return self.value.mean().item()

    @property
    def mean_se(self) -> float:
        """Standard error of `mean` for the population the data were drawn from; it includes Monte Carlo noise."""
        return mean_and_error(self.value)[1]

    @property
    def mean_se_mc(self) -> float:
        """Monte Carlo standard error of `mean` for these very data."""
        return self.se.square().sum().sqrt().item() / len(self.se)

    @staticmethod
    def join(parts: Sequence[Nats]) -> Nats:
        """The rows of several blocks, in order."""
        return Nats(torch.cat([p.value for p in parts]), torch.cat([p.se for p in parts]))

    def summary(self) -> dict[str, float | None]:
        """Numbers for JSON; None for what is not finite."""
        found = {"mean": self.mean, "se": self.mean_se, "mc_se": self.mean_se_mc}
        return {name: finite(value) for name, value in found.items()}


@dataclass(frozen=True)
class Split:
    """log p(x_S) - ELBO(q) of one subset S, in two parts, for the rows that have something of it.

    Attributes:
        guide: ELBO(q), q the guide.
        best: ELBO(q*), q* the mean-field Gaussian that optimisation found for the datum.
        full: the ELBO of a Gaussian with full covariance, found from the posterior's mode and curvature.
        evidence: log p(x_S).
    """

    guide: Nats
    best: Nats
    full: Nats
    evidence: Evidence

    def __len__(self) -> int:
        return len(self.evidence)

    @property
    def amortisation(self) -> Nats:
        """ELBO(q*) - ELBO(q)."""
        return self.best - self.guide

    @property
    def family(self) -> Nats:
        """log p(x_S) - ELBO(q*) = KL(q* || p(z | x_S))."""
        return Nats(self.evidence.estimate, self.evidence.se) - self.best

    @property
    def covariance(self) -> Nats:
        """The part of the family gap that a full covariance closes; the rest is that the posterior is not Gaussian."""
        return self.full - self.best

    def summary(self) -> dict[str, Any]:
        """Numbers for JSON: every mean with its standard errors."""
        parts = ("guide", "best", "full", "amortisation", "family", "covariance")
        return {
            "n": len(self),
            **{name: getattr(self, name).summary() for name in parts},
            "evidence": self.evidence.summary(),
        }


@dataclass(frozen=True)
class Gaps:
    """See `gaps`; prints as a table, a subset per line: ELBO + amortisation gap + family gap = log p.

    Attributes:
        splits: by subset.
        k: draws per datum of every ELBO.
        steps: of optimisation.
    """

    splits: dict[Subset, Split]
    k: int
    steps: int

    def __getitem__(self, subset: str | Sequence[str]) -> Split:
        """The split of a subset, its names in any order.

        Raises:
            KeyError: there is none.
        """
        asked = {subset} if isinstance(subset, str) else set(subset)
        for group, split in self.splits.items():
            if set(group) == asked:
                return split
        raise KeyError(f"no gaps of {sorted(asked)}; there are {[list(s) for s in self.splits]}")

    def summary(self) -> dict[str, Any]:
        """Numbers for a table or JSON."""
        subsets = {", ".join(group): split.summary() for group, split in self.splits.items()}
        return {"k": self.k, "steps": self.steps, "subsets": subsets}

    def __repr__(self) -> str:
        head = ["given", "rows", "ELBO", "amortisation", "se", "MC se", "family", "se", "MC se", "covariance", "log p"]
        rows, notes = [head], []
        for group, s in self.splits.items():
            row = [", ".join(group), f"{len(s)}", f"{s.guide.mean:.3f}"]
            for gap in (s.amortisation, s.family):
                row += [f"{gap.mean:.3f}", f"{gap.mean_se:.3f}", f"{gap.mean_se_mc:.4f}"]
            rows.append([*row, f"{s.covariance.mean:.3f}", f"{s.evidence.mean:.3f}"])
            if missed := (~s.evidence.reached).double().mean().item():
                notes.append(
                    f"given {', '.join(group)}: in {missed:.1%} of the rows log p did not reach its standard error of "
                    f"{s.evidence.target_se:g}, or k-hat says not to believe it; their family gap may be too small"
                )
        return "\n".join([f"gaps in nats: {self.k} draws, {self.steps} steps", *aligned(rows), *notes])


def gaps(
    model: Program,
    guide: Program,
    batch: Batch,
    *,
    subsets: Sets | None = None,
    k: int = 100,
    steps: int = 200,
    target_se: float = 0.05,
    chunk: int | None = None,
    memory: int = MEMORY,
    seed: int | None = None,
) -> Gaps:
    """Amortisation and family gap of q(z | x_S) for every subset S of the modalities (Cremer et al. 2018, eq. 5).

    ELBO(q*) - ELBO(q) and log p(x_S) - ELBO(q*), q* = N(m, diag(s^2)) the mean-field Gaussian of highest ELBO for the
    datum, in real coordinates of all latents together: steps of gradient ascent from the guide's moments, then fresh
    draws.  Optimisation stops short of the best by about .001 nats, which counts as family gap.

    The split is relative to that family.  A guide that is not in it (a mixture, a flow, a full covariance, a hierarchy)
    can be better than q*, and then its amortisation gap is negative; the sum of both gaps is KL(q || p(z | x_S)) for
    any guide.

    Args:
        subsets: names, or groups of them; default every one of up to 4 modalities, else each alone, all but one and
            all.  Rows with nothing of a subset are left out.
        k: draws per datum of every ELBO.
        steps: of Adam for q*, after half as many coarse ones.
        target_se, memory: of log p(x_S), as in `log_marginal`.
        chunk: rows x particles per pass.
        seed: draw with this seed and leave the caller's random state alone.

    Raises:
        NoLikelihood: the model defines no density.
        ValueError: k or steps below 2, subsets unknown or wholly missing, or latents that are discrete, or unknown to
            the guide and not enumerated.
    """
    if min(k, steps) < 2:
        raise ValueError(f"gaps need at least 2 draws and 2 steps, got k={k} and steps={steps}")
    groups, given = subsets_asked(model, batch, subsets)
    splits = {}
    with evaluating(model, guide, seed=seed):
        for group in groups:
            view = batch.only(*group, *given)
            splits[group] = _split(model, guide, view[view.present(group)], k, steps, target_se, chunk, memory)
    return Gaps(splits, k, steps)


def _split(
    model: Program, guide: Program, view: Batch, k: int, steps: int, target_se: float, chunk: int | None, memory: int
) -> Split:
    """That of what a view shows."""
    effort = Effort(k, refine=GradientSteps(steps), chunk=chunk, memory=memory)
    plan = planned(Marginal(model, guide, "", effort), view, effort)
    bounds = []
    for block in plan.blocks(view):
        sources: list[Source] = [(guide, block), *_best(model, guide, block, plan, steps)]
        bounds.append([_bound(model, source, block, plan, k) for source in sources])
    own, best, full = (Nats.join(column) for column in zip(*bounds, strict=True))
    reference = Effort(target_se=target_se, chunk=chunk, memory=memory)
    quantity = Marginal(model, guide, quantity_of(model, view), reference)
    return Split(own, best, full, estimated(quantity, view, reference))


def _best(model: Program, guide: Program, block: Batch, plan: Plan, steps: int) -> tuple[Refined, Refined]:
    """The mean-field and the full Gaussian."""
    target, pilots = posterior_and_draws(model, guide, block, plan.units)
    # The first ascent is in units of the guide's widths, whatever they are, the second in those that it found.
    coarse = GradientSteps(steps // 2, 4, 0.3, inflate=1.0)(target, pilots)
    fine = GradientSteps(steps, 16, inflate=1.0)
    best = fine(target, pilots, coarse)
    full = fine(target, pilots, Laplace(inflate=1.0)(target, best.sample(PILOTS)))
    worse = (_elbo(full, target) < _elbo(best, target)).nonzero().flatten()
    return best, full.replaced(worse, best[worse])  # a mean-field Gaussian is one with full covariance, too


def _elbo(density: Refined, target: Target) -> Tensor:
    u = density.sample(PILOTS)
    return (target(u) - density.log_density(u)).mean(0)


def posterior_and_draws(model: Program, guide: Program, block: Batch, chunk: int) -> tuple[Target, Tensor]:
    """The posterior in real coordinates, and draws of the guide in them `(P, N, D)`."""
    where, pilots = piloted(guide, block, chunk)
    return Target(model, block, where, chunk), pilots


def _bound(model: Program, source: Source, block: Batch, plan: Plan, k: int) -> Nats:
    """The ELBO of a guide or density, from K independent draws."""
    proposal = Proposal(model, [source], shares_of(1, 0.0), independent=True)
    log_w = torch.cat([proposal.draw(block, which).log_weight() for which in plan.slices(proposal.assign(k))])
    return Nats(log_w.mean(0), log_w.std(0) / sqrt(k))
