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
from pyro_mm.subsets import RandomSubsets, Subsets
from pyro_mm.swapping import tensors_replaced

__all__ = [
    "Program",
    "RandomSubsets",
    "Subsets",
    "frozen",
    "given",
    "in_rows",
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

    def scored(self, batch: Batch) -> Tensor:
        """Rows in which one of them is present."""
        return batch.present(self.shown)


def given(program: Program, *names: str) -> Given:
    """The program shown only these modalities.

    Round a guide it hides the rest: `given(guide, "image")` is q(z | image).  Round a model it scores only these:
    `given(model, "sound")` is p(sound, z).  An objective over it counts only rows in which one of them is present.
    """
    if not names:
        raise ValueError("given(program) needs at least one modality")
    return Given(program, names)


class InRows(Verb):
    """See `in_rows`."""

    def __init__(self, program: Program, present: tuple[str, ...], absent: tuple[str, ...]) -> None:
        super().__init__(program)
        self.needed, self.unwanted = present, absent

    def forward(self, batch: Batch) -> Any:
        return self.program(batch)

    def scored(self, batch: Batch) -> Tensor:
        """Rows with all that is needed and nothing that is unwanted."""
        if unknown := [m for m in (*self.needed, *self.unwanted) if m not in batch.mask]:
            raise ValueError(f"in_rows names {unknown}, which the batch lacks; it has {list(batch.names)}")
        wanted = [batch.mask[m] for m in self.needed] + [~batch.mask[m] for m in self.unwanted]
        return torch.stack(torch.broadcast_tensors(*wanted)).all(0)

    def extra_repr(self) -> str:
        return f"with {', '.join(self.needed) or 'anything'}, without {', '.join(self.unwanted) or 'nothing'}"


def in_rows(program: Program, present: Sequence[str] = (), absent: Sequence[str] = ()) -> InRows:
    """The program, in an objective that counts only rows with all of `present` and none of `absent`.

    For terms of paired rows (`in_rows(model, names)`) and of unpaired ones (`in_rows(model, ["image"], ["label"])`).

    Raises:
        ValueError: nothing is asked for; and when called, for a name that the batch lacks.
    """
    if not (present or absent):
        raise ValueError("in_rows(program) needs a modality that is to be present or absent")
    return InRows(program, tuple(present), tuple(absent))


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
        shown = batch.visible(self.subsets.choice(batch.names), self.subsets.known)
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

    def _pyro_sample(self, msg: Any) -> None:
        """What the guide knows in every row need not be drawn: a diffusion's draws are dear."""
        value, mask = self.values.get(msg["name"], (None, False))
        if (mask is None or mask is True) and not site_is_subsample(msg):
            msg["value"] = value

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
    """batch -> bool `(N,)` or `(S, N)`: rows in which every `given` in the programs shows something and that every
    `in_rows` asks for, or None.
    """
    return partial(_rows, [p for p in programs if any(isinstance(verb, Given | InRows) for verb in _nest(p))])


def _rows(programs: Sequence[Program], batch: Batch) -> Tensor | None:
    keep = [mask for p in programs for mask in _shown(p, batch)]
    return torch.stack(torch.broadcast_tensors(*keep)).all(0) if keep else None


def _shown(program: Program, batch: Batch) -> Iterator[Tensor]:
    """For every `given` and `in_rows` in a nest of verbs, the rows that it has scored."""
    for verb in _nest(program):
        if isinstance(verb, InSubsets):
            batch = verb.views(batch)
        if isinstance(verb, Given):
            batch = batch.only(*verb.shown)
        if isinstance(verb, Given | InRows):
            yield verb.scored(batch)


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
