"""Every likelihood that a system defines on a test set, its label accuracy, and tables of both."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.classify import classify, classify_plug_in
from pyro_mm.evaluation.coherence import Proportion
from pyro_mm.evaluation.effort import refinable
from pyro_mm.evaluation.evidence import Evidence, NoLikelihood
from pyro_mm.evaluation.likelihood import log_likelihood
from pyro_mm.evaluation.psis import threshold
from pyro_mm.recipe import Recipe
from pyro_mm.tables import aligned

__all__ = [
    "Results",
    "comparison",
    "evaluate",
    "percent",
    "quantities",
    "quantity",
    "shortened",
    "table",
]

Names = tuple[str, ...]
NOTE = (
    "k-hat: share of rows whose importance weights have too heavy a tail for their Monte Carlo error to be believed. "
    "Joint and marginals are lower bounds in expectation; where k-hat is high they may lie far below, by more than the "
    "error says, and rise with more draws (-k). Conditionals may err either way."
)
WIDTH, LONGEST = 100, 44  # characters of a table, and of its first column


@dataclass(frozen=True)
class Results:
    """What `evaluate` found.

    Attributes:
        evidence: by quantity, e.g. `log p(image | label)`.
        unavailable: why the model does not define the other quantities.
        accuracy: `accuracy` (the model's Bayes classifier) and `accuracy (guide)`, of the label from all else.
        k, seed, rows: draws per row, the seed of every quantity, how many rows.
        label, given: what `accuracy` is about.
    """

    evidence: dict[str, Evidence]
    unavailable: dict[str, str]
    accuracy: dict[str, Proportion]
    k: int
    seed: int
    rows: int
    label: str | None = None
    given: Names = ()
    names: Names = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Numbers and text for `results.json`; log-likelihoods are means over rows in nats."""
        found = {q: e.summary() for q, e in self.evidence.items()}
        return {
            "k": self.k,
            "seed": self.seed,
            "rows": self.rows,
            "label": self.label,
            "given": list(self.given),
            "likelihoods": {
                q: found.get(q, {"quantity": q, "unavailable": self.unavailable.get(q)}) for q in self.order
            },
            "accuracy": {name: {"value": s.value, "se": s.se, "n": s.n} for name, s in self.accuracy.items()},
        }

    @property
    def order(self) -> list[str]:
        """All quantities, available or not: joint, marginals, conditionals."""
        return [quantity(of, given) for of, given in quantities(self.names)]


def evaluate(
    recipe: Recipe,
    batch: Batch,
    label: str | None = None,
    k: int = 1000,
    *,
    refine: bool = True,
    bf16: bool = False,
    seed: int = 0,
    tell: Callable[[str], object] = lambda quantity: None,
) -> Results:
    """Joint, every marginal and every conditional of one modality given all others, per row of `batch`; label accuracy.

    Quantities come from `log_marginal` and `log_conditional` with this `k` and `seed`; what the model does not define
    (`NoLikelihood`, or a modality it does not generate) is listed as unavailable, with the reason.

    Args:
        refine: fit a proposal to every row first, where the latents allow it.
        bf16: the likelihoods with the model's layers in bfloat16 (`log_marginal`).
        label: the modality whose most probable value is compared with the data's; None for no accuracy.
        tell: called with the name of each quantity before it is computed.
    """
    model, guide = recipe.model, recipe.guide
    names = tuple(m.name for m in recipe.modalities) or batch.names
    evidence: dict[str, Evidence] = {}
    unavailable: dict[str, str] = {}
    options: dict[str, Any] = {"refine": refine and refinable(model, guide, batch), "seed": seed}
    for of, given in quantities(names):
        name = quantity(of, given)
        tell(name)
        try:
            _require_known(model, (*of, *given))
            evidence[name] = log_likelihood(model, guide, batch, of, given, k, bf16=bf16, **options)
        except NoLikelihood as error:
            unavailable[name] = str(error)
    given = tuple(m for m in names if m != label) if label in names else ()
    accuracy = _accuracies(recipe, batch, label, given, k, options, tell) if label and given else {}
    return Results(evidence, unavailable, accuracy, k, seed, len(batch), label, given, names)


def quantities(names: Sequence[str]) -> list[tuple[Names, Names]]:
    """(of, given): the joint, every marginal, every modality given all others, each once."""
    every = tuple(names)
    if len(every) == 1:
        return [(every, ())]
    alone: list[tuple[Names, Names]] = [((m,), ()) for m in every]
    rest: list[tuple[Names, Names]] = [((m,), tuple(o for o in every if o != m)) for m in every]
    return [(every, ()), *alone, *rest]


def quantity(of: Names, given: Names) -> str:
    """`log p(image | label)`, as `Evidence.quantity` has it."""
    return f"log p({', '.join(of)} | {', '.join(given)})" if given else f"log p({', '.join(of)})"


def table(results: dict[str, Any]) -> str:
    """`Results.to_json()` as aligned text."""
    head = ["quantity", "mean", "SE", "MC SE", "median ESS", f"k-hat > {threshold(results['k']):.2f}"]
    rounding = [r["rounding"] for r in results["likelihoods"].values() if "rounding" in r]
    lines = aligned([head, *(_row(q, r, results["rows"]) for q, r in results["likelihoods"].items())])
    if rounding:
        change = max(abs(mean) for mean, _, _ in rounding), max(largest for _, largest, _ in rounding)
        lines += ["", "layers in bfloat16 change a mean by {:.3f} and a row by {:.3f} at most".format(*change)]
    if results["accuracy"]:
        lines += ["", f"of {results['label']} from {', '.join(results['given'])}:"]
        lines += [f"  {name:18} {percent(a['value'])} +- {percent(a['se'])}" for name, a in results["accuracy"].items()]
    reasons = dict.fromkeys(r["unavailable"] for r in results["likelihoods"].values() if "unavailable" in r)
    if reasons:
        lines += [
            "",
            "not available:",
            *(textwrap.fill(r, WIDTH, initial_indent="  ", subsequent_indent="    ") for r in reasons),
        ]
    return "\n".join(lines)


def comparison(results: Mapping[str, dict[str, Any]]) -> str:
    """Several systems' `Results.to_json()` on the same rows side by side: quantities down, systems across."""
    first = next(iter(results.values()))
    limit = f"k-hat > {threshold(first['k']):.2f}"
    rows = [["", *results]]
    for q in dict.fromkeys(q for r in results.values() for q in r["likelihoods"]):
        found = [r["likelihoods"].get(q, {"unavailable": ""}) for r in results.values()]
        rows.append([shortened(q), *("not available" if "unavailable" in f else _mean(f) for f in found)])
        rows.append([f"  median ESS, {limit}", *("" if "unavailable" in f else _trust(f) for f in found)])
    for name in dict.fromkeys(name for r in results.values() for name in r["accuracy"]):
        shares = [r["accuracy"].get(name) for r in results.values()]
        what = f"accuracy ({first['label']} | {', '.join(first['given'])})" if name == "accuracy" else name
        rows.append([what, *(percent(s["value"]) if s else "" for s in shares)])
    if any("seconds" in r for r in results.values()):
        rows.append(["training", *(f"{r['seconds']:.0f} s" if "seconds" in r else "" for r in results.values())])
    head = f"{first['rows']:,} test rows, K = {first['k']:,} draws each; mean over rows +- its standard error, in nats"
    return "\n".join([head, "", *aligned(rows), "", textwrap.fill(NOTE, WIDTH)])


def shortened(quantity: str) -> str:
    """The same where it is short; of many modalities `log p(all)` and `log p(image | all others)`."""
    of, bar, _ = quantity.partition(" | ")
    if len(quantity) <= LONGEST:
        return quantity
    return f"{of} | all others)" if bar else "log p(all)"


def percent(share: float) -> str:
    """`97.2 %`."""
    return f"{100 * share:.1f} %"


def _row(name: str, found: dict[str, Any], rows: int) -> list[str]:
    if "unavailable" in found:
        return [shortened(name), "not available", "", "", "", ""]
    name = shortened(found["quantity"]) + (f", {found['n']:,} rows" if found["n"] < rows else "")
    error = "-" if found["mc_se"] is None else f"{found['mc_se']:.3f}"
    numbers = [f"{found['mean']:.2f}", f"{found['se']:.2f}", error]
    return [name, *numbers, f"{found['median_ess']:.0f}", percent(found["khat_above"])]


def _mean(found: dict[str, Any]) -> str:
    return f"{found['mean']:.2f} +- {found['se']:.2f}"


def _trust(found: dict[str, Any]) -> str:
    return f"{found['median_ess']:.0f}, {percent(found['khat_above'])}"


def _require_known(model: Any, names: Names) -> None:
    """A model that says what it generates is asked for nothing else."""
    own = getattr(model, "names", None)
    if own is None:
        return
    known = (*own, *getattr(model, "conditioned_on", ()))
    if unknown := [m for m in names if m not in known]:
        raise NoLikelihood(f"{type(model).__name__} is a model of {', '.join(known)}; it has no {', '.join(unknown)}")


def _accuracies(
    recipe: Recipe,
    batch: Batch,
    label: str,
    given: Names,
    k: int,
    options: dict[str, Any],
    tell: Callable[[str], object],
) -> dict[str, Proportion]:
    """Of the Bayes classifier and of the guide's draws, on rows that have a label and something to read it from."""
    scored = batch.mask[label] & batch.present(given)
    if not bool(scored.any()):
        return {}
    found = {}
    plain = {"seed": options["seed"]}
    for name, probabilities, used in (("accuracy", classify, options), ("accuracy (guide)", classify_plug_in, plain)):
        tell(f"{name} of {label}")
        try:
            _require_known(recipe.model, (label,))
            p = probabilities(recipe.model, recipe.guide, batch, label, given, k, **used)
        except NoLikelihood:
            continue
        hit = _hits(p, batch.x[label])[scored]
        found[name] = Proportion(hit.double().mean().item(), len(hit))
    return found


def _hits(p: Tensor, label: Tensor) -> Tensor:
    """Rows whose most probable class is the label, given as numbers `(N,)` or one-hot `(N, C)`."""
    truth = label.argmax(-1) if label.dim() == 2 else label.to(torch.long)
    return p.argmax(-1) == truth
