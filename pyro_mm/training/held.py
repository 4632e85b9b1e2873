"""What a graph would freeze: the values, flags and hooks that modules hold in Python, remembered and compared."""

from __future__ import annotations

import dis
import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sized
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_mm.objectives.algebra import Term
from pyro_mm.subsets import RandomSubsets

__all__ = ["Held", "hooks_of"]

DEPTH = 4  # how far into objects and containers: a module's attribute is at 1
MANY = 1000  # of larger collections the length alone is compared
ALL = 20_000  # values, after which no further objects are entered
PLAIN = (int, float, complex, str, bytes, type(None), np.generic, torch.Size, torch.dtype, torch.device)
VALUES = (*PLAIN[:5], np.generic, list, dict, set, Tensor, np.ndarray)  # among what classes and functions name
# Objects of these keep caches; those of `collections` and `types` are somebody's containers.
LIBRARIES = {*sys.stdlib_module_names, "torch", "pyro", "numpy", "pandas", "lightning_fabric"} - {
    "collections",
    "types",
}
# What torch keeps in modules itself; `_flat_weights` of recurrent layers follows their parameters.
TORCHS = {*vars(nn.Module()), "_flat_weights", "_flat_weight_refs"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Held:
    """An objective's state outside of parameters and buffers, as it is now; `changes()` says what has changed since.

    Seen are numbers, texts, arrays, random generators and the identity of everything else: in modules' attributes, and
    in the containers, closures and plain objects that these hold, a few levels deep, in their classes, and in global
    variables that methods of these name; moreover which modules, buffers and parameters there are, their modes, hooks
    and `requires_grad`.
    """

    def __init__(self, objective: nn.Module) -> None:
        self.same: list[tuple[Callable[[Any], Any], Any, Any, str]] = []  # fetch(key) is the value
        self.sizes: list[tuple[Sized, int, str]] = []
        self.equal: list[tuple[Callable[[], Any], Any, str]] = []
        modules = dict(objective.named_modules())
        known = [*modules.values(), *objective.parameters(), *objective.buffers()]
        self.entered: dict[int, Any] = {id(each): each for each in known}  # kept: an id is only its own while it lives
        self.keys: dict[int, frozenset[str]] = {}
        for name, module in modules.items():
            self._module(module, f"{name}." if name else "")
        for kind in dict.fromkeys(k for m in modules.values() for k in type(m).__mro__):
            self._class(kind)
        for name, p in objective.named_parameters():
            self.same.append((partial(getattr, p), "requires_grad", p.requires_grad, f"{name}.requires_grad"))
            self.equal.append((partial(_hooked, p), _hooked(p), f"hooks of {name}"))

    def changes(self) -> list[str]:
        """The names of what is not as it was."""
        if self._unchanged():
            return []
        found = [name for fetch, key, value, name in self.same if not _is_still(fetch, key, value)]
        found += [name for read, value, name in self.equal if not _alike(read(), value)]
        for sized, n, name in self.sizes:
            if len(sized) != n:
                more = [k for k in sized if k not in self.keys[id(sized)]] if id(sized) in self.keys else []  # type: ignore[attr-defined]
                found += [f"{name}{k}" for k in more] or [name.rstrip(".") or "the objective"]
        return list(dict.fromkeys(found))

    def _unchanged(self) -> bool:
        """The same, as fast as Python does it: some 0.1 us per value."""
        for sized, n, _ in self.sizes:
            if len(sized) != n:
                return False
        try:
            for fetch, key, value, _ in self.same:
                now = fetch(key)
                if now is not value and not _alike(now, value):
                    return False
        except (AttributeError, IndexError, KeyError, ValueError):
            return False
        return all(_alike(read(), value) for read, value, _ in self.equal)

    def _module(self, module: nn.Module, name: str) -> None:
        own = vars(module)
        self.same.append((own.get, "training", module.training, f"{name}training"))
        for store in (own, module._modules, module._parameters, module._buffers):
            self.sizes.append((store, len(store), name))
            self.keys[id(store)] = frozenset(store)
        for store in (module._modules, module._parameters, module._buffers):
            # Tensors are the graph's inputs, whichever stand there.
            self.same += [(store.get, k, v, f"{name}{k}") for k, v in store.items() if not isinstance(v, Tensor)]
        self.sizes += [(getattr(module, hooks), 0, f"{name}{hooks}") for hooks in HOOKS]
        for key, value in own.items():
            if key not in TORCHS and not _is_ours(module, key):
                self._value(own.get, key, value, name + key, 1)

    def _class(self, kind: type) -> None:
        """Values that a user's class holds for all its objects."""
        if _of_library(kind):
            return
        for key, value in vars(kind).items():
            if isinstance(value, VALUES) and not key.startswith("__"):
                self._value(vars(kind).get, key, value, f"{kind.__name__}.{key}", 1)
            self._globals(getattr(value, "fget", getattr(value, "__func__", value)))

    def _globals(self, function: Any) -> None:
        """Values among the global variables that a user's function reads."""
        if not isinstance(function, FunctionType) or _of_library(function) or _root(function) == "pyro_mm":
            return
        variables = function.__globals__
        for step in dis.get_instructions(function):
            if step.opname == "LOAD_GLOBAL" and isinstance(value := variables.get(step.argval), VALUES):
                self._value(variables.get, step.argval, value, step.argval, 1)

    def _value(self, fetch: Callable[[Any], Any], key: Any, value: Any, name: str, depth: int) -> None:
        self.same.append((fetch, key, value, name))
        if isinstance(value, (*PLAIN, type)) or id(value) in self.entered or len(self.same) > ALL:
            return
        self.entered[id(value)] = value
        if (read := _reader(value)) is not None:
            self.equal.append((read, read(), name))
        elif depth < DEPTH:
            for fetch, key, item, path in self._items(value, name):
                self._value(fetch, key, item, path, depth + 1)

    def _items(self, value: Any, name: str) -> Iterator[tuple[Callable[[Any], Any], Any, Any, str]]:
        """What it holds: how to fetch it, by which key, what it is now, and its name."""
        if isinstance(value, dict | list | deque):
            self.sizes.append((value, len(value), name))
        if isinstance(value, dict | list | tuple | deque) and len(value) > MANY:
            return
        if isinstance(value, dict):
            yield from ((value.get, k, v, f"{name}[{k!r:.40}]") for k, v in list(value.items()))
        elif isinstance(value, list | tuple | deque):
            yield from ((value.__getitem__, i, v, f"{name}[{i}]") for i, v in enumerate(list(value)))
        elif isinstance(value, FunctionType) and not _of_library(value):
            self._globals(value)
            for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
                content = getattr(cell, "cell_contents", None)
                yield partial(getattr, cell), "cell_contents", content, f"{name}: {variable}"
            yield from ((vars(value).get, k, v, f"{name}.{k}") for k, v in list(vars(value).items()))
        elif isinstance(value, partial | MethodType):
            parts = ("func", "args", "keywords") if isinstance(value, partial) else ("__self__", "__func__")
            yield from ((partial(getattr, value), k, getattr(value, k), name) for k in parts)
        elif not _of_library(type(value)):
            own = getattr(value, "__dict__", {})
            skipped = TORCHS if isinstance(value, nn.Module) else ()
            yield from ((own.get, k, v, f"{name}.{k}") for k, v in list(own.items()) if k not in skipped)
            slots = [s for kind in type(value).__mro__ for s in _slots(kind) if hasattr(value, s)]
            yield from ((partial(getattr, value), s, getattr(value, s), f"{name}.{s}") for s in slots)


def hooks_of(objective: nn.Module) -> list[str]:
    """The parts of an objective that call hooks: of modules, of gradients, or of all modules there are."""
    found = [n or "the objective" for n, m in objective.named_modules() if any(getattr(m, hooks) for hooks in HOOKS)]
    found += [n for n, p in objective.named_parameters() if _hooked(p)]
    return found + ["all modules"] * any(getattr(nn.modules.module, f"_global{hooks}", None) for hooks in HOOKS)


def _root(thing: Any) -> str:
    """The package of a class or function."""
    return (getattr(thing, "__module__", None) or "").partition(".")[0]


def _of_library(thing: Any) -> bool:
    return _root(thing) in LIBRARIES


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _hooked(p: Tensor) -> bool:
    return bool(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None))


def _is_ours(module: nn.Module, key: str) -> bool:
    """What this package's modules, and torch's transforms, change at every call, and do not depend on."""
    if isinstance(module, Term):
        return key in ("report", "checked")
    if isinstance(module, RandomSubsets):
        return key in ("membership", "groups")
    return isinstance(module, Transform) and key.startswith("_cached")


def _reader(value: Any) -> Callable[[], Any] | None:
    """How to read a thing that can change within itself, or None."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else lambda: value._version
    if isinstance(value, np.ndarray):
        return value.tobytes if value.nbytes <= 1_000_000 and value.dtype != object else lambda: value.shape
    if isinstance(value, set | frozenset):
        return lambda: tuple(value)
    if isinstance(value, random.Random):
        return value.getstate
    if isinstance(value, itertools.count):
        return partial(repr, value)
    if isinstance(value, torch.Generator):
        return lambda: value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator | np.random.RandomState):
        bits = value.bit_generator if isinstance(value, np.random.Generator) else value._bit_generator
        return lambda: repr(bits.state)
    return None


def _is_still(fetch: Callable[[Any], Any], key: Any, value: Any) -> bool:
    try:
        return _alike(fetch(key), value)
    except (AttributeError, IndexError, KeyError, ValueError):
        return False


def _alike(a: Any, b: Any) -> bool:
    """The same thing, or plain values that are equal."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, PLAIN):
        return bool(a == b or (a != a and b != b))
    return isinstance(a, tuple) and len(a) == len(b) and all(map(_alike, a, b))
