"""Does what a model generates from some modalities belong to the class of what it was given, as classifiers see it?

Classifiers, trained on real data, stand in for a reader.  They are wrong at times, and on generated data at unknown
times: no accuracy here can be trusted beyond the classifiers' own, which belongs beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan, sqrt
from typing import Any, Protocol

import torch
from torch import Tensor, distributions

from pyro_mm.batch import Batch
from pyro_mm.distributions import TokenSequence
from pyro_mm.evaluation.generation import generate
from pyro_mm.evaluation.modules import modules_of
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import Program
from pyro_mm.modality import Modality

__all__ = ["CrossAccuracy", "Judge", "Proportion", "conditions", "cross_accuracy", "joint_coherence", "typical"]

CHUNK = 256  # rows x draws in one pass
STRIDE = 1_000_003  # between the seeds of two runs, more than either has blocks
NAMED = (distributions.Categorical, distributions.OneHotCategorical, TokenSequence)  # no mean, or one that is no value

Sources = tuple[str, ...]


class Judge(Protocol):
    """What is needed of `pyro_mm.judges.Judges`."""

    label: str

    def classify(self, name: str, x: Tensor) -> Tensor:
        """Class probabilities `(N, C)`."""

    def features(self, name: str, x: Tensor) -> Tensor:
        """`(N, F)`."""


@dataclass(frozen=True)
class Proportion:
    """A share of `n` rows, with its binomial standard error."""

    value: float
    n: int

    @property
    def se(self) -> float:
        """sqrt(p (1 - p) / n)."""
        return sqrt(self.value * (1 - self.value) / self.n) if self.n else nan


@dataclass(frozen=True)
class CrossAccuracy:
    """Accuracy of what is generated, by target and conditioning set, in order of target and size of the set."""

    found: dict[tuple[str, Sources], Proportion]

    def __getitem__(self, key: tuple[str, Sources]) -> Proportion:
        return self.found[key]

    def mean(self, target: str, size: int) -> float:
        """Over the conditioning sets of one size; nan where there is none."""
        values = [p.value for (m, s), p in self.found.items() if m == target and len(s) == size]
        return sum(values) / len(values) if values else nan

    def to_json(self) -> list[dict[str, Any]]:
        """One entry for every target and set."""
        return [
            {"target": m, "given": list(s), "accuracy": p.value, "se": p.se, "n": p.n}
            for (m, s), p in self.found.items()
        ]


def conditions(names: Sequence[str], target: str) -> list[Sources]:
    """Every non-empty set of the modalities other than the target, small ones first."""
    others = [m for m in names if m != target]
    return [s for size in range(1, len(others) + 1) for s in combinations(others, size)]


def cross_accuracy(
    model: Program,
    guide: Program,
    judges: Judge,
    batch: Batch,
    label: str,
    sets: Sequence[Sequence[str]] | None = None,
    k: int = 1,
    *,
    means: Sequence[str] = (),
    sample: bool = False,
    seed: int = 0,
    chunk: int = CHUNK,
) -> CrossAccuracy:
    """Share of rows whose x_m, generated from x_A, is put into the row's own class, for every m and A without m.

    x_m is the decoder's mean at a draw of z ~ q(z | x_A), as in Vasco et al. (2022).  The class is what `judges` make
    of it; of the label itself it is the most probable value.  Rows that lack the label or something of A do not count.

    Args:
        judges: classifiers of everything that is generated but the label.
        label: the modality that holds the rows' classes.
        sets: the conditioning sets A; default every non-empty one.
        k: draws of z for every row.  The standard error is that of independent rows with one draw each, at most too
            large for more.
        means: latents at whose conditional mean the model is taken (`Recipe.means`).
        sample: judge a draw of x_m ~ p(x_m | z), not its mean.
        seed: of all draws; every set meets the same ones.
        chunk: rows x draws in one pass, each with random numbers of its own.

    Raises:
        ValueError: no label in the batch, unknown names in `sets`, or nothing to generate from anything.
    """
    if label not in batch.mask:
        raise ValueError(f"accuracy needs the rows' label '{label}'; the batch has {list(batch.names)}")
    sources, targets = _roles(model, batch)
    found: dict[tuple[str, Sources], Proportion] = {}
    for given in _checked(sets, sources, targets):
        rows = torch.stack([batch.mask[m] for m in (*given, label)]).all(0).nonzero().flatten()
        wanted = [m for m in targets if m not in given]
        if not len(rows) or not wanted:
            continue
        known = batch[rows]
        truth = classes_of(known.x[label])
        hits: dict[str, list[Tensor]] = {m: [] for m in wanted}
        options: dict[str, Any] = {"means": means, "sample": sample, "seed": seed, "chunk": chunk}
        for where, made in generated(model, guide, known.only(*given), wanted, k, **options):
            for m in wanted:
                hits[m].append((_judged(judges, label, m, made[m]) == truth[where]).double().mean(0))
        for m, parts in hits.items():
            found[m, given] = Proportion(torch.cat(parts).mean().item(), len(rows))
    if not found:
        raise ValueError(
            f"the model generates {list(targets)} from nothing else in these rows: accuracy needs a source"
        )
    order = sorted(found, key=lambda f: (targets.index(f[0]), len(f[1]), [sources.index(m) for m in f[1]]))
    return CrossAccuracy({key: found[key] for key in order})


def draws_jointly(model: Program, names: Sequence[str]) -> bool:
    """Does `joint_coherence` apply?  The model makes two modalities of these, or more, and is conditioned on none."""
    return len(getattr(model, "names", names)) > 1 and not getattr(model, "conditioned_on", ())


def joint_coherence(
    model: Program,
    guide: Program,
    judges: Judge,
    modalities: Sequence[Modality],
    n: int = 1000,
    *,
    means: Sequence[str] = (),
    sample: bool = False,
    seed: int = 0,
    chunk: int = CHUNK,
) -> Proportion:
    """Share of `n` draws from the prior for which the classifiers of all modalities, and the label, name one class.

    The prior is the guide's answer to rows in which nothing is present.  Other arguments as in `cross_accuracy`.

    Raises:
        ValueError: fewer than two modalities are generated, or the model is of others given some.
    """
    nothing = Batch.missing(modalities, n).to(device_of(model, guide))
    targets = _roles(model, nothing)[1]
    others = tuple(getattr(model, "conditioned_on", ()))
    if len(targets) < 2 or others:
        what = f"{list(targets)} given {list(others)}" if others else f"{list(targets)}"
        raise ValueError(f"joint coherence needs a joint model of two modalities or more; this one is of {what}")
    agree = []
    for _, made in generated(model, guide, nothing, targets, means=means, sample=sample, seed=seed, chunk=chunk):
        classes = torch.stack([_judged(judges, judges.label, m, made[m])[0] for m in targets])
        agree.append((classes == classes[0]).all(0))
    return Proportion(torch.cat(agree).double().mean().item(), n)


def generated(
    model: Program,
    guide: Program,
    batch: Batch,
    names: Sequence[str],
    k: int = 1,
    *,
    means: Sequence[str] = (),
    sample: bool = False,
    seed: int = 0,
    chunk: int = CHUNK,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Values `(k, n, *shape)` of these modalities given what is present, a block of rows at a time."""
    for where, made, own in decoded(model, guide, batch, names, k, means=means, seed=seed, chunk=chunk):
        with evaluating(model, guide, seed=own, stream="observations"):
            values = {m: made[m].sample() if sample else typical(made[m]) for m in names}
        yield where, values


def decoded(
    model: Program,
    guide: Program,
    batch: Batch,
    names: Sequence[str],
    k: int = 1,
    *,
    means: Sequence[str] = (),
    seed: int = 0,
    chunk: int = CHUNK,
) -> Iterator[tuple[slice, dict[str, Any], int]]:
    """`generate` a block of rows at a time: where, the distributions `(k, n)`, and the block's seed."""
    step = max(1, chunk // k)
    for block, start in enumerate(range(0, len(batch), step)):
        where = slice(start, min(start + step, len(batch)))
        own = seed * STRIDE + block  # a seed for every block: rows at one place in two blocks share no noise
        made = generate(model, guide, batch[where], k, means=means, seed=own)
        if lacking := [m for m in names if m not in made]:
            raise ValueError(f"the model generates no {lacking}; it generates {list(made)}")
        yield where, made, own


def device_of(*programs: Program) -> torch.device:
    """Where their parameters are; the CPU when they have none."""
    parameters = (p for module in modules_of(*programs) for p in module.parameters())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device


def _roles(model: Program, batch: Batch) -> tuple[Sources, Sources]:
    """What may be given to the model, and what it generates; a model that does not say generates all of the batch."""
    own = tuple(getattr(model, "names", ())) or batch.names
    targets = tuple(m for m in own if m in batch.mask)
    return tuple(m for m in batch.names if m in (*own, *getattr(model, "conditioned_on", ()))), targets


def _checked(sets: Sequence[Sequence[str]] | None, sources: Sources, targets: Sources) -> list[Sources]:
    if sets is None:
        return list(dict.fromkeys(s for m in targets for s in conditions(sources, m)))
    for given in sets:
        if isinstance(given, str) or not given or (set(given) - set(sources)):
            raise ValueError(f"a conditioning set holds names out of {list(sources)}; got {given!r}")
    return [tuple(m for m in sources if m in given) for given in sets]


def typical(px: Any) -> Tensor:
    """The mean of a distribution; the most probable value where values are names and no numbers; of a diffusion, which
    has neither, a draw.
    """
    fn = getattr(px, "base", px)
    inner = getattr(fn, "base_dist", fn)
    if isinstance(inner, NAMED):
        return px.mode  # type: ignore[no-any-return]
    try:
        return px.mean  # type: ignore[no-any-return]
    except NotImplementedError:
        return px.sample()  # type: ignore[no-any-return]


def _judged(judges: Judge, label: str, m: str, x: Tensor) -> Tensor:
    """Classes `(k, n)` of values `(k, n, *shape)`."""
    if m == label:
        return classes_of(x, 2)
    return judges.classify(m, x.flatten(0, 1)).argmax(-1).reshape(x.shape[:2])


def classes_of(label: Tensor, lead: int = 1) -> Tensor:
    """Class numbers, also of one-hot rows, behind `lead` dimensions."""
    return label.argmax(-1) if label.dim() > lead else label.long()
