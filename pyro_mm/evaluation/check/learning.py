"""What training would do with the pair."""

from __future__ import annotations

import torch

from pyro_mm.evaluation.check.pair import Failure, Pair, Skip, copy_of
from pyro_mm.evaluation.modules import parameters_of
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.weights import run_pair, total_log_weight

__all__ = ["gradients", "stock_svi"]


def gradients(pair: Pair) -> str:
    """A finite gradient of the log-weights reaches every parameter, for some view of the batch."""
    named = parameters_of(pair.model, pair.guide)
    if not named:
        raise Skip("the programs have no parameters that want a gradient")
    dead = dict(named)
    broken: dict[str, str] = {}
    for label, view in pair.views():
        with evaluating(pair.model, pair.guide, seed=pair.seed), torch.enable_grad():
            total = total_log_weight(run_pair(pair.model, pair.guide, copy_of(view))).sum()
        if not total.requires_grad:
            continue
        for name, grad in zip(named, torch.autograd.grad(total, list(named.values()), allow_unused=True), strict=True):
            if grad is not None and not bool(torch.isfinite(grad).all()):
                broken.setdefault(name, label)
            elif grad is not None and bool((grad != 0).any()):
                dead.pop(name, None)
    problems = [f"'{n}' has a gradient that is not finite, with {label}" for n, label in broken.items()]
    problems += [f"no gradient reaches '{n}' for any view of the batch" for n in dead if n not in broken]
    if problems:
        raise Failure("; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else ""))
    return f"finite and not 0 for all {len(named)} parameters"


def stock_svi(pair: Pair) -> str:
    """What `pyro.infer.SVI` would train if it were given the pair as it is.  A statement, never a failure."""
    try:
        from pyro_mm.training.stock import stock_trains_nothing
    except ImportError:
        raise Skip("pyro_mm.training is not installed") from None
    count = len(parameters_of(pair.model, pair.guide))
    try:
        with evaluating(pair.model, pair.guide, seed=pair.seed):
            left = stock_trains_nothing(pair.model, pair.guide, copy_of(pair.batch))
    except TypeError as error:
        raise Skip(f"pyro_mm cannot tell: {error}") from None
    if not left:
        return "stock pyro.infer.SVI finds every parameter"
    names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
    return (
        f"stock pyro.infer.SVI would silently not train {len(left)} of {count} parameters ({names}): "
        "use pyro_mm's svi(model, guide, optim) or fit"
    )
