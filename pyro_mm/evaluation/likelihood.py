"""One call for log p(x_A) and log p(x_A | x_B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_mm.batch import Batch, as_names
from pyro_mm.evaluation.conditional import log_conditional
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.marginal import log_marginal
from pyro_mm.handlers import Program

__all__ = ["log_likelihood"]


def log_likelihood(
    model: Program,
    guide: Program,
    batch: Batch,
    of: str | Sequence[str],
    given: str | Sequence[str] = (),
    k: int | None = None,
    **options: Any,
) -> Evidence:
    """log p(x_A | x_B) by `log_conditional`, A = `of`, B = `given`; log p(x_A) by `log_marginal` where B is empty.

    What else the batch has is not looked at.  `k` and the options are theirs, and so is what is raised.
    """
    if given:
        return log_conditional(model, guide, batch, of, given, k, **options)
    return log_marginal(model, guide, batch.only(*as_names(of)), k, **options)
