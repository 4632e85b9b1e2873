"""`fit`: stochastic variational inference over an objective, in a short loop on Lightning Fabric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import nn
from torch.optim import Optimizer

from pyro_mm.ranks import Ranks
from pyro_mm.training import checkpoint
from pyro_mm.training.history import History, Logs
from pyro_mm.training.loop import Loop
from pyro_mm.training.options import Options, check_resume, config_of, launched, make_fabric
from pyro_mm.training.source import Data, Loader, Source, fingerprint, source
from pyro_mm.training.stages import as_stages

__all__ = ["fit"]


def fit(
    objective: Any,
    data: Data,
    epochs: int | None = None,
    *,
    validation: Data | None = None,
    optimiser: Callable[..., Optimizer] | None = None,
    lr: float | None = None,
    batch_size: int = 128,
    patience: int | None = None,
    schedule: Callable[[Optimizer], Any] | None = None,
    clip_norm: float | None = None,
    restore_best: bool = True,
    folder: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    modules: Mapping[str, nn.Module] | None = None,
    seed: int | None = 0,
    progress: bool = True,
    callbacks: Sequence[Any] = (),
    loggers: Sequence[Any] = (),
    jsonl: bool = False,
    tensorboard: bool = False,
    fabric: Any = None,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    precision: Any = None,
    strategy: str | None = None,
    compile: bool | str = False,
    noise_by_row: bool = False,
) -> History:
    """Minimise an objective over data; the parameters of its modules are changed in place.

    Args:
        objective: an `Objective` (or any nn.Module `batch -> scalar loss`), a list of `Stage`, or a `Recipe`.
        data: a Batch, a map-style Dataset whose `__getitems__` gives a Batch, or a DataLoader that gives Batches (its
            batch size and order are then its own).
        epochs: passes over the data; for stages it replaces each stage's own number.
        validation: data of the same kind.  Their loss is computed after every epoch, in evaluation mode, with
            schedules (KL warm-up) at their final value and the same noise every time, so that epochs can be compared.
        optimiser: parameters -> optimiser, e.g. `torch.optim.SGD`; default: Adam with learning rate 1e-3.
        lr: learning rate, handed to `optimiser`; a stage's own comes first.
        patience: stop a stage after so many epochs in a row without a lower validation loss.
        schedule: optimiser -> learning-rate scheduler, stepped once per epoch; `ReduceLROnPlateau` gets the
            validation loss.
        clip_norm: largest Euclidean norm of the gradient; longer ones are shortened.
        restore_best: with validation data, end with the weights of the best epoch (of each stage but those `in_turn`).
        folder: for `checkpoint.pt` and `log.csv`.  Ctrl-C or SIGTERM then saves and returns; without a folder Ctrl-C is
            raised.
        resume: go on from the folder's checkpoint, if it has one: to the bit as if nothing had happened (with data
            loader workers, if they are not persistent); to rounding where steps are compiled, because which of them
            are may differ, and with `compile="auto"` depends on how long they took.
        checkpoint_every: epochs between checkpoints.
        modules: names for parts of the objective in the checkpoint, e.g. `recipe.modules`.
        batch_size: rows of a minibatch, in each process.
        seed: seeds torch, Pyro, NumPy, Python and the order of rows; None leaves the streams where they are.  Processes
            share the order and have streams of their own.
        callbacks: objects with `on_step(state)` or `on_epoch(state)`; see `State`.
        loggers: objects with Lightning's `log_metrics(metrics, step)`, called every epoch.
        jsonl, tensorboard: also write `log.jsonl`, or TensorBoard events, into the folder.
        fabric: a Lightning Fabric of your own, in place of the next four.
        compile: train by a compiled graph of the objective's loss and gradients (`training.capture`): less time per
            step, most for small networks, after up to a minute of compiling; the same numbers but for rounding.  What
            cannot be a graph is trained eagerly, and so is what Python changes under way (a schedule in plain numbers,
            a callback that freezes layers), and a warning says why.  "auto": where a compiler is present, at least
            20,000 steps are still to come, and a dozen of each kind have shown that it pays; the choice depends on
            timing, and lines in the log say what is not compiled.
        noise_by_row: draw every latent's noise by step, site and place in the minibatch of all processes, so that n
            processes with `batch_size` rows equal one with n times as many, to rounding.  Latents must be Normal, or
            mixtures of Normals, that the guide draws.
        precision: as Fabric's, or `bf16-layers`: linear and convolution layers in bfloat16 and all else (experts'
            precisions, densities, sums) as it was, which `bf16-mixed` does not promise.
        accelerator, devices, strategy: as Fabric's; `devices=2` trains data parallel, and so do processes
            that torchrun has started (docs/scaling.md).  Parameters stay on that device afterwards.

    Raises:
        NonFiniteLoss: before the step that would have spread it; names the term, the modality and the step.
        ValueError: nothing to train, empty data, a modality that the data lack, parameters in Pyro's global store, or a
            folder that holds another run.
        FileExistsError: the folder holds a run and `resume` is False.
        OSError: a checkpoint could not be written; the one before is intact.
    """
    stages, named = as_stages(objective, epochs, modules)
    options = Options(
        optimiser=optimiser,
        lr=lr,
        schedule=schedule,
        clip_norm=clip_norm,
        patience=patience,
        restore_best=restore_best,
        checkpoint_every=checkpoint_every,
        seed=seed,
        callbacks=tuple(callbacks),
        progress=progress,
        compile=compile,
        noise_by_row=noise_by_row,
    )
    if patience is not None and validation is None:
        raise ValueError("patience watches the validation loss: give `validation`")
    if folder is None and (resume or jsonl or tensorboard):
        raise ValueError("resume, jsonl and tensorboard need a folder")
    where = _folder(folder, resume)
    engine = make_fabric(accelerator, devices, precision, strategy) if fabric is None else launched(fabric)
    ranks = Ranks(engine.global_rank, engine.world_size)
    train, valid = _sources(data, validation, batch_size, seed, engine, ranks)
    facts = _facts(data, validation, train.size, ranks)
    config = config_of(stages, options, facts, engine.strategy.precision.precision)
    saved = _saved(where, config, ranks)
    logs = Logs(where, jsonl, tensorboard, loggers) if engine.is_global_zero else Logs()
    return Loop(stages, named, options, engine, train, valid, where, config, logs).run(saved)


def _facts(data: Data, validation: Data | None, size: int, ranks: Ranks) -> dict[str, Any]:
    """What a resumed run must find again: data, minibatches, processes."""
    told = validation is not None and fingerprint(validation)
    facts = {"data": fingerprint(data), "validation": told, "batch_size": size}
    return facts | ({"ranks": ranks.world} if ranks.several else {})


def _saved(where: Path | None, config: str, ranks: Ranks) -> dict[str, Any] | None:
    """The folder's checkpoint, if it has one that this run may go on from; on all ranks or on none."""
    saved = None
    if where is not None and (where / checkpoint.FILE).exists():
        saved = checkpoint.read(where / checkpoint.FILE)
        check_resume(saved, config, where)
    if len(set(ranks.gathered(saved is not None))) > 1:
        raise ValueError(f"{where} holds a run for some processes and not for others: it must be one folder for all")
    return saved


def _folder(folder: str | Path | None, resume: bool) -> Path | None:
    """The run's folder, made if need be; a run that is there is never written over."""
    if folder is None:
        return None
    path = Path(folder)
    if (path / checkpoint.FILE).exists() and not resume:
        raise FileExistsError(f"{path} already holds a run: resume=True continues it; another folder starts anew")
    path.mkdir(parents=True, exist_ok=True)
    for litter in path.glob(f".{checkpoint.FILE}.*.tmp"):  # of a process that was killed while it wrote
        litter.unlink(missing_ok=True)
    return path


def _sources(
    data: Data, validation: Data | None, size: int, seed: int | None, fabric: Any, ranks: Ranks
) -> tuple[Source, Source | None]:
    """Training data in an order drawn anew every epoch, validation data as they are; all streams seeded."""
    if seed is not None:
        pyro.set_rng_seed(ranks.seed(seed))
    order = torch.Generator()
    order.manual_seed(seed if seed is not None else ranks.gathered(int(torch.randint(2**62, ())))[0])
    share = (ranks.rank, ranks.world)
    train = source(data, size, order, share)
    if isinstance(train, Loader) and ranks.several:
        replaced = not getattr(getattr(data, "sampler", None), "shares_rows", False)
        train = Loader(fabric.setup_dataloaders(data, use_distributed_sampler=replaced, move_to_device=False))
    return train, source(validation, size, share=share) if validation is not None else None
