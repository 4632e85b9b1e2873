"""What one coordinate of a latent does to the data: it moves, and everything else stays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.collapse import LatentSums, seen_rows
from pyro_mm.evaluation.latents import is_continuous
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import DATA_DIM, Program, particles
from pyro_mm.plots.cells import Cells, Line
from pyro_mm.plots.grids import MOST, generated, subject
from pyro_mm.plots.show import Hook
from pyro_mm.plots.style import Place
from pyro_mm.weights import Sites, run, run_pair

__all__ = ["Start", "latents_of", "placing", "single", "start_at", "traversal"]

VALUES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
RANKED, DRAWS = 100, 4  # rows, and particles for each, behind the choice of dimensions
MOMENTS = 1000  # draws, for a distribution that does not know its own moments


def traversal(
    *what: Any,
    site: str = "z",
    row: int | None = 0,
    dims: Sequence[int] | int = 3,
    values: Sequence[float] = VALUES,
    of: Sequence[str] | None = None,
    k: int = 100,
    show: Mapping[str, Hook] | None = None,
    seed: int = 0,
    path: Place = None,
) -> tuple[Any, dict[tuple[Any, ...], Any]]:
    """The decoders' means while one coordinate of a latent moves from its prior mean, in prior standard deviations.

    One block per modality, in it one line per dimension; a column is one value.  The prior is the model's p(site |
    latents above it).  The other coordinates, and every latent that does not depend on the site, stay at the guide's
    posterior means for one row of data; latents below the site are at their conditional means given it.

    Args:
        what: `recipe, rows` or `model, guide, modalities, rows`.
        site: the latent: `z`, or one of a single modality such as `w_image` or `z_image`.
        row: which of the rows; None for the prior's means.
        dims: the dimensions, or how many: those whose posterior is furthest from the prior, by mean KL over rows (at
            most the first 100 of them).
        values: where the coordinate goes, up to 12.
        of: the modalities to draw; default all that the model generates.
        k: draws for posterior means that have no closed form (latents below others).
        show: as in `cross_generation`.
        seed: of the draws; the caller's random state is left alone.
        path: save there as well.

    Returns:
        The figure, and its axes by `(dimension, modality, place among the values)`.

    Raises:
        TypeError: `what` is neither form.
        ValueError: no such site, row, dimension or modality; too many values; as in `cross_generation`.
    """
    model, guide, modalities, rows = subject(what, "traversal", None, scored=True)
    if not 0 < len(values) <= MOST:
        raise ValueError(f"a traversal has 1 to {MOST} values, got {len(values)}")
    if of is not None and (unknown := set(of) - {m.name for m in modalities}):
        raise ValueError(f"of= names {sorted(unknown)}, but the modalities are {[m.name for m in modalities]}")
    start = start_at(model, guide, single(model, rows, row), site, k, seed)
    chosen = _chosen(dims, start, lambda: _furthest(model, guide, rows, start, seed))
    fixed = start.moved(chosen, values)
    grid = single(model, rows, row)[[0] * (len(chosen) * len(values))]
    made = generated(model, fixed, modalities, grid, means=start.free, seed=seed)
    shown = [m for m in modalities if m.name in made and (of is None or m.name in of)]
    heads = [f"{v:+g}".replace("-", "−") if v else "0" for v in values]
    cells = Cells(shown, len(values), side_by_side=False, corner="prior sd", heads=heads)
    for place, d in enumerate(chosen):
        here = slice(place * len(values), (place + 1) * len(values))
        title = f"{site}[{d}]" if start.mean.numel() > 1 else site
        cells.add(Line((d,), title, {m.name: made[m.name][here] for m in shown}))
    return cells.drawn(show, path)


def latents_of(model: Program, row: Batch) -> list[str]:
    """The model's latents over real numbers: those that a traversal may move."""
    with evaluating(model, seed=0):
        sites = run(poutine.uncondition(particles(model, 1)), row)
    return [n for n, s in sites.items() if n not in _observed(model, row) and is_continuous(s)]


@dataclass(frozen=True)
class Start:
    """Where a traversal of one site begins; tensors have event shapes.

    Attributes:
        mean, sd: of the site's prior, given the latents above it.
        centre: what its coordinates are while they do not move.
        held: values of latents that do not depend on the site.
        free: latents that are at their conditional means: those that do, and those that the guide says nothing about.
    """

    site: str
    mean: Tensor
    sd: Tensor
    centre: Tensor
    held: Mapping[str, Tensor]
    free: tuple[str, ...]

    def moved(self, dims: Sequence[int], values: Sequence[float]) -> Program:
        """A guide that puts the latents in their places; rows are values within dimensions."""
        mean, sd = self.mean.flatten(), self.sd.flatten()
        rows = self.centre.flatten().repeat(len(dims) * len(values), 1)
        steps = torch.as_tensor(values, dtype=rows.dtype, device=rows.device)
        for n, d in enumerate(dims):
            rows[n * len(values) : (n + 1) * len(values), d] = mean[d] + steps * sd[d]
        held = {n: v.expand(len(rows), *v.shape) for n, v in self.held.items()}
        return placing({**held, self.site: rows.reshape(-1, *self.centre.shape)})


def placing(values: Mapping[str, Tensor]) -> Program:
    """A guide whose latents have these values `(N, *event)`."""

    def guide(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=DATA_DIM):
            for name, value in values.items():
                pyro.sample(name, dist.Delta(value, event_dim=value.dim() - 1))

    return guide


class _Probe:
    """Chooses values in one run of a model, and notes which latents depend on one of them."""

    def __init__(self, site: str, posterior: Mapping[str, Tensor], observed: Collection[str]) -> None:
        self.site, self.posterior, self.observed = site, posterior, observed
        self.leaf: Tensor | None = None
        self.prior: tuple[Tensor, Tensor] | None = None
        self.latents: list[str] = []
        self.held: dict[str, Tensor] = {}
        self.free: list[str] = []

    def __call__(self, msg: Any) -> Tensor | None:
        name, fn = msg["name"], msg["fn"]
        if name in self.observed or getattr(fn.support, "is_discrete", False):
            return None
        self.latents.append(name)
        mean, sd = _moments(fn)
        value = self.posterior.get(name)
        if name == self.site:
            self.prior = mean.detach().reshape(fn.event_shape), sd.detach().reshape(fn.event_shape)
            self.leaf = (mean if value is None else value.expand_as(mean)).detach().clone().requires_grad_()
            return self.leaf
        if value is not None and not self._depends(mean + sd):
            self.held[name] = value
            return value.expand_as(mean)
        if _knows_mean(fn):
            self.free.append(name)
        return mean

    def _depends(self, moments: Tensor) -> bool:
        """Is there a way from the site to these moments?"""
        if self.leaf is None or not moments.requires_grad:
            return False
        (slope,) = torch.autograd.grad(moments.sum(), self.leaf, retain_graph=True, allow_unused=True)
        return slope is not None


def start_at(model: Program, guide: Program, one: Batch, site: str, k: int, seed: int) -> Start:
    """Posterior means of the row, and one run of the model at them.

    Raises:
        ValueError: the model has no such latent.
    """
    with evaluating(model, guide, seed=seed):
        probe = _Probe(site, _posterior(run(particles(guide, k), one)), _observed(model, one))
        with torch.enable_grad():
            run(poutine.uncondition(particles(model, 1)), one, probe)
    if probe.prior is None or probe.leaf is None:
        raise ValueError(f"the model has no latent '{site}' that can be moved; it has {probe.latents}")
    centre = probe.leaf.detach().reshape(probe.prior[0].shape)
    return Start(site, *probe.prior, centre, probe.held, tuple(probe.free))


def _posterior(sites: Sites) -> dict[str, Tensor]:
    """Means of one row over the particles, of the latents that are not masked in it."""
    found = {}
    for name, site in sites.items():
        mean = site.fn.mean.expand(site.value.shape) if _knows_mean(site.fn) else site.value
        if bool(seen_rows(site, 1)[0]):
            found[name] = mean.reshape(-1, *site.fn.event_shape).mean(0)
    return found


def _observed(model: Program, row: Batch) -> tuple[str, ...]:
    """The names of observations: the model's, and the batch's."""
    return (*getattr(model, "names", ()), *row.names)


def single(model: Program, rows: Batch, row: int | None) -> Batch:
    """The row; or, for None, one in which nothing but a model's conditions is present."""
    if row is not None and not -len(rows) <= row < len(rows):
        raise ValueError(f"there is no row {row}: the batch has {len(rows)}")
    return rows[0].only(*getattr(model, "conditioned_on", ())) if row is None else rows[row]


def _chosen(dims: Sequence[int] | int, start: Start, rank: Callable[[], list[int]]) -> list[int]:
    """The dimensions asked for, or as many as asked for of the ranked ones."""
    size = start.mean.numel()
    if isinstance(dims, int):
        if dims < 1:
            raise ValueError(f"a traversal moves 1 dimension or more, got dims={dims}")
        return rank()[:dims]
    if not dims or (wrong := [d for d in dims if not 0 <= d < size]) or len(set(dims)) < len(dims):
        asked = wrong if dims and wrong else list(dims)
        raise ValueError(f"latent '{start.site}' has dimensions 0 to {size - 1}, each at most once; got dims={asked}")
    return list(dims)


def _furthest(model: Program, guide: Program, rows: Batch, start: Start, seed: int) -> list[int]:
    """All dimensions, that whose posterior is furthest from the prior first; in order where the guide has none."""
    with evaluating(model, guide, seed=seed):
        pair = run_pair(particles(model, DRAWS), particles(guide, DRAWS), rows[:RANKED])
        sums = LatentSums()
        if start.site in pair.guide:
            sums.add(pair, start.site)
    latent = sums.result(0.0) if start.site in pair.guide else None
    if latent is None:
        return list(range(start.mean.numel()))
    distance = latent.activity if latent.kl is None else latent.kl
    return distance.nan_to_num(nan=-1.0).argsort(descending=True, stable=True).tolist()


def _moments(fn: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, from draws where the distribution does not know them."""
    try:
        return fn.mean, fn.variance.sqrt()
    except NotImplementedError:
        draws = fn.rsample((MOMENTS,)) if fn.has_rsample else fn.sample((MOMENTS,))
        return draws.mean(0), draws.std(0)


def _knows_mean(fn: Any) -> bool:
    try:
        return isinstance(fn.mean, Tensor)
    except NotImplementedError:
        return False
