"""log p(x_S), S the modalities present in a row."""

from __future__ import annotations

from typing import Any

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.evidence import Evidence, NoLikelihood
from pyro_mm.evaluation.proposals import Proposal, evaluating, shares_of
from pyro_mm.evaluation.streaming import WeightSums
from pyro_mm.handlers import Program

__all__ = ["log_marginal"]


def log_marginal(
    model: Program,
    guide: Program,
    batch: Batch,
    k: int = 1000,
    *,
    defensive: float = 0.1,
    independent: bool = False,
    chunk: int | None = None,
    seed: int | None = None,
) -> Evidence:
    """log p(x_S) per datum by importance sampling, S the modalities present in each row (Burda et al. 2016, eq. 8).

    lhat = log 1/K sum_k p(x_S, z_k) / q_mix(z_k),  q_mix = (1 - a) q(z | x_S) + a p(z):  a lower bound in expectation.
    The joint likelihood is that of a full batch, a marginal that of `batch.only(...)`.  Training weights (beta,
    likelihood weights, plate subsampling) never enter.  A row with nothing present gives 0.

    Args:
        k: draws per datum.
        defensive: the share a of draws from the prior.
        independent: draw components at random instead of in fixed proportions: the estimate is noisier, and `se` is
            exact instead of on the safe side.
        chunk: rows x particles per pass, chosen from the data's size by default; it changes no result but rounding
            and the random draws.
        seed: draw with this seed and leave the caller's random state alone.

    Raises:
        NoLikelihood: the model defines no such density.
        ValueError: the pair breaks a convention (a guide-only site, a site outside the data plate).
    """
    require_likelihood(model)
    plan = Plan.for_batch(batch, k, chunk)
    parts = []
    with evaluating(model, guide, seed=seed):
        for block in plan.blocks(batch):
            proposal = Proposal(model, [(guide, block)], shares_of(1, defensive), independent)
            sums = WeightSums(k)
            prior_sites: tuple[str, ...] = ()
            for which in plan.slices(proposal.assign(k)):
                draws = proposal.draw(block, which)
                sums.add(draws.log_weight())
                prior_sites = draws.prior_sites
            parts.append(evidence_of(sums, quantity_of(model, batch), proposal_name(defensive), prior_sites))
    return Evidence.join(parts)


def evidence_of(sums: WeightSums, quantity: str, proposal: str, prior_sites: tuple[str, ...] = ()) -> Evidence:
    """A result from the sums over all draws."""
    v = sums.variance
    return Evidence(
        quantity,
        sums.estimate,
        v.sqrt(),
        1 / sums.concentration,
        sums.khat,
        -v / 2,
        sums.k,
        proposal,
        prior_sites,
    )


def proposal_name(defensive: float, guide: str = "guide") -> str:
    """`0.9 guide + 0.1 prior`."""
    return f"{1 - defensive:g} {guide} + {defensive:g} prior" if defensive else guide


def quantity_of(model: Any, batch: Batch) -> str:
    """`log p(image, label)`: the model's modalities that are present in at least one row."""
    known = getattr(model, "names", None) or tuple(batch.mask)
    present = [m for m, mask in batch.mask.items() if m in known and m not in batch.hidden and bool(mask.any())]
    return f"log p({', '.join(present)})"


def require_likelihood(model: Any, given: tuple[str, ...] = (), of: tuple[str, ...] = ()) -> None:
    """Raise NoLikelihood when the model does not define the density that is asked for.

    A model says so by `no_likelihood` (a reason), or by `conditioned_on` (modalities it is given, never generates).
    """
    reason = getattr(model, "no_likelihood", None)
    if reason:
        raise NoLikelihood(f"{type(model).__name__} has no likelihood: {reason}")
    names = getattr(model, "names", None)
    if names and (absent := [m for m in of if m not in names]):
        raise NoLikelihood(f"{type(model).__name__} generates {list(names)}, so it has no density of {absent}")
    conditions = tuple(getattr(model, "conditioned_on", ()))
    if missing := [m for m in conditions if m not in given]:
        raise NoLikelihood(
            f"{type(model).__name__} is a model of {', '.join(model.names)} given {', '.join(conditions)}: it has "
            f"log_conditional(of={list(model.names)}, given={list(conditions)}) only; not given here: {missing}"
        )
