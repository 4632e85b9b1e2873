"""Many variants on one data set with equal budgets: likelihoods, coherence, accuracy and time, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, lcm
from pathlib import Path
from statistics import mean
from typing import Any, cast

from pyro_mm.data import Splits
from pyro_mm.evaluation.compare import Comparison, compare
from pyro_mm.evaluation.evidence import Evidence, NoLikelihood
from pyro_mm.evaluation.marginal import quantity_of
from pyro_mm.files import read_json, write_json
from pyro_mm.metrics import evaluate_metrics
from pyro_mm.results import percent
from pyro_mm.run_comparison import evidence_of_run
from pyro_mm.runs import RECORD, Run, open_run, train_run
from pyro_mm.settings import Settings, build_recipe, load_data
from pyro_mm.tables import aligned

__all__ = ["Contest", "Standing", "contest", "trained"]

CONTEST = "contest.json"
FORMAT = 1


@dataclass(frozen=True)
class Standing:
    """What became of one variant.

    Attributes:
        seconds: of training; None where it could not be trained.
        steps: of training, over all stages; one moves every optimiser of a stage once.
        stages: how many the epochs were divided over.
        evidence: log p(X) of the test rows, or of what it models of them; None if the system has no likelihood.
        metrics: accuracy of what is generated, as in metrics.json; None without labels.
        why: why something is missing; empty otherwise.
    """

    variant: str
    seconds: float | None = None
    steps: int | None = None
    stages: int = 1
    evidence: Evidence | None = None
    metrics: Mapping[str, Any] | None = None
    why: str = ""

    def accuracy(self, given: int | None, target: str | None = None, but: str | None = None) -> float | None:
        """Mean accuracy over sets of so many modalities (None: of all others), of one target or of all but one."""
        sets = [] if self.metrics is None else self.metrics.get("cross_accuracy", [])
        wanted = [e for e in sets if target in (None, e["target"]) and e["target"] != but]
        most = max((len(e["given"]) for e in wanted), default=0)
        found = [e["accuracy"] for e in wanted if len(e["given"]) == (most if given is None else given)]
        return mean(found) if found else None


@dataclass(frozen=True)
class Contest:
    """All variants, the best log p(X) first, those with a log p of less than X next, those without one last.

    Attributes:
        label: the modality that holds the class, if there is one.
        quantity: log p(X) under its full name.
        epochs: of each, over all its stages.
        asked: of each, before that was made a multiple of the stages.
    """

    standings: tuple[Standing, ...]
    label: str | None
    quantity: str
    epochs: int
    asked: int

    @cached_property
    def comparison(self) -> Comparison | None:
        """Paired differences of those that have the log-likelihood of everything; None for fewer than two."""
        found = {s.variant: s.evidence for s in self.standings if s.evidence is not None and self.whole(s)}
        return compare(found) if len(found) > 1 else None

    def whole(self, s: Standing) -> bool:
        """Is its likelihood that of everything?"""
        return s.evidence is not None and s.evidence.quantity.removeprefix("pseudo-") == self.quantity

    def __repr__(self) -> str:
        head = ["variant", "log p(X)", "minus the best", "k-hat bad", "one given", "all given", "label", "joint"]
        rows = [[*head, "steps", "s"], *(self._row(s) for s in self.standings)]
        notes = [f"{s.variant}: {s.why}" for s in self.standings if s.why]
        story = (
            "log p(X): nats per test row; differences are paired by row.  Accuracy of what is generated from one or\n"
            "all other modalities, of the label from all others; share of draws from the prior that agree."
        )
        return "\n".join([*aligned(rows), "", story, *self._budget(), *notes])

    def _budget(self) -> list[str]:
        several = [s for s in self.standings if s.stages > 1]
        stopped = len({s.steps for s in self.standings if s.steps is not None}) > 1
        said = f"Each had {'at most ' * stopped}{self.epochs} epochs of training"
        said += f" ({self.asked}, rounded up to a multiple of the stages)" if self.epochs != self.asked else ""
        parts = ", ".join(f"{s.variant} {s.stages} x {self.epochs // s.stages}" for s in several)
        return [said + (f", over all stages together: {parts}." if parts else ".")]

    def to_json(self) -> dict[str, Any]:
        """Numbers of every variant, in order."""
        about = {"format": FORMAT, "label": self.label, "quantity": self.quantity, "epochs": self.epochs}
        return {**about, "variants": [self._numbers(s) for s in self.standings]}

    def _row(self, s: Standing) -> list[str]:
        n = self._numbers(s)
        away = "" if n["difference"] is None else f"{n['difference']:.2f} +- {n['difference_se']:.2f}"
        shares = (n["one_given"], n["all_given"], n["label_accuracy"], n["joint_coherence"])
        return [
            s.variant.replace("_", "-"),
            "-" if n["log_p"] is None else f"{n['log_p']:.2f} +- {n['se']:.2f}",
            away,
            "-" if n["unreliable"] is None else percent(n["unreliable"]),
            *("-" if x is None else percent(x) for x in shares),
            "-" if s.steps is None else f"{s.steps:,}",
            "-" if s.seconds is None else f"{s.seconds:.0f}",
        ]

    def _numbers(self, s: Standing) -> dict[str, Any]:
        ev, pairs = s.evidence, self.comparison
        apart = None
        if pairs is not None and s.variant in pairs.names[1:]:
            apart = pairs.difference(s.variant, pairs.best)
        return {
            "variant": s.variant,
            "quantity": None if ev is None else ev.quantity,
            "log_p": None if ev is None else ev.mean,
            "se": None if ev is None else ev.mean_se,
            "difference": None if apart is None else apart.mean,
            "difference_se": None if apart is None else apart.se,
            "unreliable": None if ev is None else ev.unreliable_share,
            "one_given": s.accuracy(1, but=self.label),
            "all_given": s.accuracy(None, but=self.label),
            "label_accuracy": None if self.label is None else s.accuracy(None, target=self.label),
            "joint_coherence": None if s.metrics is None else s.metrics.get("joint_coherence", {}).get("value"),
            "steps": s.steps,
            "stages": s.stages,
            "seconds": s.seconds,
            "why": s.why,
        }


def contest(
    names: Sequence[str],
    common: Settings,
    folder: str | os.PathLike[str],
    *,
    k: int = 1000,
    rows: int | None = None,
    refine: bool = True,
    coherence: bool = True,
    device: str = "auto",
    progress: bool = True,
    tell: Callable[[str], object] = lambda text: None,
) -> Contest:
    """Train each variant with the same settings, evaluate all on the same test rows, write `contest.json`.

    Every variant has a run in a folder of its own below `folder`; one that is trained is not trained again, and one
    that was interrupted goes on.  A variant that cannot be built on these data, or has no likelihood, says why; one
    that models a part of the data only shows its number, and is compared with none.

    Budgets are equal: one that trains in stages has the epochs divided over them, so that all make as many steps
    unless `patience` ends a training.  For that the epochs of all are rounded up to a multiple of the stages.

    Args:
        common: data, epochs, latent dimensions, optimiser; its variant is replaced.  Its seed is that of training, of
            the draws for log p(X) and of what is generated.
        k, rows, refine: for log p(X): draws per row, the first so many test rows, with refined proposals.
        coherence: measure what is generated too, by classifiers trained on the data, if these have labels.

    Raises:
        ValueError: a variant named twice, no such data set, or not one variant that can be built.
        FileExistsError: a run with other settings is in the way.
        KeyboardInterrupt: a training was interrupted; the next call goes on with it.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a contest is between different variants, got {list(names)}")
    splits = load_data(common)
    stages, found = _stages(names, common, splits)
    if not stages:
        raise ValueError("; ".join(f"{s.variant}: {s.why}" for s in found))
    each = lcm(*stages.values())
    epochs = each * ceil(common.epochs / each)
    for name, several in stages.items():
        tell(f"{name}: training")
        settings = replace(common, variant=name, epochs=epochs // several)
        run = trained(settings, Path(folder) / name, device, progress=progress)
        standing = _measured(run, k, rows, refine, coherence and splits.label is not None, tell)
        found.append(replace(standing, stages=several))
    test = splits.test if rows is None else splits.test[:rows]
    done = Contest(tuple(found), splits.label, quantity_of(None, test), epochs, common.epochs)
    done = replace(done, standings=tuple(sorted(found, key=lambda s: _place(s, done.whole(s)))))
    write_json(Path(folder) / CONTEST, done.to_json())
    return done


def trained(settings: Settings, folder: Path, device: str = "auto", *, progress: bool = True) -> Run:
    """The run of these settings, trained to its end; what is there already is used, and gone on with.

    Raises:
        FileExistsError: it has other settings, but for the place of its data.
        KeyboardInterrupt: the training was interrupted; the next call goes on with it.
    """
    there = read_json(folder / RECORD)["status"] if (folder / RECORD).is_file() else None
    if there == "trained":
        run = open_run(folder, settings.root)
        if replace(run.settings, root=settings.root) != settings:
            raise FileExistsError(f"{folder} holds a run with other settings: remove it, or choose another folder")
        return run
    run = train_run(settings, folder, resume=there is not None, progress=progress, device=device)
    if run.interrupted:
        raise KeyboardInterrupt
    return run


def _stages(names: Sequence[str], common: Settings, splits: Splits) -> tuple[dict[str, int], list[Standing]]:
    """Numbers of stages of the variants that can be built, and why others cannot."""
    stages, refused = {}, []
    for name in names:
        try:
            recipe = build_recipe(replace(common, variant=name), splits)
        except ValueError as refusal:
            refused.append(Standing(name, why=str(refusal)))
            continue
        stages[name] = len(recipe.stages or [None])
    return stages, refused


def _place(s: Standing, whole: bool) -> tuple[int, float]:
    """The order in the table."""
    return (2, 0.0) if s.evidence is None else (0 if whole else 1, -s.evidence.mean)


def _measured(
    run: Run, k: int, rows: int | None, refine: bool, coherence: bool, tell: Callable[[str], object]
) -> Standing:
    name, seed, evidence, metrics, why = run.settings.variant, run.settings.seed, None, None, []
    tell(f"{name}: log-likelihood")
    try:
        evidence = evidence_of_run(run, None, (), k, rows, refine, seed)
        if evidence.quantity.removeprefix("pseudo-") != quantity_of(None, run.test_rows(rows)):
            why.append(f"{evidence.quantity} only")
    except NoLikelihood as reason:
        why.append(str(reason))
    if coherence:
        try:
            metrics = evaluate_metrics(run, ["coherence"], rows=rows, seed=seed, tell=lambda x: tell(f"{name}: {x}"))
        except ValueError as reason:  # a model of one modality generates nothing from another
            why.append(str(reason))
    steps = run.record["epochs"] * ceil(len(cast(Sized, run.splits.train)) / run.settings.batch_size)
    return Standing(name, run.record["seconds"], steps, 1, evidence, metrics, "; ".join(why))
