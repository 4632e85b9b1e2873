"""Recipes as plain JSON values and back, without unpickling: every class or function is looked up by its public name.

What can be described: numbers, text, None, sequences, mappings, schedules, the likelihoods, network blueprints and
input noise of this library, activations of `torch.nn`, and the variants of `pyro_mm.variants`.  Anything else (a
`Custom` network, a user's own likelihood or program) raises `NotDescribable`; such a recipe is rebuilt by its author.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from torch import nn

from pyro_mm import input_noise, likelihoods, networks, variants
from pyro_mm.modality import Modality
from pyro_mm.objectives import schedules
from pyro_mm.objectives.schedules import Schedule
from pyro_mm.recipe import Recipe

__all__ = ["NotDescribable", "build", "describe_config", "describe_modality", "encode_value"]

HOMES: dict[str, ModuleType] = {
    "input_noise": input_noise,
    "likelihoods": likelihoods,
    "networks": networks,
    "schedules": schedules,
}

KINDS: dict[str, type] = {"input_noise": input_noise.InputNoise, "likelihoods": likelihoods.Likelihood}


class NotDescribable(TypeError):
    """A part of a recipe that JSON cannot carry."""


def describe_config(recipe: Recipe) -> dict[str, Any]:
    """The arguments of a recipe made by a function of `pyro_mm.variants`.

    Raises:
        NotDescribable: saying which part has no plain description.
    """
    if recipe.name not in variants.__all__:
        raise NotDescribable(f"'{recipe.name}' is no variant of pyro_mm.variants")
    return {k: _within(f"its argument {k}", encode_value, v) for k, v in recipe.config.items()}


def describe_modality(modality: Modality) -> dict[str, Any]:
    """Name, shape, likelihood, network blueprints and input noise of one modality.

    Raises:
        NotDescribable: naming the modality.
    """
    if type(modality) is not Modality:
        raise NotDescribable(f"modality '{modality.name}' is a {type(modality).__name__}, not a plain Modality")
    parts = {f.name: getattr(modality, f.name) for f in fields(modality) if f.name not in ("name", "shape")}
    described = {k: _within(f"modality '{modality.name}': {k}", encode_value, v) for k, v in parts.items()}
    return {"name": modality.name, "shape": list(modality.shape), **described}


def build(name: str, config: Mapping[str, Any], modalities: Sequence[Mapping[str, Any]]) -> Recipe:
    """The recipe that variant `name` makes of a described config and modalities, with fresh parameters.

    Raises:
        ValueError: a name or argument this version of pyro_mm does not know.
    """
    if name not in variants.__all__:
        raise ValueError(f"this version of pyro_mm has no variant '{name}'")
    make: Callable[..., Recipe] = getattr(variants, name)
    arguments = {k: decode_value(v) for k, v in config.items()}
    if unknown := set(arguments) - set(inspect.signature(make).parameters):
        raise ValueError(f"variant '{name}' of this version of pyro_mm has no argument {sorted(unknown)}")
    return make([decode_modality(m) for m in modalities], **arguments)


def decode_modality(description: Mapping[str, Any]) -> Modality:
    """The inverse of `describe_modality`."""
    return Modality(**{k: decode_value(v) for k, v in description.items()})


def encode_value(value: Any) -> Any:
    """A JSON value for a number, text, None, sequence, mapping with text keys, schedule or blueprint.

    Raises:
        NotDescribable: for anything else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Schedule):
        return _object("schedules", value, _arguments(value))
    name = str(getattr(value, "__name__", ""))
    if isinstance(value, type) and issubclass(value, nn.Module) and getattr(nn, name, None) is value:
        return {"kind": f"nn.{name}"}
    if is_dataclass(value) and not isinstance(value, type):
        home = next((h for h, kind in KINDS.items() if isinstance(value, kind)), "networks")
        return _object(home, value, {f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise NotDescribable(f"a mapping whose keys are not all text: {dict(value)!r}")
        return {"kind": "mapping", "fields": {k: encode_value(v) for k, v in value.items()}}
    if isinstance(value, Sequence):
        return [encode_value(v) for v in value]
    raise NotDescribable(f"{value!r} has no plain description")


def decode_value(value: Any) -> Any:
    """The inverse of `encode_value`; sequences come back as tuples.

    Raises:
        ValueError: an unknown kind.
    """
    if isinstance(value, list):
        return tuple(decode_value(v) for v in value)
    if not isinstance(value, dict):
        return value
    kind, inside = value.get("kind"), {k: decode_value(v) for k, v in value.get("fields", {}).items()}
    if kind == "mapping":
        return inside
    home, _, name = str(kind).partition(".")
    if home == "nn":
        found = getattr(nn, name, None)
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
    elif home in HOMES and name in HOMES[home].__all__:
        return getattr(HOMES[home], name)(**inside)
    raise ValueError(f"this version of pyro_mm does not know '{kind}'")


def _object(home: str, value: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    name = type(value).__name__
    if name not in HOMES[home].__all__ or getattr(HOMES[home], name) is not type(value):
        raise NotDescribable(f"{value!r} is not of pyro_mm.{HOMES[home].__name__.removeprefix('pyro_mm.')}")
    kind = f"{home}.{name}"
    return {"kind": kind, "fields": {k: _within(kind, encode_value, v) for k, v in arguments.items()}}


def _arguments(schedule: Schedule) -> dict[str, Any]:
    """A schedule's constructor arguments, which it keeps under the same names."""
    names = list(inspect.signature(type(schedule)).parameters)
    if names == ["value"]:
        return {"value": float(schedule.value)}
    if missing := [n for n in names if not hasattr(schedule, n)]:
        raise NotDescribable(f"schedule {type(schedule).__name__} does not keep its arguments {missing}")
    return {n: getattr(schedule, n) for n in names}


def _within(where: str, encode: Callable[[Any], Any], value: Any) -> Any:
    try:
        return encode(value)
    except NotDescribable as error:
        raise NotDescribable(f"{where}: {error}") from None
