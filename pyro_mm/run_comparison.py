"""Is one run's model better than another's?  Paired differences of held-out log-likelihoods."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from pyro_mm.evaluation.compare import Comparison, compare
from pyro_mm.evaluation.effort import refinable
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.likelihood import log_likelihood
from pyro_mm.results import Names
from pyro_mm.runs import Run, open_run

__all__ = ["compare_runs", "evidence_of_run"]


def compare_runs(
    runs: Sequence[Run | str | os.PathLike[str]],
    of: str | Names | None = None,
    given: str | Names = (),
    k: int = 1000,
    rows: int | None = None,
    *,
    refine: bool = True,
    seed: int = 0,
    tell: Callable[[str], object] = lambda name: None,
) -> Comparison:
    """Compare runs on the same test rows by log p(of | given), the joint by default; `Comparison` says how.

    Runs are named by their folders.

    Args:
        k, rows, refine: draws per row, the first so many test rows, with refined proposals.
        tell: called with the name of each run before it is evaluated.

    Raises:
        ValueError: fewer than two runs, two of one name, or runs on different data.
        NoLikelihood: a run's model does not define that density.
    """
    opened = [r if isinstance(r, Run) else open_run(r) for r in runs]
    names = [r.folder.name for r in opened]
    if len(opened) < 2 or len(set(names)) < len(names):
        raise ValueError(f"compare at least two runs in folders of different names; got {names}")
    data = {n: r.record["data_fingerprint"] for n, r in zip(names, opened, strict=True)}
    if len(set(data.values())) > 1:
        about = {n: r.splits.name for n, r in zip(names, opened, strict=True)}
        raise ValueError(f"the runs were trained and tested on different rows: {about}, fingerprints {data}")
    found: dict[str, Evidence] = {}
    for name, run in zip(names, opened, strict=True):
        tell(name)
        found[name] = evidence_of_run(run, of, given, k, rows, refine, seed)
    return compare(found)


def evidence_of_run(
    run: Run, of: str | Names | None, given: str | Names, k: int, rows: int | None, refine: bool, seed: int
) -> Evidence:
    model, guide = run.recipe.model, run.recipe.guide
    test = run.test_rows(rows)
    options: dict[str, Any] = {"refine": refine and refinable(model, guide, test), "seed": seed}
    return log_likelihood(model, guide, test, run.splits.names if of is None else of, given, k, **options)
