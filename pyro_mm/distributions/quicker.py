"""The log-density of a distribution, the quick way where torch's takes longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_mm.distributions.bernoulli import Bernoulli, Binomial
from pyro_mm.distributions.normal import Normal

__all__ = ["log_prob_of"]

QUICKER: dict[type, Callable[[Any, Tensor], Tensor]] = {
    dist.Bernoulli: Bernoulli.log_prob,
    dist.Binomial: Binomial.log_prob,
    dist.Normal: Normal.log_prob,
}


def log_prob_of(fn: Any, value: Tensor) -> Tensor:
    """`fn.log_prob(value)`, by our own formula where `fn` is Pyro's Bernoulli, binomial or Normal, or events of these.

    So a program need not name our distributions to be as quick.  Values are validated where `fn` would; what is of a
    class of its own is asked itself.
    """
    base, summed = fn, 0
    while type(base) is dist.Independent:
        base, summed = base.base_dist, summed + base.reinterpreted_batch_ndims
    quick = QUICKER.get(type(base))
    if quick is None:
        return fn.log_prob(value)  # type: ignore[no-any-return]
    found = quick(base, value)
    return found.flatten(-summed).sum(-1) if summed else found
