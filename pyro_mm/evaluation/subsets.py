"""Which subsets of the modalities something is done for: every one by default, of few; and what a person asks for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from pyro_mm.batch import Batch, as_names
from pyro_mm.evaluation.marginal import require_likelihood
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import per_datum, run

__all__ = ["Sets", "Subset", "subsets_asked"]

Subset = tuple[str, ...]
Sets = Sequence[str | Sequence[str]]


def subsets_asked(model: Program, batch: Batch, subsets: Sets | None) -> tuple[list[Subset], Subset]:
    """The subsets, in the batch's order, and what the model is given beside them."""
    given = tuple(getattr(model, "conditioned_on", ()))
    require_likelihood(model, given)
    with evaluating(model, seed=0):
        sites = run(particles(model, 1), batch[:1])
    if several := [n for n, site in sites.items() if per_datum(site).shape[1] > 1]:
        raise ValueError(f"sites {several} have several values per row: pass the programs inside in_subsets(...)")
    names = [m for m in batch.names if m in sites]
    present = [m for m in names if bool(batch.mask[m].any())]
    if subsets is None:
        sizes = range(1, 5) if len(present) <= 4 else (1, len(present) - 1, len(present))
        asked = [group for size in sizes for group in combinations(present, size)]
    else:
        asked = [as_names(s) for s in subsets]
    if not asked:
        raise ValueError(f"no subsets: the model generates {names} of the batch's modalities, {present} in some row")
    if unknown := {m for group in asked for m in group} - set(names):
        raise ValueError(f"subsets name {sorted(unknown)}, but the model generates {names} of the batch's modalities")
    if empty := [s for s in asked if not set(s) & set(present)]:
        raise ValueError(f"no row of the batch has anything of {empty[0]}")
    return list(dict.fromkeys(tuple(m for m in names if m in s) for s in asked)), given
