"""A run is a folder: settings, log, checkpoint, model, results, figures, and a record of how it came about.

config.json     what was asked for (`Settings`)
run.json        seeds, versions, device, dtype, data fingerprint, git commit, what became of the training
log.csv         one row per epoch;  checkpoint.pt  where training stands
model/          the trained recipe (`pyro_mm.storage`)
results.json    likelihoods and accuracy on the test rows;  certificates.json  both ends of them
metrics.json    accuracy across modalities, coherence, Frechet distances;  tasks.json;  figures/
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pyro_mm import storage
from pyro_mm.batch import Batch
from pyro_mm.certification import Certification, certify
from pyro_mm.data import Splits
from pyro_mm.files import BadFile, read_json, write_json
from pyro_mm.provenance import commit, now
from pyro_mm.recipe import Recipe
from pyro_mm.results import Results, evaluate
from pyro_mm.settings import CONFIG, Settings, build_recipe, load_data, read_settings, write_settings

__all__ = ["Run", "Settings", "certify_run", "evaluate_run", "open_run", "read_settings", "train_run"]

FORMAT = 1
RECORD, RESULTS, MODEL, FIGURES = "run.json", "results.json", "model", "figures"
CERTIFICATES, METRICS, TASKS = "certificates.json", "metrics.json", "tasks.json"
LOGS = ("log.csv", "log.jsonl", "checkpoint.pt", "evidence.nc")
OWN = (CONFIG, RECORD, RESULTS, CERTIFICATES, METRICS, TASKS, MODEL, FIGURES, *LOGS)


@dataclass(frozen=True)
class Run:
    """A run at hand: its folder, settings, record (`run.json`), recipe and data."""

    folder: Path
    settings: Settings
    record: dict[str, Any]
    recipe: Recipe
    splits: Splits

    @property
    def figures(self) -> Path:
        """Where its figures go."""
        return self.folder / FIGURES

    def test_rows(self, rows: int | None = None) -> Batch:
        """The first so many test rows, or all of them, on the model's device.

        Raises:
            ValueError: `rows` below 1.
        """
        if rows is not None and rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        test = self.splits.test if rows is None else self.splits.test[:rows]
        return test.to(_first_parameter(self.recipe).device)

    @property
    def interrupted(self) -> bool:
        """Did Ctrl-C end its training?"""
        return self.record["status"] == "interrupted"


def train_run(
    settings: Settings,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    download: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    device: str = "auto",
    compile: bool | str = "auto",
) -> Run:
    """Train a variant into `folder`; the weights with the least validation loss are kept.

    Ctrl-C saves what there is and returns a run that is `interrupted`.

    Args:
        resume: go on from the folder's checkpoint, bit for bit as if nothing had happened (to rounding, where steps are
            compiled); `epochs`, `patience` and `root` may differ from the run's own.
        overwrite: remove a run that is there.
        device: `cpu`, `cuda` or `auto`, as Lightning Fabric's accelerator.
        compile: as for `fit`; "auto" compiles the step of long runs where that was seen to take less time.

    Raises:
        FileExistsError: the folder holds a run, and neither `resume` nor `overwrite` is set.
        FileNotFoundError: there is no run to resume, or no data.
        ValueError: settings that do not fit each other, the data, or the run to resume.
    """
    folder = Path(folder)
    _require_free_or_same(folder, settings, resume, overwrite)
    splits = load_data(settings, download)
    recipe = build_recipe(settings, splits)
    record = _record(settings, splits, recipe, folder if resume else None)
    if overwrite:  # only now that nothing the user asked for is wrong
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(settings, folder)
    write_json(folder / RECORD, record)
    how = {"progress": progress, "tensorboard": tensorboard, "accelerator": device, "compile": compile}
    record |= _fitted(settings, splits, recipe, record, folder, resume, how)
    if record["epochs"]:
        storage.save(recipe, folder / MODEL, _about(settings, splits, record))
    write_json(folder / RECORD, record)
    return Run(folder, settings, record, recipe, splits)


def open_run(folder: str | os.PathLike[str], root: str | None = None) -> Run:
    """A trained run from its folder, the model on the CPU; `root` where its data have moved to.

    Raises:
        FileNotFoundError: no folder, no run in it, or no trained model yet.
        BadFile: a file of it is damaged, or the data are not those it was trained on.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if root is not None:
        settings = replace(settings, root=root)
    record = read_json(folder / RECORD)
    if not (folder / MODEL).is_dir():
        state = record.get("status", "unknown")
        why = "its folder model/ is missing" if state == "trained" else f"its state is '{state}'"
        raise FileNotFoundError(f"{folder} has no trained model: {why}")
    recipe = storage.load(folder / MODEL)
    splits = load_data(settings)
    _require_same_data(folder, record, splits)
    return Run(folder, settings, record, recipe, splits)


def evaluate_run(
    run: Run | str | os.PathLike[str],
    k: int = 1000,
    rows: int | None = None,
    *,
    refine: bool = True,
    bf16: bool = False,
    seed: int = 0,
    tell: Callable[[str], object] = lambda quantity: None,
) -> Results:
    """Evaluate a run on its test rows (the first `rows` of them) and write `results.json`.

    Runs on the device that the run's model is on.

    Raises:
        ValueError: `k` or `rows` below 1.
        FileNotFoundError, BadFile: as `open_run`.
    """
    run = run if isinstance(run, Run) else open_run(run)
    options: dict[str, Any] = {"refine": refine, "bf16": bf16, "seed": seed, "tell": tell}
    found = evaluate(run.recipe, run.test_rows(rows), run.splits.label, k, **options)
    about = {"format": FORMAT, "variant": run.settings.variant, "data": run.settings.data, "split": "test"}
    about |= {"data_fingerprint": run.record["data_fingerprint"], "versions": storage.versions()}
    write_json(run.folder / RESULTS, {**about, **found.to_json()})
    return found


def certify_run(
    run: Run | str | os.PathLike[str],
    k: int = 1000,
    rows: int | None = 64,
    *,
    annealed: int = 300,
    every: bool = False,
    refine: bool = True,
    seed: int = 0,
    tell: Callable[[str], object] = lambda quantity: None,
) -> Certification:
    """Enclose a run's log-likelihoods on data simulated from its model, and write `certificates.json`.

    As many data as `rows`, with the missing modalities of the first test rows; arguments as for `certify`.

    Raises:
        ValueError: `k` or `rows` below 1.
        FileNotFoundError, BadFile: as `open_run`.
    """
    run = run if isinstance(run, Run) else open_run(run)
    options: dict[str, Any] = {"annealed": annealed, "every": every, "refine": refine, "seed": seed, "tell": tell}
    found = certify(run.recipe, run.test_rows(rows), k, **options)
    write_json(run.folder / CERTIFICATES, {"format": FORMAT, "k": k, "seed": seed, **found.to_json()})
    return found


def _fitted(
    settings: Settings,
    splits: Splits,
    recipe: Recipe,
    record: Mapping[str, Any],
    folder: Path,
    resume: bool,
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """Train; what `run.json` says of it."""
    from pyro_mm.training import fit

    began = time.perf_counter()
    history = fit(
        recipe,
        splits.train,
        settings.epochs,
        validation=splits.validation,
        lr=settings.lr,
        batch_size=settings.batch_size,
        precision=settings.precision,
        patience=settings.patience,
        folder=folder,
        resume=resume,
        seed=settings.seed,
        **how,
    )
    turns = recipe.stages is not None and bool(recipe.stages[-1].turns)  # these end with their last weights
    return {
        "status": "interrupted" if history.interrupted else "trained",
        "device": str(_first_parameter(recipe).device),
        "epochs": len(history),
        "best_epoch": (len(history) if turns else history.best_epoch) if len(history) else None,
        "stopped_early": history.stopped_early,
        "seconds": round(record["seconds"] + time.perf_counter() - began, 2),
        "ended": now(),
    }


def _require_free_or_same(folder: Path, settings: Settings, resume: bool, overwrite: bool) -> None:
    """The folder is free, or may be made so, or holds the run to resume."""
    if resume:
        old, new = asdict(read_settings(folder)), asdict(settings)
        differ = [f for f in old if f not in ("epochs", "patience", "root") and old[f] != new[f]]
        if differ:
            said = "; ".join(f"{f} was {old[f]!r}, is {new[f]!r}" for f in differ)
            raise ValueError(f"{folder} holds another run: {said}")
    elif _taken(folder) and not overwrite:
        raise FileExistsError(f"{folder} already holds a run: resume it, overwrite it, or choose another folder")


def _taken(folder: Path) -> list[Path]:
    return [folder / name for name in OWN if (folder / name).exists()]


def _clear(folder: Path) -> None:
    """Remove what a run consists of, and nothing else: the folder may hold notes of the user's."""
    for path in _taken(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _record(settings: Settings, splits: Splits, recipe: Recipe, resumed: Path | None) -> dict[str, Any]:
    """`run.json` of a training that begins, or goes on in the folder `resumed`."""
    before: dict[str, Any] = {}
    if resumed is not None and (resumed / RECORD).is_file():
        before = read_json(resumed / RECORD)
        _require_same_data(resumed, before, splits)
    return {
        "format": FORMAT,
        "status": "training",
        "seed": settings.seed,
        "versions": storage.versions(),
        "device": None,
        "dtype": str(_first_parameter(recipe).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "data_fingerprint": splits.fingerprint(),
        "commit": commit(),
        "started": before.get("started", now()),
        "seconds": before.get("seconds", 0.0),
        "resumed": before.get("resumed", -1) + 1,
    }


def _about(settings: Settings, splits: Splits, record: dict[str, Any]) -> dict[str, Any]:
    """For the model card."""
    trained = f"epoch {record['best_epoch']} of {record['epochs']}"
    return {
        "data": f"{splits.name}: {splits.note}",
        "fingerprint of the data": record["data_fingerprint"],
        "seed": settings.seed,
        "optimiser": f"Adam, learning rate {settings.lr:g}, {settings.batch_size} rows per step",
        "weights": trained,
        "commit": record["commit"],
    }


def _require_same_data(folder: Path, record: dict[str, Any], splits: Splits) -> None:
    """Rows of today's test set must not have been training rows."""
    then, today = record.get("data_fingerprint"), splits.fingerprint()
    if then != today:
        raise BadFile(
            f"{folder} was trained on '{splits.name}' with fingerprint {then}, the data found now have {today}: "
            "its test rows may have been trained on"
        )


def _first_parameter(recipe: Recipe) -> torch.nn.Parameter:
    return next(p for module in recipe.modules.values() for p in module.parameters())
