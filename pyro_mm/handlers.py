"""Verbs on programs that return programs, and the small effect handlers behind them.

A program is anything called as `program(batch)`; every verb keeps its parameters registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.swapping import tensors_replaced

__all__ = [
    "Program",
    "RandomSubsets",
    "Subsets",
    "frozen",
    "given",
    "in_subsets",
    "particles",
]

Program = Callable[[Batch], Any]
PARTICLE_DIM, SUBSET_DIM, DATA_DIM = -3, -2, -1


class Verb(nn.Module):
    """A program made from another one."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities of the program inside."""
        return tuple(getattr(self.program, "names", ()))

    def forward(self, batch: Batch) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no program")


class Given(Verb):
    """See `given`."""

    def __init__(self, program: Program, shown: tuple[str, ...]) -> None:
        super().__init__(program)
        self.shown = shown

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it is shown."""
        return self.shown

    def forward(self, batch: Batch) -> Any:
        return self.program(batch.only(*self.shown))


def given(program: Program, *names: str) -> Given:
    """The program shown only these modalities.

    Round a guide it hides the rest: `given(guide, "image")` is q(z | image).  Round a model it scores only these:
    `given(model, "sound")` is p(sound, z).  An objective over it counts only rows in which one of them is present.
    """
    if not names:
        raise ValueError("given(program) needs at least one modality")
    return Given(program, names)


class Particles(Verb):
    """See `particles`."""

    def __init__(self, program: Program, k: int) -> None:
        super().__init__(program)
        self.k = k

    def forward(self, batch: Batch) -> Any:
        with pyro.plate("particles", self.k, dim=PARTICLE_DIM):
            return self.program(batch)


def particles(program: Program, k: int) -> Particles:
    """K draws at once: a plate at dim -3 round the program."""
    return Particles(program, k)


class Subsets(nn.Module):
    """A fixed list of groups of modalities."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        super().__init__()
        if not groups:
            raise ValueError("at least one subset is needed")
        self.groups = tuple(tuple(g) for g in groups)

    def __len__(self) -> int:
        return len(self.groups)

    def redraw(self) -> None:
        """Called once before every evaluation of an objective."""

    def choice(self, names: Sequence[str]) -> dict[str, Tensor]:
        """For every modality, bool `(S,)`: is it in the group?"""
        if unknown := {m for g in self.groups for m in g} - set(names):
            raise ValueError(f"subsets name {sorted(unknown)}, which the batch lacks; it has {list(names)}")
        return {m: torch.tensor([m in g for g in self.groups]) for m in names}

    def extra_repr(self) -> str:
        return ", ".join("{" + ", ".join(g) + "}" for g in self.groups)


class RandomSubsets(Subsets):
    """`always` plus k random subsets, drawn once per call of the objective and shared by model and guide.

    The size is uniform between 2 and M-1 (1 and M when M < 3), then a subset of that size uniformly: MVAE's
    approximation for many modalities (Wu & Goodman 2018, section 3.2).
    """

    def __init__(self, names: Sequence[str], k: int, always: Sequence[Sequence[str]] = ()) -> None:
        super().__init__([tuple(names)])
        self.pool, self.k, self.always = tuple(names), k, tuple(tuple(g) for g in always)
        if k < 1:
            raise ValueError(f"k random subsets: k must be at least 1, got {k}")
        self.redraw()

    def redraw(self) -> None:
        m = len(self.pool)
        low, high = (2, m - 1) if m >= 3 else (1, m)
        drawn = []
        for _ in range(self.k):
            size = int(torch.randint(low, high + 1, ()))
            chosen = torch.randperm(m)[:size].tolist()
            drawn.append(tuple(self.pool[i] for i in sorted(chosen)))
        self.groups = (*self.always, *drawn)

    def extra_repr(self) -> str:
        """The law, not the draw: what a formula shows, and what tells one run from another."""
        fixed = "".join("{" + ", ".join(g) + "}, " for g in self.always)
        return f"{fixed}{self.k} drawn from {{{', '.join(self.pool)}}}"


class InSubsets(Verb):
    """See `in_subsets`."""

    def __init__(self, program: Program, subsets: Subsets, whole: bool = False) -> None:
        super().__init__(program)
        self.subsets, self.whole = subsets, whole

    def forward(self, batch: Batch) -> Any:
        with pyro.plate("subset", len(self.subsets), dim=SUBSET_DIM):
            return self.program(self.views(batch))

    def views(self, batch: Batch) -> Batch:
        """What the program sees: every subset's view of the batch, masks `(S, N)`."""
        shown = batch.visible(self.subsets.choice(batch.names))
        if not self.whole:
            return shown
        rows = shown.present()
        return batch.visible({m: rows for m in batch.names})


def in_subsets(program: Program, subsets: Subsets | Sequence[Sequence[str]], *, whole: bool = False) -> InSubsets:
    """The program on several subsets of the modalities at once: a plate at dim -2, masks `(S, N)`.

    Its ELBO is the sum of the ELBOs of the subsets, at a fraction of the time.

    Args:
        whole: where a row has something of a subset, show all of the row: for a model that is to reconstruct every
            modality while its guide sees the subset.
    """
    return InSubsets(program, subsets if isinstance(subsets, Subsets) else Subsets(subsets), whole)


class Frozen(Verb):
    """See `frozen`."""

    def forward(self, batch: Batch) -> Any:
        if not isinstance(self.program, nn.Module):
            raise TypeError(
                f"frozen() cannot find the parameters of {self.program!r}, a plain function: its gradients would be "
                "wrong without a word; make the program an nn.Module"
            )
        fixed = {n: p.detach() for n, p in self.program.named_parameters()}
        with tensors_replaced(self.program, fixed):
            return self.program(batch)


def frozen(program: Program) -> Frozen:
    """The same program with its parameters held constant: gradients flow through its values only."""
    return Frozen(program)


class Scale(Messenger):
    """Multiply log-densities of latents by `latent` and of observations by their entry in `observed`.

    Works on both programs of a pair, so that beta weighs log q and log p alike.
    """

    def __init__(self, latent: float | Tensor = 1.0, observed: Mapping[str, float | Tensor] | None = None) -> None:
        super().__init__()
        self.latent, self.observed = latent, dict(observed or {})

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        # A conditioned latent is flagged `is_observed` too; what makes an observation is its name.
        factor = self.observed.get(msg["name"], 1.0) if msg["is_observed"] else self.latent
        if not (isinstance(factor, float | int) and factor == 1.0):
            msg["scale"] = msg["scale"] * factor


class Impute(Messenger):
    """Give the model the guide's values where the guide saw data (its mask is True); sample from the model elsewhere.

    A plain replay would hand the model a private latent that the guide drew from a hidden modality.
    """

    def __init__(self, values: Mapping[str, tuple[Tensor, Any]]) -> None:
        super().__init__()
        self.values = values

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] not in self.values or site_is_subsample(msg):
            return
        value, mask = self.values[msg["name"]]
        if mask is None or mask is True:
            msg["value"] = value
        elif mask is not False:
            seen = mask.reshape(mask.shape + (1,) * msg["fn"].event_dim)
            msg["value"] = torch.where(seen, value, msg["value"])


class AtMean(Messenger):
    """Latents of these names take the mean of their distribution instead of a draw."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.wanted = frozenset(names)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.wanted and not msg["is_observed"]:
            msg["value"] = msg["fn"].mean.expand_as(msg["value"])


def rows_of(*programs: Program) -> Callable[[Batch], Tensor | None]:
    """batch -> bool `(N,)` or `(S, N)`: rows in which every `given` in the programs shows something, or None."""

    return partial(_rows, [p for p in programs if any(isinstance(verb, Given) for verb in _nest(p))])


def _rows(programs: Sequence[Program], batch: Batch) -> Tensor | None:
    keep = [mask for p in programs for mask in _shown(p, batch)]
    return torch.stack(torch.broadcast_tensors(*keep)).all(0) if keep else None


def _shown(program: Program, batch: Batch) -> Iterator[Tensor]:
    """For every `given` in a nest of verbs, the rows in which it shows something."""
    for verb in _nest(program):
        if isinstance(verb, InSubsets):
            batch = verb.views(batch)
        if isinstance(verb, Given):
            batch = batch.only(*verb.shown)
            yield batch.present(verb.shown)


def _nest(program: Any) -> Iterator[Any]:
    """The program, the one inside it, and so on."""
    while program is not None:
        yield program
        program = getattr(program, "program", None)


def innermost(program: Any) -> Any:
    """The program inside a nest of verbs."""
    *_, inner = _nest(program)
    return inner


def masked(program: Program, mask: Tensor | None) -> Program:
    """The program with rows outside `mask` `(N,)` scored nowhere."""
    return program if mask is None else poutine.mask(program, mask=mask)
