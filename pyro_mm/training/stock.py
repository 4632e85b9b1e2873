"""Stock `pyro.infer.SVI` on a pair of modules, in the one way that trains them.

`pyro.infer.SVI` finds parameters in Pyro's global store.  On plain nn.Modules it finds none and trains nothing,
silently; with `module_local_params=True` and PyroModules it raises AttributeError.  `svi` registers every parameter of
both programs, in a store of its own, so that the modules' own parameters move and the global store stays empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_mm.batch import Batch

__all__ = ["StockSVI", "stock_trains_nothing", "svi"]


def svi(model: Callable[[Batch], Any], guide: Callable[[Batch], Any], optim: Any, loss: Any = None) -> StockSVI:
    """A stock `pyro.infer.SVI` that trains every parameter of `model` and `guide`, in its own param-store scope.

    `.step(batch)` and `.evaluate_loss(batch)` are Pyro's; the loss is a sum over rows, as always in Pyro.

    Args:
        optim: a Pyro optimiser, e.g. `pyro.optim.Adam({"lr": 1e-3})`.
        loss: a Pyro ELBO; default `Trace_ELBO(max_plate_nesting=3)` (particle, subset and data plates).

    Raises:
        TypeError: neither program is an nn.Module: its parameters could not be found.
        ValueError: when called, for two PyroModules that would share a parameter because it has one name in both.
    """
    return StockSVI(model, guide, optim, loss if loss is not None else Trace_ELBO(max_plate_nesting=3))


class StockSVI(SVI):
    """See `svi`."""

    def __init__(self, model: Callable[[Batch], Any], guide: Callable[[Batch], Any], optim: Any, loss: Any) -> None:
        self.pair = _pair(model, guide)
        self.store: dict[str, Any] = {"params": {}, "constraints": {}}
        super().__init__(self._registered(model), self._registered(guide), optim, loss)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One gradient step; the loss before it."""
        with self._scope():
            return super().step(*args, **kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss, without a step."""
        with self._scope():
            return super().evaluate_loss(*args, **kwargs)

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """Our own store, holding the modules' very parameters.

        Registering them by `pyro.module` alone would copy one whose memory is not contiguous, and train the copy.
        """
        _refuse_ties(self.pair)
        own = _named(self.pair)
        self.store["params"].update(own)
        self.store["constraints"].update({n: constraints.real for n in own})
        with pyro.get_param_store().scope(self.store):
            yield

    def _registered(self, program: Callable[[Batch], Any]) -> Callable[..., Any]:
        """The program, then a param statement for every parameter of the pair (after it, because an autoguide has none
        before its first call).
        """

        def registered(*args: Any, **kwargs: Any) -> Any:
            with poutine.block(hide_fn=_module_local):
                value = program(*args, **kwargs)
            for name, parameter in _named(self.pair).items():
                pyro.param(name, parameter)
            return value

        return registered


def stock_trains_nothing(model: Callable[[Batch], Any], guide: Callable[[Batch], Any], batch: Batch) -> list[str]:
    """Parameters that plain `pyro.infer.SVI(model, guide, ...)` would never move, under the settings in force.

    An empty list means that the pair may be handed to stock Pyro as it is; otherwise use `svi` or `fit`.  Modules,
    random streams and the global store are left as they were.
    """
    pair = _pair(model, guide)
    places = [(m, dict(m._parameters)) for m in pair.modules()]
    state = torch.get_rng_state()
    try:
        with pyro.get_param_store().scope(), torch.no_grad(), poutine.trace(param_only=True) as capture:
            guide(batch)
            model(batch)
            found = [getattr(site["value"], "unconstrained", None) for site in capture.trace.nodes.values()]
            # Where one lacks it, SVI.step raises AttributeError and moves none.
            moved = set() if None in found else {id(p()) for p in found if p is not None}
    finally:
        torch.set_rng_state(state)
        for module, parameters in places:  # Pyro ties equally named parameters of two PyroModules to one
            module._parameters.update(parameters)
    return [n for n, p in _named(pair).items() if id(p) not in moved]


def _refuse_ties(pair: nn.ModuleDict) -> None:
    """Without module-local parameters Pyro makes one of equally named constrained parameters of two PyroModules."""
    if pyro.settings.get("module_local_params") or not all(isinstance(m, PyroModule) for m in pair.values()):
        return
    names = [{n: p for n, p in m.named_parameters() if n.endswith("_unconstrained")} for m in pair.values()]
    tied = [n.removesuffix("_unconstrained") for n in names[0] if n in names[-1] and names[0][n] is not names[-1][n]]
    if tied:
        raise ValueError(
            f"model and guide are PyroModules and both have parameters {tied}: Pyro's store would make them one.  "
            "Rename them, or call pyro.settings.set(module_local_params=True) before the modules are made"
        )


def _module_local(site: dict[str, Any]) -> bool:
    """A PyroModule's statement about a parameter of its own: SVI could not read it, and we register it anyway."""
    return site["type"] == "param" and getattr(site["fn"], "__self__", None) is not pyro.get_param_store()


def _pair(model: Any, guide: Any) -> nn.ModuleDict:
    """Both programs in one module, which names a shared parameter once."""
    modules = {n: p for n, p in (("model", model), ("guide", guide)) if isinstance(p, nn.Module)}
    if not modules:
        raise TypeError("model and guide are plain functions: parameters are found in nn.Modules")
    return nn.ModuleDict(modules)


def _named(pair: nn.ModuleDict) -> dict[str, Tensor]:
    return {n: p for n, p in pair.named_parameters() if p.requires_grad}
