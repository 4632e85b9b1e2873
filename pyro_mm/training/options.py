"""What `fit` was asked for, checked before anything starts."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pyro_mm.half import BF16_LAYERS, HalfLayers
from pyro_mm.objectives.algebra import Objective
from pyro_mm.objectives.schedules import Schedule
from pyro_mm.training.stages import Alternated, Stage

__all__ = ["Options", "check_resume", "config_of", "launched", "make_fabric"]

PARALLEL = "ddp_find_unused_parameters_true"


@dataclass(frozen=True)
class Options:
    """How every stage is trained; see `fit` for the meaning of each."""

    optimiser: Callable[..., Optimizer] | None = None
    lr: float | None = None
    schedule: Callable[[Optimizer], Any] | None = None
    clip_norm: float | None = None
    patience: int | None = None
    restore_best: bool = True
    checkpoint_every: int = 1
    seed: int | None = 0
    callbacks: Sequence[Any] = ()
    progress: bool = True
    compile: bool | str = False
    noise_by_row: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.optimiser, Optimizer) or not (self.optimiser is None or callable(self.optimiser)):
            raise TypeError(
                f"optimiser must be made from parameters, as torch.optim.SGD or functools.partial(torch.optim.AdamW, "
                f"weight_decay=0.1); got {type(self.optimiser).__name__}"
            )
        for name in ("patience", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.compile not in (True, False, "auto"):
            raise ValueError(f"compile must be True, False or 'auto', got {self.compile!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")

    def build(self, stage: Stage, fused: bool) -> Optimizer:
        """The stage's optimiser, over the parameters that move in it."""
        params, lr = stage.moving(), stage.lr if stage.lr is not None else self.lr
        make = stage.optimiser or self.optimiser
        if make is None:
            return adam(params, 1e-3 if lr is None else lr, fused)
        return make(params) if lr is None else make(params, lr=lr)


def adam(params: Iterable[nn.Parameter], lr: float, fused: bool) -> Optimizer:
    """Adam in one kernel where this torch and device have it: at small networks a third of the usual step's time."""
    params = list(params)
    try:
        return torch.optim.Adam(params, lr, fused=fused or None)
    except RuntimeError:  # an old torch, or a device or dtype without the fused kernel
        return torch.optim.Adam(params, lr)


def make_fabric(accelerator: str, devices: int | str | list[int], precision: Any, strategy: str | None) -> Any:
    """A launched Fabric on these devices, or on those of all processes that torchrun has started.

    Raises:
        ValueError: torchrun has started another number of processes than `devices` says.
    """
    from lightning_fabric import Fabric  # here, because it takes 2 s to import

    plugins: list[Any] = []
    if precision == BF16_LAYERS:
        precision, plugins = None, [half_layers()]
    nodes = 1
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        if devices not in (1, "1", "auto", -1, "-1", local, str(local)):
            raise ValueError(f"torchrun has started {local} processes on this machine, but devices is {devices!r}")
        devices, nodes = local, int(os.environ["WORLD_SIZE"]) // local
    several = nodes > 1 or devices not in (1, "1")
    if strategy in (None, "ddp") and several:
        strategy = PARALLEL
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        precision=precision,
        strategy=strategy or "auto",
        plugins=plugins,
    )
    return launched(fabric)


def half_layers() -> Any:
    """Fabric's precision for `HalfLayers`: autocast would add up experts' precisions and densities in bfloat16."""
    from lightning_fabric.plugins import Precision

    class Layers(Precision):
        precision = BF16_LAYERS  # type: ignore[assignment]

        def forward_context(self) -> Any:
            return HalfLayers()

    return Layers()


def launched(fabric: Any) -> Any:
    """A Fabric with its processes running, whose strategy `fit` can work with.

    Raises:
        ValueError: several processes that are not data parallel.
    """
    from lightning_fabric.strategies import DDPStrategy

    parallel = isinstance(fabric.strategy, DDPStrategy)
    if fabric.world_size > 1 and not parallel:
        raise ValueError(
            f"fit runs in several processes by strategy 'ddp' only, where each has the whole model; "
            f"got {type(fabric.strategy).__name__}"
        )
    if parallel:
        # Modalities that no row of a minibatch has, and subsets that were not drawn, leave networks out of a step.
        getattr(fabric.strategy, "_ddp_kwargs", {}).setdefault("find_unused_parameters", True)
        if not getattr(fabric, "_launched", False):  # a second launch would start the processes a second time
            fabric.launch()
    return fabric


def config_of(stages: Sequence[Stage], options: Options, data: dict[str, Any], precision: str) -> str:
    """JSON of what must be the same when a run is resumed; `epochs` and `patience` may grow."""
    return json.dumps(
        {
            "stages": {s.name: {**_describe(s.objective), "lr": s.lr} for s in stages},
            "optimiser": _name(options.optimiser) or "Adam",
            "lr": options.lr,
            "schedule": _name(options.schedule),
            "clip_norm": options.clip_norm,
            "seed": options.seed,
            "precision": precision,
            **({"noise_by_row": True} if options.noise_by_row else {}),
            **data,
        },
        sort_keys=True,
    )


def check_resume(saved: dict[str, Any], config: str, path: Path) -> None:
    """Raise a ValueError that says in what the saved run differs from this one."""
    if found := _differences(json.loads(saved["config"]), json.loads(config), ""):
        raise ValueError(f"{path} belongs to another run: {'; '.join(found)}.  Use its settings, or another folder")


def _differences(old: Any, new: Any, where: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{where}.{n}" if where else n)]
    return [] if old == new else [f"{where} was {old!r:.200}, is {new!r:.200}"]


def _describe(objective: nn.Module) -> dict[str, Any]:
    """The objective's formula and the schedules inside."""
    shown = repr(objective) if isinstance(objective, Objective | Alternated) else type(objective).__name__
    return {"objective": shown, "schedules": [repr(m) for m in objective.modules() if isinstance(m, Schedule)]}


def _name(factory: Any) -> str | None:
    """A function's or partial's name, without memory addresses, so that it can be compared between processes."""
    if isinstance(factory, functools.partial):
        given = [repr(a) for a in factory.args] + [f"{k}={v!r}" for k, v in sorted(factory.keywords.items())]
        return f"{_name(factory.func)}({', '.join(given)})"
    return None if factory is None else getattr(factory, "__qualname__", type(factory).__qualname__)
