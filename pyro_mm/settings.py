"""What a run is asked for: names and numbers that a file or a command line can hold, and what is built from them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from pyro_mm import variants
from pyro_mm.data import Splits, available, with_noise
from pyro_mm.files import BadFile, read_json, write_json
from pyro_mm.half import BF16_LAYERS
from pyro_mm.objectives import Warmup
from pyro_mm.recipe import Recipe

__all__ = ["CONFIG", "FORMAT", "PRECISIONS", "Settings", "build_recipe", "load_data", "read_settings", "write_settings"]

FORMAT = 1
CONFIG = "config.json"
PRECISIONS = ("32-true", BF16_LAYERS)
SCALED = 2000  # training rows that give a modality's standard deviation


@dataclass(frozen=True)
class Settings:
    """What a run is made from.

    Attributes:
        variant, data: names in `pyro_mm.variants` and `pyro_mm.data.available()`.
        root: folder of the data, for sets that are read from files.
        beta, beta_warmup: final weight of the KL, and over how many epochs it grows from 0.
        weights: of the likelihoods in training, by modality.
        noise: on what encoders are shown in training, by modality; the largest root mean square, in standard
            deviations of the training rows (`data.with_noise`).
        options: further arguments of the variant, such as `alpha`.
        precision: of training: `32-true`, or `bf16-layers` (`fit`).  Evaluation has its own.
        patience: stop after so many epochs without a better validation loss.

    Raises:
        ValueError: naming the number that is out of range.
    """

    variant: str
    data: str = "digits"
    root: str | None = None
    epochs: int = 100
    dim: int = 16
    batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0
    beta: float = 1.0
    beta_warmup: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    patience: int | None = None
    precision: str = PRECISIONS[0]

    def __post_init__(self) -> None:
        for name in ("epochs", "dim", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1, got {value}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not '{self.precision}'")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr:g}")
        if self.beta_warmup < 0 or self.beta < 0:
            raise ValueError(f"beta and beta-warmup must not be negative, got {self.beta:g} and {self.beta_warmup:g}")
        if bad := {m: w for m, w in self.weights.items() if not w >= 0}:
            raise ValueError(f"likelihood weights must not be negative, got {bad}")
        if bad := {m: s for m, s in self.noise.items() if not 0 < s < float("inf")}:
            raise ValueError(f"the level of noise must be positive, got {bad}")


def load_data(settings: Settings, download: bool = False) -> Splits:
    """The data set that the settings name.

    Raises:
        ValueError: no such data set, or it takes no `root` or `download`.
        FileNotFoundError: its files are not where `root` says.
    """
    sets = available()
    if settings.data not in sets:
        raise ValueError(f"no data set '{settings.data}'; there are {', '.join(sets)}")
    make = sets[settings.data]
    asked = {k: v for k, v in {"root": settings.root, "download": download}.items() if v}
    if useless := [k for k in asked if k not in inspect.signature(make).parameters]:
        raise ValueError(
            f"data set '{settings.data}' is not read from a folder: it takes no {' and no '.join(useless)}"
        )
    return make(**asked)


def build_recipe(settings: Settings, splits: Splits) -> Recipe:
    """The variant on these modalities; initial parameters come from the settings' seed.

    Raises:
        ValueError: no such variant, an argument it does not take, weights or noise for an unknown modality, or noise
            for one of labels.
    """
    if settings.variant not in variants.__all__:
        raise ValueError(f"no variant '{settings.variant}'; there are {', '.join(variants.__all__)}")
    make: Callable[..., Recipe] = getattr(variants, settings.variant)
    for what, named in (("weights", settings.weights), ("noise", settings.noise)):
        if unknown := sorted(set(named) - set(splits.names)):
            raise ValueError(
                f"{what} for {unknown}, but the modalities of '{splits.name}' are {', '.join(splits.names)}"
            )
    arguments: dict[str, Any] = {"dim": settings.dim, **settings.options}
    if settings.beta_warmup:
        arguments["beta"] = Warmup(settings.beta_warmup, 0.0, settings.beta)
    elif settings.beta != 1.0:
        arguments["beta"] = settings.beta
    if settings.weights:
        arguments["weights"] = dict(settings.weights)
    accepted = [p for p in inspect.signature(make).parameters if p != "modalities"]
    if unknown := sorted(set(arguments) - set(accepted)):
        raise ValueError(f"variant '{settings.variant}' takes no {', '.join(unknown)}; it takes {', '.join(accepted)}")
    modalities, levels = splits.modalities, settings.noise
    if levels:
        rows = splits.some(SCALED)
        modalities = tuple(with_noise(m, rows, levels[m.name]) if m.name in levels else m for m in modalities)
    torch.manual_seed(settings.seed)
    try:
        return make(modalities, **arguments)
    except TypeError as error:  # an option of the wrong kind, such as text for a number
        raise ValueError(f"variant '{settings.variant}' does not take {dict(settings.options)}: {error}") from error


def write_settings(settings: Settings, folder: Path) -> None:
    """Write `config.json`."""
    write_json(folder / CONFIG, {"format": FORMAT, **asdict(settings)})


def read_settings(folder: str | os.PathLike[str]) -> Settings:
    """The settings in a run's `config.json`.

    Raises:
        FileNotFoundError: no folder, or no run in it.
        BadFile: damaged, or of a newer format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no run: {CONFIG} is missing")
    values = read_json(folder / CONFIG)
    found = values.pop("format", None)
    if found != FORMAT:
        raise BadFile(f"{folder / CONFIG} has format {found}; this version of pyro_mm reads format {FORMAT}")
    if unknown := sorted(set(values) - {f.name for f in fields(Settings)}):
        raise BadFile(f"{folder / CONFIG} holds {unknown}, which this version of pyro_mm does not know")
    try:
        return Settings(**values)
    except (AttributeError, TypeError, ValueError) as error:
        raise BadFile(f"{folder / CONFIG} holds no usable settings: {error}") from error
