"""Recipes on disk: parameters once per module, JSON that says how to rebuild them, and a model card.

A folder holds `weights.pt` (tensors only), `recipe.json` and `MODEL_CARD.md`.  No class is ever unpickled: loading
calls the variant's function again, with likelihoods and networks found by their public names.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_mm.blueprint import NotDescribable, build, describe_config, describe_modality
from pyro_mm.card import model_card
from pyro_mm.files import BadFile, read_json, write_atomic, write_json
from pyro_mm.recipe import Recipe

__all__ = ["FORMAT", "load", "save", "versions"]

FORMAT = 1
WEIGHTS, RECIPE, CARD = "weights.pt", "recipe.json", "MODEL_CARD.md"
State = dict[str, dict[str, Tensor]]


def save(recipe: Recipe, folder: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> Path:
    """Write `recipe.modules` and what rebuilds them to `folder`; each file is replaced in one step.

    A recipe of `pyro_mm.variants` with this library's likelihoods and networks is rebuilt by `load(folder)`.  For any
    other, `recipe.json` says why not, and `load(folder, recipe=...)` wants the same objects again.

    Args:
        about: facts for the model card, such as `{"data": ..., "seed": ...}`.

    Raises:
        ValueError: the recipe has no modules to save.
        OSError: the folder cannot be written.
    """
    if not recipe.modules:
        raise ValueError(f"recipe '{recipe.name}' has no modules to save: model and guide are plain functions")
    folder = Path(folder)
    state = {name: module.state_dict() for name, module in recipe.modules.items()}
    raw = io.BytesIO()
    torch.save(state, raw)
    config, modalities, reason = _describe(recipe)
    # The JSON last: its checksum vouches for the weights, so that an interrupted save is noticed.
    write_atomic(folder / WEIGHTS, raw.getvalue())
    write_atomic(folder / CARD, model_card(recipe, dict(about or {}), versions()))
    write_json(
        folder / RECIPE,
        {
            "format": FORMAT,
            "variant": recipe.name,
            "config": config,
            "modalities": modalities,
            "cannot_rebuild": reason,
            "modules": list(state),
            "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(raw.getvalue()).hexdigest()},
            "versions": versions(),
        },
    )
    return folder


def load(folder: str | os.PathLike[str], recipe: Recipe | None = None) -> Recipe:
    """The recipe saved in `folder`, parameters bit for bit, on the CPU and in the dtype they had.

    What is rebuilt is in evaluation mode, as `fit` leaves a recipe: a guide called by hand has no drop-out and no input
    noise.  `fit` trains in training mode; before a loop of your own call `recipe.objective.train()`.

    Args:
        recipe: for a model that cannot be rebuilt from JSON (or to load into objects at hand): the same recipe again,
            built by you; it is filled and returned.

    Raises:
        FileNotFoundError: no saved model there.
        BadFile: a file is corrupt, does not belong to the others, or was written by a newer format.
        ValueError: the model cannot be rebuilt without `recipe`, or `recipe` is another model.
    """
    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        raise FileNotFoundError(f"{folder} holds no saved model: {RECIPE} is missing")
    spec = read_json(folder / RECIPE)
    _check_format(spec, folder)
    state = _read_weights(folder, spec)
    if recipe is None:
        recipe = _rebuilt(spec, folder)
        for module in recipe.modules.values():
            module.to(_dtype(state)).eval()
    else:
        _check_same(spec, recipe, folder)
    _fill(recipe.modules, state, folder)
    return recipe


def versions() -> dict[str, str]:
    """Of everything that could change a number."""
    from pyro_mm import __version__

    return {
        "pyro_mm": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
    }


def _describe(recipe: Recipe) -> tuple[dict[str, Any] | None, list[dict[str, Any]], str | None]:
    """Config and modalities as JSON, and why they do not suffice to rebuild the recipe (None when they do).

    The rebuilding is tried out, since a user may have changed a variant's parts.
    """
    modalities = _comparable(recipe)
    config = None
    try:
        config = describe_config(recipe)
        with torch.random.fork_rng(devices=[]):
            again = build(recipe.name, config, [describe_modality(m) for m in recipe.modalities])
    except NotDescribable as error:
        return config, modalities, str(error)
    except Exception as error:
        return config, modalities, f"pyro_mm.variants.{recipe.name} does not take its own arguments again: {error}"
    if _structure(again.modules) != _structure(recipe.modules):
        return config, modalities, f"its modules are not those that pyro_mm.variants.{recipe.name} builds"
    return config, modalities, None


def _structure(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Classes by place, and shapes by parameter: equal for modules that can take each other's parameters."""
    return {
        name: (
            # By name: torch makes a class of its own for every parametrised layer.
            [(place, type(part).__module__, type(part).__qualname__) for place, part in module.named_modules()],
            {key: value.shape for key, value in module.state_dict().items()},
        )
        for name, module in modules.items()
    }


def _comparable(recipe: Recipe) -> list[dict[str, Any]]:
    """The modalities as far as they have a description: what a recipe passed to `load` is compared with."""
    described = []
    for m in recipe.modalities:
        try:
            described.append(describe_modality(m))
        except NotDescribable:
            described.append({"name": m.name, "shape": list(m.shape), "likelihood": repr(m.likelihood)})
    return described


def _check_format(spec: Mapping[str, Any], folder: Path) -> None:
    found = spec.get("format")
    if not isinstance(found, int):
        raise BadFile(f"{folder / RECIPE} does not say which format it has: it is no saved pyro_mm model")
    if found > FORMAT:
        newer = spec.get("versions", {}).get("pyro_mm", "a newer version")
        raise BadFile(
            f"{folder} was saved in format {found} by pyro_mm {newer}; this version reads up to format {FORMAT}: "
            "update pyro_mm"
        )
    if missing := {"variant", "config", "modalities", "modules", "weights"} - set(spec):
        raise BadFile(f"{folder / RECIPE} lacks {sorted(missing)}")


def _read_weights(folder: Path, spec: Mapping[str, Any]) -> State:
    path = folder / WEIGHTS
    if not path.is_file():
        raise BadFile(f"{folder} is incomplete: {WEIGHTS} is missing")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != spec["weights"].get("sha256"):
        raise BadFile(f"{path} is corrupt, or from another save than {RECIPE} beside it (checksums differ)")
    try:
        state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a bad file
        raise BadFile(f"{path} cannot be read: {error}") from error
    if set(state) != set(spec["modules"]):
        raise BadFile(f"{path} holds modules {sorted(state)}, {RECIPE} names {sorted(spec['modules'])}")
    return state


def _rebuilt(spec: Mapping[str, Any], folder: Path) -> Recipe:
    if spec.get("cannot_rebuild"):
        raise ValueError(
            f"the model in {folder} cannot be rebuilt from its files ({spec['cannot_rebuild']}): build the same recipe "
            "yourself and pass it, load(folder, recipe=...)"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # parameters that are about to be overwritten cost no draws
            return build(spec["variant"], spec["config"], spec["modalities"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{folder / RECIPE} describes a model that cannot be built: {error}") from error


def _check_same(spec: Mapping[str, Any], recipe: Recipe, folder: Path) -> None:
    """A likelihood or shape that differs would load without complaint and mean something else."""
    saved, ours = spec["modalities"], _comparable(recipe)
    for a, b in zip(saved, ours, strict=False):
        if a != b:
            differ = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
            raise ValueError(
                f"the recipe passed for {folder} has another modality '{b['name']}' than the one saved as "
                f"'{a['name']}': {', '.join(f'{k} {b.get(k)} instead of {a.get(k)}' for k in differ)}"
            )
    if len(saved) != len(ours):
        raise ValueError(f"the model in {folder} has {len(saved)} modalities, the recipe passed has {len(ours)}")


def _dtype(state: State) -> torch.dtype:
    floats = [v.dtype for part in state.values() for v in part.values() if v.is_floating_point()]
    return floats[0] if floats else torch.get_default_dtype()


def _fill(modules: Mapping[str, nn.Module], state: State, folder: Path) -> None:
    if set(modules) != set(state):
        raise ValueError(f"{folder} holds modules {sorted(state)}, the recipe has {sorted(modules)}")
    for name, module in modules.items():
        own = {k: tuple(v.shape) for k, v in module.state_dict().items()}
        saved = {k: tuple(v.shape) for k, v in state[name].items()}
        if own != saved:
            key = next(k for k in [*own, *saved] if own.get(k) != saved.get(k))
            raise ValueError(
                f"module '{name}' of {folder} is another network: '{key}' has shape {saved.get(key, 'none')} in the "
                f"file and {own.get(key, 'none')} in the recipe"
            )
        module.load_state_dict(state[name])
