"""What `evaluate --metrics` measures beside likelihoods: accuracy across modalities, coherence, Frechet distances."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pyro_mm import storage
from pyro_mm.evaluation.coherence import cross_accuracy, draws_jointly, joint_coherence
from pyro_mm.evaluation.collapse import finite
from pyro_mm.evaluation.frechet import rank
from pyro_mm.files import BadFile, read_json, write_json
from pyro_mm.judges import Judges, train_judges
from pyro_mm.results import percent
from pyro_mm.runs import METRICS, Run
from pyro_mm.tables import aligned

__all__ = ["KNOWN", "earlier", "evaluate_metrics", "heading", "known", "metrics_table"]

FORMAT = 1
KNOWN = ("likelihood", "coherence", "rank")
WORDS = ("none", "one", "two", "three", "four", "five", "six")


def known(text: str, there: Sequence[str] = KNOWN, what: str = "metric") -> list[str]:
    """Metrics, or other names that are `there`, named with commas, such as `coherence,rank`, each once.

    Raises:
        ValueError: an unknown one, or none; the message lists those there are.
    """
    asked = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [f"'{m}'" for m in asked if m not in there]
    if unknown or not asked:
        wrong = f"unknown {what} {', '.join(unknown)}" if unknown else f"no {what} is named"
        raise ValueError(f"{wrong}: there are {', '.join(there)}")
    return list(dict.fromkeys(asked))


def evaluate_metrics(
    run: Run,
    which: Sequence[str] = ("coherence", "rank"),
    judges: Judges | None = None,
    rows: int | None = None,
    *,
    draws: int = 1000,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Measure a run on its test rows (the first `rows` of them) and write `metrics.json`.

    What the file has of other metrics, by the same judges on the same rows with the same seed, stays in it.

    Args:
        which: of `coherence` (accuracy for every conditioning set, and of draws from the prior) and `rank`.
        judges: default those of the run's data, trained unless they are kept in `folder` (`train_judges`).
        draws: from the prior, for the joint coherence.
        tell: called with what is being done.

    Raises:
        ValueError: another metric, `rows` or `draws` below 1, or data without a label.
    """
    if not which or set(which) - {"coherence", "rank"}:
        raise ValueError(f"metrics are coherence and rank; got {list(which)}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    test = run.test_rows(rows)
    if judges is None:
        judges = train_judges(run.splits, folder=folder, device=test.device, tell=tell)
    judges.to(test.device)
    head = _head(run, judges, len(test), seed)
    found = dict(head)
    pair = (run.recipe.model, run.recipe.drawing, judges)
    options: dict[str, Any] = {"means": run.recipe.means, "seed": seed}
    if "coherence" in which:
        tell("accuracy across modalities")
        found["cross_accuracy"] = cross_accuracy(*pair, test, judges.label, **options).to_json()
        if draws_jointly(run.recipe.model, test.names):
            tell("joint coherence")
            share = joint_coherence(*pair, run.recipe.modalities, draws, **options)
            found["joint_coherence"] = {"value": share.value, "se": share.se, "n": share.n}
    if "rank" in which:
        tell("Frechet distances")
        found["rank"] = {m: r.to_json() for m, r in rank(*pair, test, **options).items()}
    write_json(run.folder / METRICS, {**earlier(run.folder / METRICS, head), **found})
    return found


def heading(run: Run, rows: int, seed: int) -> dict[str, Any]:
    """What was measured."""
    return {
        "format": FORMAT,
        "variant": run.settings.variant,
        "data": run.settings.data,
        "split": "test",
        "data_fingerprint": run.record["data_fingerprint"],
        "versions": storage.versions(),
        "rows": rows,
        "seed": seed,
        "means": list(run.recipe.means),
    }


def _head(run: Run, judges: Judges, rows: int, seed: int) -> dict[str, Any]:
    """What was measured, and by whom."""
    return heading(run, rows, seed) | {"judges": accuracies(judges)}


def accuracies(judges: Judges) -> dict[str, Any]:
    """How good the judges themselves are, on real test rows."""
    return {m: {"accuracy": finite(p.value), "se": finite(p.se), "n": p.n} for m, p in judges.accuracy.items()}


def earlier(path: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of measurements holds, if it begins with the same facts; else nothing."""
    try:
        there: dict[str, Any] = read_json(path)
    except (BadFile, OSError):
        return {}
    return there if all(there.get(k) == v for k, v in head.items()) else {}


def judges_lines(accuracy: Mapping[str, dict[str, Any]]) -> list[str]:
    """A table of `accuracies`."""
    rows = [[m, f"{_percent(j['accuracy'])} +- {_percent(j['se'])}"] for m, j in accuracy.items()]
    return ["accuracy of the judges on real test rows", "", *aligned(rows)]


def metrics_table(found: dict[str, Any]) -> str:
    """What `evaluate_metrics` found, as text."""
    parts = [judges_lines(found["judges"])]
    if "cross_accuracy" in found:
        parts.append(["accuracy of what is generated", "", *_accuracies(found["cross_accuracy"])])
    if "joint_coherence" in found:
        joint = found["joint_coherence"]
        text = f"{_percent(joint['value'])} +- {_percent(joint['se'])}"
        parts.append([f"joint coherence of {joint['n']:,} draws from the prior: {text}"])
    if "rank" in found:
        parts.append(["Frechet distance to the test rows, by what is given", "", *_ranks(found["rank"])])
    return "\n\n".join("\n".join(lines) for lines in parts)


def _accuracies(found: Sequence[dict[str, Any]]) -> list[str]:
    """A line for every target and set, and one for the mean over sets of one size where there are several."""
    rows = [["target", "accuracy", "given"]]
    for (target, size), group in groupby(found, key=lambda e: (e["target"], len(e["given"]))):
        same = list(group)
        rows += [[target, f"{_percent(e['accuracy'])} +- {_percent(e['se'])}", ", ".join(e["given"])] for e in same]
        if len(same) > 1:
            mean = sum(e["accuracy"] for e in same) / len(same)
            word = WORDS[size] if size < len(WORDS) else str(size)
            rows.append([target, _percent(mean), f"mean over sets of {word}"])
    width = max(len(r[1]) for r in rows)
    left = aligned([[r[0], r[1].ljust(width)] for r in rows])
    return [f"{line:{len(rows[0][0])}}  {r[2]}" for line, r in zip(_padded(left), rows, strict=True)]


def _ranks(found: dict[str, dict[str, Any]]) -> list[str]:
    head = ["target", "one other (mean +- sd)", "all", "nothing", "halves of the data"]
    rows = [
        [m, f"{_number(r['mean'])} +- {_number(r['sd'])}", *(_number(r[key]) for key in ("every", "prior", "baseline"))]
        for m, r in found.items()
    ]
    return aligned([head, *rows])


def _padded(lines: Sequence[str]) -> list[str]:
    width = max(map(len, lines))
    return [line.ljust(width) for line in lines]


def _percent(share: float | None) -> str:
    return "-" if share is None else percent(share)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
