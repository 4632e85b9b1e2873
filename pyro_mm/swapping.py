"""A module with other tensors in the place of its own, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["tensors_of", "tensors_replaced"]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@contextmanager
def tensors_replaced(module: nn.Module, others: Mapping[str, Tensor]) -> Iterator[Callable[[], list[str]]]:
    """Inside, the parameters and buffers of these names are others; wherever a tensor is held twice, in both places.

    `torch.func.functional_call` leaves a module changed whose parts are registered under two names: it puts back what
    it finds under the second, which it has replaced under the first already.

    What it yields tells, inside, the names that were assigned since, and hold neither the others nor the module's own.
    """
    own = tensors_of(module)
    new = {id(own[name]): other for name, other in others.items()}
    held: list[tuple[dict[str, Tensor | None], str, Tensor, str]] = []

    def assigned() -> list[str]:
        return [path for store, name, tensor, path in held if store.get(name) is not new[id(tensor)]]

    try:
        for prefix, part in module.named_modules():
            for store in (part._parameters, part._buffers):
                for name, tensor in list(store.items()):
                    if tensor is not None and id(tensor) in new:
                        held.append((store, name, tensor, f"{prefix}.{name}" if prefix else name))  # type: ignore[arg-type]
                        store[name] = new[id(tensor)]  # type: ignore[assignment]
        yield assigned
    finally:
        for store, name, tensor, _ in held:
            store[name] = tensor
