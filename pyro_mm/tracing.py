"""Is this run being recorded as a graph?  Then no Python may look at values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from torch.fx import Node

__all__ = ["LooksAtValues", "SameShapes", "UnseenValues", "is_traced", "one_hot"]


def is_traced() -> bool:
    """True under `make_fx`: shortcuts that depend on data are not taken."""
    # Whoever traces has imported the tracer, which takes longer than all of this package.
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return tracer is not None and tracer.get_proxy_mode() is not None


def one_hot(x: Tensor, classes: int) -> Tensor:
    """0 and 1 along a new last dimension; torch's own looks at the values to check them, which a graph cannot.

    Raises:
        RuntimeError: a class out of range; in a graph whatever indexes by the class raises.
    """
    if not is_traced():
        return torch.nn.functional.one_hot(x.long(), classes)
    return (x.long().unsqueeze(-1) == torch.arange(classes, device=x.device)).long()


class LooksAtValues(RuntimeError):
    """A program that is recorded takes out values, or has shapes, that would be those of one batch for ever."""


# What hands out the values of a tensor behind the tracer's back.  (`.item()` and `bool(tensor)` it sees itself.)
READERS = {
    Tensor.tolist: "`.tolist()`",
    Tensor.numpy: "`.numpy()`",
    Tensor.__array__: "`np.asarray`",
    Tensor.data_ptr: "`.data_ptr()`",
    Tensor.storage: "`.storage()`",
    Tensor.untyped_storage: "`.untyped_storage()`",
    Tensor.__dlpack__: "`__dlpack__`",
    Tensor.__deepcopy__: "`copy.deepcopy`",
    Tensor.__reduce_ex__: "`pickle`",
    Tensor.data.__set__: "`tensor.data = ...`",  # type: ignore[attr-defined]
}
MAKERS = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}  # which read the numbers in a list


class UnseenValues(TorchFunctionMode):
    """While programs are recorded: torch's `one_hot`, which looks at values, becomes the one that does not; what would
    take values past the tracer raises `LooksAtValues`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.one_hot:
            x, classes = _one_hot_arguments(*args, **(kwargs or {}))
            if classes >= 0:  # else torch has to look for the largest
                return one_hot(x, classes)
        if func in READERS and _is_from_data(args[0]):
            raise LooksAtValues(f"it looks at values in Python ({READERS[func]})")
        if func in MAKERS and any(
            isinstance(v, list | tuple) and _any_from_data(v) for v in (*args, *(kwargs or {}).values())
        ):
            raise LooksAtValues(f"it looks at values in Python (`{func.__name__}` of a list that has tensors in it)")
        return func(*args, **(kwargs or {}))


class SameShapes(TorchDispatchMode):
    """While programs are recorded: a result whose shape depends on values (`x[mask]`, `nonzero`, `unique`) raises
    `LooksAtValues`.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.dynamic_output_shape in func.tags and _any_from_data(_shaping(func, args)):
            what = "indexing by a mask" if func is torch.ops.aten.index.Tensor else f"`{func.overloadpacket.__name__}`"
            raise LooksAtValues(f"shapes in it depend on values ({what})")
        return func(*args, **(kwargs or {}))


def _shaping(func: Any, args: tuple[Any, ...]) -> Any:
    """The arguments whose values make the shape: of an index only masks."""
    if func is torch.ops.aten.index.Tensor:
        return [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    return args


def _any_from_data(values: Any) -> bool:
    return any(isinstance(v, Tensor) and _is_from_data(v) for v in tree_leaves(values))


def _is_from_data(x: Tensor) -> bool:
    """Does a tensor depend on what goes into the graph, or on noise?  Python may look at constants."""
    from torch.fx.experimental import proxy_tensor

    mode = proxy_tensor.get_proxy_mode()
    slot: Any = None if mode is None else proxy_tensor.get_proxy_slot(x, mode.tracer, None)
    if slot is None:  # the tracer has never seen it
        return False
    sources = _closure([slot.proxy.node], lambda node: node.all_input_nodes)
    if any(node.op == "placeholder" or _has(node, "nondeterministic_seeded") for node in sources):
        return True
    return any(_writes(node) for node in _closure(sources, lambda node: list(node.users)))  # into a view of a constant


def _closure(start: Iterable[Node], more: Callable[[Node], list[Node]]) -> set[Node]:
    found, todo = set(start), list(start)
    while todo:
        todo += (new := set(more(todo.pop())) - found)
        found |= new
    return found


def _has(node: Node, tag: str) -> bool:
    return getattr(torch.Tag, tag) in getattr(node.target, "tags", ())


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _one_hot_arguments(tensor: Tensor, num_classes: int = -1) -> tuple[Tensor, int]:
    return tensor, num_classes
