"""Running a pair leaves nothing behind, and the same seed gives the same result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_mm.evaluation.check.pair import Failure, Pair, copy_of, difference
from pyro_mm.evaluation.modules import modules_of
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.weights import replay, run

__all__ = ["State", "batch_unchanged", "global_parameters", "hidden_randomness", "module_state", "repeatable"]


def global_parameters(pair: Pair) -> str:
    """No `pyro.param` and no `pyro.module`: the global store stays as it is."""
    store = pyro.get_param_store()
    with store.scope():
        pair.latents(pair.holed)
        added = sorted(store.keys())
    if added:
        raise Failure(f"the programs put {', '.join(map(repr, added))} into Pyro's global parameter store")
    return "none"


def batch_unchanged(pair: Pair) -> str:
    """Both programs leave the batch they are given as it was."""
    for program, name in ((pair.guide, "guide"), (pair.model, "model")):
        batch = copy_of(pair.holed)
        with evaluating(program, seed=pair.seed):
            run(program, batch)
        for part, theirs, ours in (("x", batch.x, pair.holed.x), ("mask", batch.mask, pair.holed.mask)):
            _unchanged(f"the {name} changes batch.{part}", theirs, ours)
        if batch.hidden != pair.holed.hidden:
            raise Failure(f"the {name} changes batch.hidden to {sorted(batch.hidden)}")
    return "keys, order, shapes and values as before"


def _unchanged(what: str, after: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    if list(after) != list(before):
        raise Failure(f"{what}: its modalities were {list(before)} and are {list(after)}")
    for m, v in before.items():
        if after[m].shape != v.shape or after[m].dtype != v.dtype:
            shapes = f"{tuple(v.shape)} {v.dtype}, after it {tuple(after[m].shape)} {after[m].dtype}"
            raise Failure(f"{what}['{m}']: before it {shapes}")
        if not torch.equal(after[m], v):
            raise Failure(f"{what}['{m}'] in {int((after[m] != v).reshape(len(v), -1).any(-1).sum())} rows")


class State:
    """Flags, buffers and parameters of some programs' modules, to compare and to put back."""

    def __init__(self, *programs: Any) -> None:
        self.modules: list[nn.Module] = modules_of(*programs)
        self.flags = [(m, m.training) for outer in self.modules for m in outer.modules()]
        self.tensors = {
            label: (table, name, value, value.detach().clone())
            for label, table, name, value in self._tensors()
            if value is not None
        }

    def _tensors(self) -> Iterator[tuple[str, dict[str, Any], str, Any]]:
        """Every parameter and buffer: a label, the module's table it is in, its name there, and itself."""
        for outer in self.modules:
            for path, module in outer.named_modules():
                for table in (module._parameters, module._buffers):
                    for name, value in table.items():
                        yield ".".join(filter(None, (type(outer).__name__, path, name))), table, name, value

    def changes(self) -> list[str]:
        """What differs now."""
        flags = [type(m).__name__ for m, flag in self.flags if m.training != flag]
        out = [f"the training flag of {', '.join(flags)}"] if flags else []
        now = {label: value for label, _, _, value in self._tensors() if value is not None}
        out += [f"'{label}', which is new" for label in now if label not in self.tensors]
        for label, (_, _, _, old) in self.tensors.items():
            if label not in now or now[label].shape != old.shape or not torch.equal(now[label], old):
                out.append(f"'{label}'")
        return out

    def restore(self) -> None:
        """Put flags, tensors and their contents back."""
        for module, flag in self.flags:
            module.training = flag
        with torch.no_grad():
            for table, name, value, old in self.tensors.values():
                table[name] = value
                if value.shape == old.shape and not torch.equal(value, old):
                    value.copy_(old)


def module_state(pair: Pair) -> str:
    """In evaluation mode no run changes a training flag, a buffer or a parameter."""
    with evaluating(pair.model, pair.guide, seed=pair.seed):
        before = State(pair.model, pair.guide)
        guide = run(pair.guide, copy_of(pair.holed))
        replay(pair.model, copy_of(pair.holed), {n: s.value for n, s in guide.items()})
        changed = before.changes()
        before.restore()
    if changed:
        raise Failure(f"a run in evaluation mode changes {', '.join(changed)}")
    return f"{len(before.flags)} modules, {len(before.tensors)} parameters and buffers as before"


def repeatable(pair: Pair) -> str:
    """The same seed gives the same draws and weights, whatever mode the caller left the modules in."""
    before = State(pair.model, pair.guide)
    results = []
    for training in (False, True, True):
        for module in before.modules:
            module.train(training)
        values = pair.latents(pair.holed)
        results.append({**values.tensors, "the log-weights": pair.score(pair.holed, values)})
    before.restore()
    for later in results[1:]:
        for name, value in results[0].items():
            if (gap := difference(value, later[name])) > 0:
                raise Failure(f"two runs with one seed differ in {name} by {gap:.3g}")
    return "three runs bit-equal, in training and evaluation mode"


def hidden_randomness(pair: Pair) -> str:
    """At given latents the log-weights do not depend on the seed."""
    for label, view in pair.views():
        values = pair.latents(view)
        first, *others = (pair.score(view, values, seed=s) for s in range(1, 9))  # a rare choice may come out alike
        if (gap := max(difference(first, other) for other in others)) > pair.tolerance(first):
            raise Failure(f"at the same latents, log-weights with {label} differ by {gap:.3g} nats from seed to seed")
    return "log-weights at given latents do not depend on the seed"
