"""The nn.Modules behind a program, which may be a plain function, a bound method or something wrapped by a handler."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from inspect import unwrap
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

__all__ = ["modules_of", "parameters_of"]


def modules_of(*programs: Any) -> list[nn.Module]:
    """The outermost modules that the programs use, each once.

    Looks into closures, default values, the globals a function names, containers and plain objects' attributes.
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    todo = list(programs)
    while todo:
        part = todo.pop(0)
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            found.append(part)  # and what is behind a function that it holds, as given(function, ...) does
            held = (v for module in part.modules() for v in vars(module).values())
            todo += [v for v in held if isinstance(v, FunctionType | MethodType | partial)]
        else:
            todo += _inside(part)
    inner = {id(m) for outer in found for m in outer.modules() if m is not outer}
    return [m for m in found if id(m) not in inner]


def parameters_of(model: Any, guide: Any) -> dict[str, Tensor]:
    """Every parameter that wants a gradient, once, as `model.decoder.weight` or `guide...`."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, program in (("model", model), ("guide", guide)):
        for i, module in enumerate(modules_of(program)):
            prefix = name if module is program else f"{name}[{i}:{type(module).__name__}]"
            for key, p in module.named_parameters(prefix):
                if p.requires_grad:
                    named.setdefault(id(p), (key, p))
    return dict(named.values())


def _inside(part: Any) -> Iterator[Any]:
    """What a callable or container refers to."""
    if isinstance(part, partial):
        yield part.func
        yield from (*part.args, *part.keywords.values())
    elif isinstance(part, MethodType):
        yield part.__self__
    elif isinstance(part, FunctionType) and part.__module__.partition(".")[0] not in ("pyro", "torch"):
        yield from (c.cell_contents for c in part.__closure__ or () if _filled(c))
        yield from (*(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values())
        names = part.__code__.co_names
        yield from (part.__globals__[n] for n in names if n in part.__globals__)
        if unwrap(part) is not part:
            yield unwrap(part)
    elif isinstance(part, dict):
        yield from part.values()
    elif isinstance(part, list | tuple | set):
        yield from part
    elif callable(part) and not isinstance(part, type | FunctionType) and hasattr(part, "__dict__"):
        yield from vars(part).values()


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
