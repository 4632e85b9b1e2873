"""A checkpoint: one file of tensors, numbers and strings, written whole or not at all.

It is read by `torch.load` with its safe default (`weights_only=True`), so a file from a stranger runs no code.
"""

from __future__ import annotations

import errno
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mm.files import BadFile, write_atomic

__all__ = ["FORMAT", "FILE", "copy_into", "read", "snapshot", "tensors_of", "write"]

FORMAT = 1
FILE = "checkpoint.pt"


def tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The live parameters and buffers, each once: `name.path -> tensor`, under the first name that reaches it.

    An objective holds the model once per term; its own `state_dict` would repeat every shared tensor.

    Raises:
        TypeError: a module keeps something other than tensors in its state.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        for path, value in module.state_dict(keep_vars=True).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"'{name}.{path}' is a {type(value).__name__}: a checkpoint holds tensors only")
            if id(value) not in seen:
                seen.add(id(value))
                found[f"{name}.{path}"] = value
    return found


def snapshot(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """A copy of every tensor."""
    return {n: t.detach().clone() for n, t in tensors_of(modules).items()}


def copy_into(modules: Mapping[str, nn.Module], saved: Mapping[str, Tensor], origin: str = "the checkpoint") -> None:
    """Put saved values into the live tensors, in place.

    Raises:
        ValueError: names or shapes differ; the message says which.
    """
    live = tensors_of(modules)
    if lacking := sorted(live.keys() ^ saved.keys()):
        sides = [f"{n} (only in {origin})" if n in saved else f"{n} (not in {origin})" for n in lacking]
        raise ValueError(f"{origin} does not fit these modules: {'; '.join(sides[:5])}{'; ...' * (len(sides) > 5)}")
    for name, tensor in live.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(
                f"{origin} does not fit these modules: {name} has shape {tuple(saved[name].shape)} there "
                f"and {tuple(tensor.shape)} here"
            )
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(saved[name])


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Save `state`, then rename over the old file: whatever happens meanwhile, one whole checkpoint is there.

    Raises:
        OSError: disk full, no permission, ...; the previous file is unchanged.
        TypeError: `state` holds something that the safe loader would refuse (a scheduler's or optimiser's object).
    """
    require_plain(state, "checkpoint")
    try:
        write_atomic(path, lambda file: torch.save(dict(state), file))
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        kept = "the previous checkpoint is unchanged" if path.exists() else "there is no earlier checkpoint"
        number = getattr(error, "errno", None) or errno.EIO
        raise OSError(number, f"could not write {path}: {error}; {kept}") from error


def read(path: Path) -> dict[str, Any]:
    """What `write` saved, on the CPU.

    Raises:
        BadFile: not a checkpoint of this library, damaged, or of another format.
    """
    with open(path, "rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch has a dozen for a damaged file
            raise BadFile(f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error!s:.200})") from error
    version = state.get("format") if isinstance(state, dict) else None
    if version != FORMAT:
        raise BadFile(f"{path} has checkpoint format {version}; this version reads format {FORMAT}")
    return state


def require_plain(value: Any, where: str) -> None:
    """Refuse what `torch.load(weights_only=True)` would refuse, before anything is written."""
    if isinstance(value, Tensor) or value is None or type(value) in (int, float, str, bool):
        return
    if type(value) in (dict, OrderedDict, Counter):
        for key, item in value.items():
            require_plain(key, f"a key of {where}")
            require_plain(item, f"{where}.{key}")
    elif type(value) in (list, tuple, set):
        for i, item in enumerate(value):
            require_plain(item, f"{where}[{i}]")
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{where} is a {kind}, which cannot be kept in a checkpoint of plain numbers and tensors")
