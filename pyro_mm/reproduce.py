"""Published tables (`pyro_mm.published`), trained and measured again: ours beside the paper's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pyro_mm import plots, storage
from pyro_mm.batch import Batch
from pyro_mm.data import Splits, available
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.likelihood import log_likelihood
from pyro_mm.files import BadFile, read_json, write_json
from pyro_mm.objectives import Warmup
from pyro_mm.published import ALPHA, LABEL_WEIGHT, QUANTITIES, TABLES, PublishedTable
from pyro_mm.recipe import Recipe
from pyro_mm.settings import PRECISIONS
from pyro_mm.tables import aligned, markdown
from pyro_mm.training import fit

__all__ = ["Plan", "build", "reproduce", "reproduced", "table"]

FORMAT = 2
RESULT, PARTIAL, FIGURE = "result.json", "partial.json", "cross_generation.png"
VALIDATION, SHOWN = 100, 4


@dataclass(frozen=True)
class Plan:
    """How to train and measure; as published, but for what a budget forbids.

    Attributes:
        table: a key of `TABLES`.
        epochs, warmup: of training, and of the KL's weight from 0 to 1 (500 and 200 in the paper).
        batch_size, lr: of Adam's steps (100 and 1e-3 in the paper).
        decay: last epochs, over which the learning rate falls linearly to 0 (none in the paper); in fewer epochs than
            the paper's it makes up for some of the rest.
        precision: of training, `32-true` or `bf16-layers`; all is measured in the former.
        clip_norm: longest gradient, or None.
        k, rows: draws per row, and how many of the test rows (None: all).
        refine: fit a proposal to every row, or draw from the guide itself.
        label_weight, alpha: of MVAE's label, and of JMVAE-kl where the table does not vary it.
        systems: some of the table's; none: all.
    """

    table: str = "mvae_table"
    data: str = "mnist"
    root: str | None = None
    epochs: int = 500
    warmup: float = 200.0
    dim: int = 64
    batch_size: int = 100
    lr: float = 1e-3
    decay: int = 0
    precision: str = PRECISIONS[0]
    clip_norm: float | None = None
    seed: int = 0
    k: int = 1000
    rows: int | None = None
    refine: bool = True
    label_weight: float = LABEL_WEIGHT
    alpha: float = ALPHA
    device: str = "cpu"
    systems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise ValueError(f"there are the tables {', '.join(TABLES)}, not '{self.table}'")
        if self.data not in self.published.published:
            raise ValueError(f"the table is of {', '.join(self.published.published)}, not of '{self.data}'")
        if unknown := set(self.systems) - set(self.published.systems):
            raise ValueError(f"unknown systems {sorted(unknown)}; there are {', '.join(self.published.systems)}")
        for name in ("epochs", "dim", "batch_size", "k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.decay <= self.epochs:
            raise ValueError(f"decay must be some of the {self.epochs} epochs, got {self.decay}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not '{self.precision}'")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")

    @property
    def published(self) -> PublishedTable:
        """The table."""
        return TABLES[self.table]


def reproduce(
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    download: bool = False,
    progress: bool = True,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Train and measure what `out` lacks, write its `table.json` and `table.md`, and return the former.

    Every system has a folder with its checkpoint, log, model and `result.json`; a call that was interrupted goes on
    where it stood.  What was made by another plan is not touched: that is an error.

    Raises:
        FileNotFoundError, ValueError: about the data, before anything is trained.
        FileExistsError: the folder of a system, asked for or not, was made by another plan.
    """
    out = Path(out)
    asked = {"root": plan.root, "download": download, "validation": VALIDATION}
    splits = available()[plan.data](**{k: v for k, v in asked.items() if v})
    for system in plan.published.systems:
        _require_same_plan(out / system, plan)  # whatever lies there is in the table
    for system in plan.systems or plan.published.systems:
        if _result(out / system) is None:
            recipe = _trained(system, plan, splits, out / system, progress, tell)
            for module in recipe.modules.values():
                module.to(plan.device)  # a model that was read from its folder is on the CPU
            found = _measured(system, recipe, plan, splits.test, out / system, tell)
            write_json(out / system / RESULT, {**_plan_of(plan), **found})
    found = reproduced(out, plan.table)
    write_json(out / "table.json", found)
    (out / "table.md").write_text(_markdown(found, plan))
    return found


def reproduced(out: str | os.PathLike[str], table: str = "mvae_table") -> dict[str, Any]:
    """The results of a table that are there, by system."""
    return {s: r for s in TABLES[table].systems if (r := _result(Path(out) / s)) is not None}


def table(found: Mapping[str, Any], plan: Plan) -> str:
    """Ours, standard errors, the paper's and how far to trust ours, as text."""
    return "\n".join(aligned(_rows(found, plan)))


def build(system: str, plan: Plan, splits: Splits) -> Recipe:
    """A system with the paper's networks, its initial weights by the plan's seed."""
    torch.manual_seed(plan.seed)
    beta = Warmup(plan.warmup) if plan.warmup else 1.0
    options = {"beta": beta, "alpha": plan.alpha, "label_weight": plan.label_weight}
    return plan.published.build(system, plan.published.networks(splits), plan.dim, options)


def linear_decay(epochs: int, last: int) -> Callable[[Optimizer], LambdaLR]:
    """A schedule for `fit`: a constant learning rate, but for the last epochs, where it falls to 0 in equal steps."""
    return lambda optimiser: LambdaLR(optimiser, lambda epoch: min(1.0, (epochs - epoch) / (last + 1)))


def _trained(
    system: str, plan: Plan, splits: Splits, folder: Path, progress: bool, tell: Callable[[str], object]
) -> Recipe:
    if (folder / "model").is_dir():
        return storage.load(folder / "model")
    tell(f"training {system}")
    recipe = build(system, plan, splits)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", _plan_of(plan))
    history = fit(
        recipe.objective,
        splits.train,
        plan.epochs,
        lr=plan.lr,
        schedule=linear_decay(plan.epochs, plan.decay) if plan.decay else None,
        batch_size=plan.batch_size,
        folder=folder,
        resume=True,
        seed=plan.seed,
        modules=recipe.modules,
        progress=progress,
        accelerator=plan.device,
        precision=plan.precision,
        clip_norm=plan.clip_norm,
        checkpoint_every=5,
        compile="auto",
    )
    if history.interrupted:
        raise KeyboardInterrupt
    storage.save(recipe, folder / "model")
    return recipe


def _measured(
    system: str, recipe: Recipe, plan: Plan, test: Batch, folder: Path, tell: Callable[[str], object]
) -> dict[str, Any]:
    """All quantities of a system; each is written down when it is known, and not estimated again."""
    rows = test if plan.rows is None else test[: plan.rows]
    rows = rows.to(next(p for m in recipe.modules.values() for p in m.parameters()).device)
    pair, out, asked = (recipe.model, recipe.guide), _found_so_far(folder), plan.published.systems[system]
    if len(asked) > 1:  # it makes both modalities
        plots.cross_generation(recipe, rows[:SHOWN], path=folder / FIGURE)
    options: dict[str, Any] = {"refine": plan.refine, "seed": plan.seed}
    for name in asked:
        if name in out:
            continue
        tell(f"{name} of {system}")
        of, given = QUANTITIES[name]
        ev = log_likelihood(*pair, rows, of, given, plan.k, **options)
        out[name] = _summary(ev)
        write_json(folder / PARTIAL, out)
    return {"found": out, "rows": len(rows), "versions": storage.versions()}


def _found_so_far(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / PARTIAL)
    except (FileNotFoundError, BadFile):
        return {}


def _summary(ev: Evidence) -> dict[str, float | str]:
    return {
        "mean": ev.mean,
        "se": ev.mean_se,
        "monte_carlo": ev.mean_se_mc,
        "median_ess": ev.median_ess,
        "khat_above": ev.unreliable_share,
        "k": ev.k,
        "proposal": ev.proposal,
    }


def _rows(found: Mapping[str, Any], plan: Plan) -> list[list[str]]:
    lines = [["nats per test row", "ours", "SE", "MC error", "paper", "median ESS", "k-hat high"]]
    for name in QUANTITIES:
        for system, result in found.items():
            if (r := result["found"].get(name)) is None:
                continue
            paper = plan.published.published[plan.data].get((system, name))
            lines.append(
                [
                    f"{name}, {system.replace('_', '-')}",
                    f"{r['mean']:.2f}",
                    f"{r['se']:.2f}",
                    f"{r['monte_carlo']:.3f}",
                    "-" if paper is None else f"{paper:.2f}",
                    f"{r['median_ess']:.0f}",
                    f"{100 * r['khat_above']:.0f} %",
                ]
            )
    return lines


def _markdown(found: Mapping[str, Any], plan: Plan) -> str:
    told = ["epochs", "warmup", "batch_size", "lr", "decay", "precision", "clip_norm", "k", "rows", "seed"]
    told += ["alpha"] if "jmvae_kl" in plan.published.systems else []  # else the names of the systems tell it
    plans = {json.dumps({k: r["plan"][k] for k in told}) for r in found.values()}
    return "\n".join([*markdown(_rows(found, plan)), "", *sorted(plans)]) + "\n"


def _plan_of(plan: Plan) -> dict[str, Any]:
    """What must agree between calls: where data lie, and on what machine, need not."""
    keys = [f for f in Plan.__dataclass_fields__ if f not in ("root", "device", "systems")]
    return {"format": FORMAT, "plan": {k: getattr(plan, k) for k in keys}}


def _require_same_plan(folder: Path, plan: Plan) -> None:
    try:
        there = read_json(folder / "plan.json")
    except FileNotFoundError:
        return
    if there != json.loads(json.dumps(_plan_of(plan))):
        raise FileExistsError(f"{folder} was made by another plan ({there.get('plan')}); choose another folder")


def _result(folder: Path) -> dict[str, Any] | None:
    try:
        return read_json(folder / RESULT)
    except (FileNotFoundError, BadFile):
        return None
