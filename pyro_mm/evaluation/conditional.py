"""log p(x_A | x_B), and the quantity that is often mistaken for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch

from pyro_mm.batch import Batch, as_names
from pyro_mm.evaluation.chunks import MEMORY, Plan
from pyro_mm.evaluation.components import row_wise
from pyro_mm.evaluation.discrete import enumerated_sites, left_to_model, log_posterior
from pyro_mm.evaluation.effort import Effort
from pyro_mm.evaluation.estimation import estimated
from pyro_mm.evaluation.evidence import Evidence, NoLikelihood, those_scored
from pyro_mm.evaluation.marginal import Marginal, evidence_of, quantity_of, require_likelihood, titled
from pyro_mm.evaluation.proposals import Proposal, evaluating, summed
from pyro_mm.evaluation.refine import Refiner
from pyro_mm.evaluation.streaming import RatioSums, WeightSums
from pyro_mm.half import apart
from pyro_mm.handlers import Impute, Program, particles
from pyro_mm.weights import Sites, check_sites, run

__all__ = ["asked_for", "conditional_name", "log_conditional", "log_conditional_difference", "plug_in"]

Names = str | Sequence[str]


def log_conditional(
    model: Program,
    guide: Program,
    batch: Batch,
    of: Names,
    given: Names,
    k: int | None = None,
    *,
    target_se: float | None = None,
    refine: Refiner | bool | None = None,
    defensive: float = 0.1,
    independent: bool = False,
    chunk: int | None = None,
    memory: int = MEMORY,
    bf16: bool = False,
    seed: int | None = None,
) -> Evidence:
    """log p(x_A | x_B) per datum, A = `of`, B = `given`, both parts on the same draws.

    z_k from (1-a)/2 q(z|x_A,x_B) + (1-a)/2 q(z|x_B) + a p(z),  w_k = p(x_B, z_k) / q_mix(z_k),  u_k = w_k p(x_A|z_k):
    lhat = log (sum u / sum w).  It is no bound either way; `bias` estimates its first-order bias.  Private latents of
    x_A are drawn from the model where the guide is shown x_B alone: they integrate out of the denominator.  Rows that
    lack all of x_A give 0 and count in no mean; those that lack x_B, or parts of it, are asked given what they have.

    Args:
        k, target_se, refine, defensive, independent, chunk, memory, bf16, seed: as in `log_marginal`; both guides of
            the mixture are refined, for p(z | x_A, x_B) and for p(z | x_B).

    Raises:
        NoLikelihood: the model defines no such density.
        ValueError: A and B overlap, or name unknown modalities; and as in `log_marginal`.
    """
    a, b = _names(of, given, batch)
    require_likelihood(model, b, of=a)
    both = batch.only(*a, *b)
    effort = Effort(k, target_se, refine, defensive, independent, chunk, memory, seed, bf16)
    _known_sites(model, both, a, b)
    return estimated(Conditional(model, guide, a, b, effort), both, effort)


def log_conditional_difference(
    model: Program,
    guide: Program,
    batch: Batch,
    of: Names,
    given: Names,
    k: int | None = None,
    *,
    target_se: float | None = None,
    refine: Refiner | bool | None = None,
    defensive: float = 0.1,
    independent: bool = False,
    chunk: int | None = None,
    memory: int = MEMORY,
    bf16: bool = False,
    seed: int | None = None,
) -> Evidence:
    """log p(x_A | x_B) = log p(x_A, x_B) - log p(x_B), each with its own draws of its own proposal.

    The same quantity as `log_conditional` by another estimator; the bias of the two parts does not cancel.  Arguments
    as there; each part is estimated to `target_se` / sqrt 2.
    """
    a, b = _names(of, given, batch)
    require_likelihood(model, b, of=a)
    _known_sites(model, batch.only(*a, *b), a, b)
    effort = Effort(k, target_se, refine, defensive, independent, chunk, memory, seed, bf16)
    return _difference(model, guide, batch, a, b, effort)


def _difference(
    model: Program, guide: Program, batch: Batch, a: tuple[str, ...], b: tuple[str, ...], effort: Effort
) -> Evidence:
    program = _unconditional(model)
    target, seed = effort.target_se, effort.seed
    effort = replace(effort, target_se=None if target is None else target / sqrt(2))
    parts = []
    for view, stream in ((batch.only(*a, *b), seed), (batch.only(*b), None if seed is None else seed + 1)):
        own = replace(effort, seed=stream)
        parts.append(estimated(Marginal(program, guide, quantity_of(program, view), own), view, own))
    both, part = parts
    asked = batch.present(a)  # of the others it is 0, not the difference of two noisy estimates of one number
    draws = None
    if both.draws is not None or part.draws is not None:
        draws = torch.maximum(both.draws_per_datum, part.draws_per_datum)
    return Evidence(
        conditional_name(model, a, b),
        torch.where(asked, both.estimate - part.estimate, 0.0),
        torch.where(asked, (both.se**2 + part.se**2).sqrt(), 0.0),
        torch.minimum(both.ess, part.ess),
        torch.maximum(both.khat, part.khat),
        both.bias - part.bias,
        max(both.k, part.k),
        f"difference of marginals, {both.proposal}",
        both.prior_sites,
        draws,
        target,
        those_scored(asked),
        apart(both.rounding, part.rounding),
    )


def plug_in(
    model: Program,
    guide: Program,
    batch: Batch,
    of: Names,
    given: Names,
    k: int = 1000,
    *,
    chunk: int | None = None,
    seed: int | None = None,
) -> Evidence:
    """log E_{q(z|x_B)} p(x_A | z): the guide's cross-generation density.  It is *not* log p(x_A | x_B).

    A proper predictive density of guide and decoder together, whose distance from the conditional no number of draws
    removes; many papers report it, or a bound on it, as "conditional likelihood".
    """
    a, b = _names(of, given, batch)
    require_likelihood(model, b, of=a)
    both, known = batch.only(*a, *b), batch.only(*b)
    _known_sites(model, both, a)
    plan = Plan.for_batch(both, k, chunk)
    parts = []
    with evaluating(model, guide, seed=seed):
        for full, part in zip(plan.blocks(both), plan.blocks(known), strict=True):
            sums = WeightSums(k)
            for start in range(0, k, plan.particles):
                sums.add(_plugged(model, guide, full, part, a, min(plan.particles, k - start)))
            parts.append(evidence_of(sums, f"log plug-in({', '.join(a)} | {', '.join(b)})", "guide"))
    return replace(Evidence.join(parts), scored=those_scored(batch.present(a)))


def _plugged(model: Program, guide: Program, full: Batch, part: Batch, a: tuple[str, ...], k: int) -> torch.Tensor:
    """log p(x_A | z_k), z_k from the guide that sees `part`: `(k, N)`.

    Latents of what is hidden from the guide are drawn from the model: the guide's own values may know x_A.
    """
    drawn = run(particles(guide, k), part)
    with Impute({n: (s.value, s.mask) for n, s in drawn.items()}):
        sites = run(particles(model, k), full)
    check_sites(sites, drawn)
    if not left_to_model(sites, drawn):
        return torch.stack([row_wise(sites[m]) for m in a]).sum(0)
    # log sum_c p(c | z_k, x_B) p(x_A | z_k, c)
    seen, depth = enumerated_sites(model, part, drawn, k, {})
    asked, _ = enumerated_sites(model, full, drawn, k, {})
    return summed(log_posterior(seen, depth) + sum(row_wise(asked[m], depth) for m in a))


@dataclass(frozen=True)
class Conditional:
    """log p(x_A | x_B) from draws of one proposal."""

    model: Program
    guide: Program
    of: tuple[str, ...]
    given: tuple[str, ...]
    effort: Effort

    def views(self, block: Batch) -> Sequence[Batch]:
        """The guide is shown A and B, and B alone."""
        return [block, block.only(*self.given)]

    def asks(self, batch: Batch) -> torch.Tensor:
        """Rows in which something of A is present."""
        return batch.present(self.of)

    def measured(self, proposal: Proposal, block: Batch, plan: Plan, k: int) -> Evidence:
        """From the sums of u and w over K draws."""
        sums = RatioSums(k)
        hidden: tuple[str, ...] = ()
        for which in plan.slices(proposal.assign(k)):
            draws = proposal.draw(block, which)
            known = [m for m in self.given if m in draws.log_likelihood]
            sums.add(draws.log_weight([*known, *self.of]), draws.log_weight(known))
            hidden = draws.prior_sites
        return self._evidence(sums, proposal, hidden)

    def _evidence(self, sums: RatioSums, proposal: Proposal, hidden: tuple[str, ...]) -> Evidence:
        u, w = sums.numerator, sums.denominator
        shown = [f"guide({', '.join(names)})" for names in (self.of + self.given, self.given)]
        return Evidence(
            conditional_name(self.model, self.of, self.given),
            sums.estimate,
            sums.variance.sqrt(),
            1 / torch.maximum(u.concentration, w.concentration),
            torch.maximum(u.khat, w.khat),
            -(u.variance - w.variance) / 2,
            sums.numerator.k,
            f"shared: {self.effort.describe(shown, proposal)}",
            hidden,
        )


def _names(of: Names, given: Names, batch: Batch) -> tuple[tuple[str, ...], tuple[str, ...]]:
    a = as_names(of)
    b = as_names(given)
    if not a or not b:
        raise ValueError("log_conditional needs at least one modality in `of` and one in `given`")
    if both := set(a) & set(b):
        raise ValueError(f"{sorted(both)} cannot be both `of` and `given`")
    if unknown := (set(a) | set(b)) - set(batch.mask):
        raise ValueError(f"unknown modality {sorted(unknown)}; this batch has {list(batch.mask)}")
    return a, b


def asked_for(
    model: Program, batch: Batch, of: Names | None, given: Names | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A and B of a conditional that the model is known to define.

    Raises:
        NoLikelihood: it does not.
        ValueError: one of them is left out, they overlap, or name unknown modalities.
    """
    if of is None or given is None:
        raise ValueError(f"a conditional needs both `of` and `given`; got of={of!r}, given={given!r}")
    a, b = _names(of, given, batch)
    require_likelihood(model, b, of=a)
    _known_sites(model, batch.only(*a, *b), a, b)
    return a, b


def conditional_name(model: Any, a: Sequence[str], b: Sequence[str]) -> str:
    """`log p(image | label)`."""
    return titled(model, f"log p({', '.join(a)} | {', '.join(b)})", (*a, *b))


def _known_sites(model: Program, batch: Batch, of: Sequence[str], given: Sequence[str] = ()) -> Sites:
    """The model's sites for one row.

    Raises:
        NoLikelihood: for modalities that the model has no site for and is not conditioned on either.
    """
    with evaluating(model, seed=0):
        sites = run(particles(model, 1), batch[:1])
    conditions = getattr(model, "conditioned_on", ())
    if unknown := [m for m in (*of, *given) if m not in sites and m not in conditions]:
        raise NoLikelihood(
            f"the model has no site {unknown}, so it defines no density given or of it; it has {list(sites)}"
        )
    return sites


def _unconditional(model: Program) -> Program:
    """The program without its `conditioned_on` flag: both parts of a difference are given the conditions."""
    return model if not getattr(model, "conditioned_on", ()) else (lambda batch: model(batch))
