"""`check_pair`: does a model/guide pair of your own keep the contract that training and likelihoods rely on?

Every check runs both programs and compares numbers; nothing is read from the source.  A check whose premise failed is
skipped, so that one mistake gives one failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch

from pyro_mm.batch import Batch
from pyro_mm.evaluation.check import densities, learning, missing, numbers, purity, rows, structure
from pyro_mm.evaluation.check.pair import Failure, Pair, Skip, copy_of, first_line
from pyro_mm.evaluation.check.report import Check, CheckReport, PairError
from pyro_mm.handlers import Program

__all__ = ["Check", "CheckReport", "PairError", "check_pair"]


@dataclass(frozen=True)
class Spec:
    """A check: `test` returns what it measured, or raises Failure or Skip; `needs` are checks that must not fail."""

    name: str
    test: Callable[[Pair], str]
    needs: tuple[str, ...]
    fix: str = ""


RUNS = ("sites", "batch unchanged")
FIXED = (*RUNS, "repeatable", "hidden randomness")
CHECKS = (
    Spec("sites", structure.sites, ()),
    Spec(
        "global parameters",
        purity.global_parameters,
        ("sites",),
        "hold parameters in the modules (nn.Parameter); a PyroModule needs pyro.settings.set(module_local_params=True)",
    ),
    Spec("batch unchanged", purity.batch_unchanged, ("sites",), "work on copies: batches are shared between calls"),
    Spec(
        "module state",
        purity.module_state,
        ("sites",),
        "change buffers only `if self.training`, and never call train() or eval() in a program",
    ),
    Spec(
        "repeatable",
        purity.repeatable,
        (*RUNS, "module state"),
        "draw with torch or Pyro only, keep no state between calls, and register every submodule",
    ),
    Spec(
        "hidden randomness",
        purity.hidden_randomness,
        (*RUNS, "repeatable"),
        "a program may not draw outside pyro.sample (drop-out included): switch the module to eval(), let "
        "random_views(...) choose what the guide sees, or score the guide by semi_implicit(...)",
    ),
    Spec(
        "particle plate",
        structure.particle_plate,
        FIXED,
        "programs run under leading dimensions (K, 1, N): wrap networks that take one batch dimension in flat(net)",
    ),
    Spec("modality order", structure.modality_order, FIXED, "look modalities up by name"),
    Spec(
        "row independence",
        rows.row_independence,
        FIXED,
        "no row may look at others: replace batch normalisation (or statistics of the batch) by layer normalisation",
    ),
    Spec("row order", rows.row_order, FIXED, "a row's result may not depend on its place in the batch"),
    Spec(
        "re-batching",
        rows.rebatching,
        (*FIXED, "row independence", "row order"),
        "a row's result may not depend on the number of rows beside it",
    ),
    Spec(
        "subset plate",
        structure.subset_plate,
        (*FIXED, "row independence", "row order"),
        "broadcast masks (S, N) against latents, or do not use in_subsets(...) with this pair",
    ),
    Spec(
        "masked values",
        missing.masked_values,
        FIXED,
        "score observations under poutine.mask(mask=batch.mask[m]), and read x_m as "
        "torch.where(mask, f(x_m), 0), not as mask * f(x_m)",
    ),
    Spec(
        "masked gradients",
        missing.masked_gradients,
        (*FIXED, "masked values"),
        "cut masked values off with torch.where before anything is computed from them",
    ),
    Spec(
        "nothing present",
        missing.nothing_present,
        (*FIXED, "masked values"),
        "where nothing is present the guide must sample the model's prior, and the model score no observation",
    ),
    Spec(
        "scales",
        numbers.scales,
        FIXED,
        "do not put a trace's log_prob into pyro.factor: it carries the scale; use the sites themselves",
    ),
    Spec(
        "gradients",
        learning.gradients,
        FIXED,
        "use the parameter, remove it, or set requires_grad_(False); draw with rsample and detach nothing",
    ),
    Spec("stock SVI", learning.stock_svi, FIXED),
    Spec(
        "support",
        numbers.support,
        (*FIXED, "particle plate"),
        "the guide's distributions need the model's support: tails wherever the prior has mass",
    ),
    Spec(
        "guide density",
        densities.guide_density,
        (*FIXED, "particle plate"),
        "sampler and density must be one distribution: check that a scale is a standard deviation, that every particle "
        "draws its own mixture component (Mixture), and that log_prob is normalised",
    ),
    Spec(
        "model density",
        densities.model_density,
        FIXED,
        "sampler and log_prob of the site's distribution must agree: check scale against variance, and normalisation",
    ),
    Spec(
        "bounds",
        numbers.bounds,
        (*FIXED, "particle plate", "row independence", "masked values", "support", "guide density", "model density"),
        "the weights are not p/q of any pair: compare the model's sampler with its densities, site by site",
    ),
    Spec(
        "generation",
        numbers.generation,
        (*FIXED, "particle plate", "masked values"),
        "give every observation a distribution that can be sampled when nothing is observed, from latents only",
    ),
)


def check_pair(
    model: Program, guide: Program, batch: Batch, *, k: int = 500, seed: int = 0, raise_on_failure: bool = True
) -> CheckReport:
    """Run every contract check on a pair; no base class is needed.

    The batch may be complete: rows and modalities are hidden in every way here.  Modules, random state, batch and
    Pyro's global store are left as they were.  A few seconds for a small pair; `print(report)` shows a table.

    Args:
        k: draws per row in the checks that sample (densities, bounds).
        raise_on_failure: raise instead of returning a report with failures.

    Raises:
        PairError: (a ValueError) listing every check that failed, what it measured, and the fix.
    """
    guide = getattr(guide, "program", guide) if hasattr(guide, "mixture_views") else guide  # its views are enumerated
    if k < 50:
        raise ValueError(f"densities and bounds are compared over at least 50 draws; got k={k}")
    store = pyro.get_param_store()
    before = purity.State(model, guide)
    results: list[Check] = []
    blocked: set[str] = set()
    try:
        with store.scope(store.get_state()), torch.random.fork_rng(devices=[]):
            pair = Pair.of(model, guide, copy_of(batch), k, seed)
            for spec in CHECKS:
                cause = next((n for n in spec.needs if n in blocked), None)
                result = _run(spec, pair) if cause is None else Check(spec.name, "skipped", f"because of '{cause}'")
                if cause is not None or result.status == "fail":
                    blocked.add(spec.name)
                results.append(result)
    finally:
        before.restore()
    report = CheckReport(tuple(results))
    if raise_on_failure and not report.ok:
        raise PairError(report)
    return report


def _run(spec: Spec, pair: Pair) -> Check:
    try:
        return Check(spec.name, "pass", spec.test(pair))
    except Skip as skip:
        return Check(spec.name, "skipped", str(skip))
    except Failure as failure:
        return Check(spec.name, "fail", failure.measured, failure.fix or spec.fix)
    except Exception as error:
        return Check(spec.name, "fail", f"the check stopped with {first_line(error)}", spec.fix)
