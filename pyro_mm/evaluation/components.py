"""What a proposal is mixed from: each component draws values of the latents and knows its density.

A guide may hold randomness of its own that no trace shows (which modalities it dropped, noise inside a network).  Given
that randomness psi it is an honest density q(z | x, psi), so its own draws are scored by the run that made them; any
other draw by a run of its own.  With psi_0 the randomness of the run and psi_1..J fresh,

    E[p(x, z) / mean_{j=0..J} q(z | x, psi_j)] = p(x)

whatever J is (Sobolev & Vetrov 2019): exchangeability of the psi_j.  Every draw needs a psi_0..J of its own: were they
shared, as by a plate of particles round a guide that draws its noise per row, the weights would err together, and no
number of them would make up for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.guides.randomness import SemiImplicit
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import Site, Sites, check_sites, per_datum, replay, run

__all__ = ["Component", "Drawn", "GuideView", "guide_views", "log_density", "row_wise"]


@dataclass(frozen=True)
class Drawn:
    """Values of the latents under plates `(K, 1, N)`, and the component's own log-density of them `(K, N)`."""

    values: dict[str, Tensor]
    log_q: Tensor


class Component(Protocol):
    """A density over the latents of every row that can be drawn from.

    `names` are its latents (known once it has drawn or scored), `rows` how many rows it is about.
    """

    rows: int

    @property
    def names(self) -> Sequence[str]: ...

    def draw(self, k: int) -> Drawn:
        """K values per row."""

    def log_prob(self, values: dict[str, Tensor], k: int) -> Tensor:
        """Log-density `(K, N)` of values that another component drew."""

    def seen(self, name: str) -> Any:
        """Where the component has a density of this latent: True, or bool `(..., N)`."""

    def check(self, model: Sites) -> None:
        """Raise ValueError when the model's latents are not those of this component."""


class GuideView:
    """A guide and the view of the batch that it sees."""

    def __init__(self, guide: Program, view: Batch) -> None:
        self.guide, self.view, self.rows = guide, view, len(view)
        self.sites: Sites = {}

    @property
    def names(self) -> Sequence[str]:
        return tuple(self.sites)

    def draw(self, k: int) -> Drawn:
        self.sites = run(particles(self.guide, k), self.view)
        return Drawn({n: s.value for n, s in self.sites.items()}, log_density(self.sites))

    def log_prob(self, values: dict[str, Tensor], k: int) -> Tensor:
        sites = replay(particles(self.guide, k), self.view, values)
        self.sites = self.sites or sites
        return log_density(sites)

    def seen(self, name: str) -> Any:
        mask = self.sites[name].mask if name in self.sites else False
        return True if mask is None else mask

    def check(self, model: Sites) -> None:
        check_sites(model, self.sites)

    def same_shape(self, name: str, fn: Any) -> None:
        """Raise when the guide lacks the site, or has it with another event shape than the model's `fn`."""
        if name not in self.sites:
            raise ValueError(
                f"site '{name}' is drawn by the guide under one view of the data and missing under another"
            )
        if (ours := tuple(self.sites[name].fn.event_shape)) != (theirs := tuple(fn.event_shape)):
            raise ValueError(f"site '{name}' has event shape {ours} in the guide and {theirs} in the model")


class HiddenView(GuideView):
    """A guide with randomness of its own, run on a row of its own for every draw."""

    def __init__(self, guide: SemiImplicit, view: Batch) -> None:
        super().__init__(guide, view)
        self.replays = guide.replays

    def draw(self, k: int) -> Drawn:
        apart = run(particles(self.guide, 1), self._repeated(k))
        own = log_density(apart)
        flat = {n: s.value for n, s in apart.items()}
        logs = [own, *(log_density(self._replayed(flat, k)) for _ in range(self.replays))]
        self.sites = _together(apart, k)
        return Drawn({n: s.value for n, s in self.sites.items()}, _mean(logs).view(k, -1))

    def log_prob(self, values: dict[str, Tensor], k: int) -> Tensor:
        known = self.sites or run(particles(self.guide, 1), self.view)
        flat = {n: _apart(v, known[n].fn.event_dim, k, self.rows) for n, v in values.items() if n in known}
        runs = [self._replayed(flat, k) for _ in range(1 + self.replays)]
        self.sites = self.sites or _together(runs[0], k)
        return _mean([log_density(sites) for sites in runs]).view(k, -1)

    def _repeated(self, k: int) -> Batch:
        return self.view[torch.arange(self.rows, device=self.view.device).repeat(k)]

    def _replayed(self, flat: dict[str, Tensor], k: int) -> Sites:
        return replay(particles(self.guide, 1), self._repeated(k), flat)


def _together(sites: Sites, k: int) -> Sites:
    """Sites of the run with a row for every draw, as if drawn under plates `(K, nested, N)`."""
    out = {}
    for name, site in sites.items():
        mask = site.mask
        if isinstance(mask, Tensor) and mask.dim() and mask.shape[-1] > 1:
            mask = _split(mask.expand(1, *mask.shape[-2:-1] or (1,), -1), 0, k)
        out[name] = replace(site, value=_split(site.value, site.fn.event_dim, k), mask=mask)
    return out


def _split(value: Tensor, event: int, k: int) -> Tensor:
    """`(1, nested, K N, *event)` as `(K, nested, N, *event)`."""
    value = value.unflatten(-1 - event, (k, -1)).movedim(-2 - event, -3 - event)
    return value.squeeze(-4 - event)


def _apart(value: Tensor, event: int, k: int, n: int) -> Tensor:
    """`(K, nested, N, *event)` as `(1, nested, K N, *event)`."""
    lead = value.shape[: value.dim() - event]
    value = value.expand(*lead[:-3], k, lead[-2], n, *value.shape[len(lead) :])
    return value.unsqueeze(-4 - event).movedim(-3 - event, -2 - event).flatten(-2 - event, -1 - event)


def guide_views(guide: Program, batch: Batch) -> Iterator[tuple[float, GuideView]]:
    """(share, component): the guide itself, or all of its views when it is a mixture over them (`random_views`)."""
    views = getattr(guide, "mixture_views", None)
    if views is None:
        yield 1.0, _view(guide, batch)
    else:
        for share, program, view in views(batch):
            yield share, _view(program, view)


def _view(guide: Program, batch: Batch) -> GuideView:
    return HiddenView(guide, batch) if isinstance(guide, SemiImplicit) else GuideView(guide, batch)


def log_density(sites: Sites, depth: int | None = None) -> Tensor:
    """Sum of the sites' log-densities `(K, N)`, `(..., K, N)` with enumerated latents."""
    total: Any = 0.0
    for site in sites.values():
        total = total + row_wise(site, depth)
    return total


def row_wise(site: Site, depth: int | None = None) -> Tensor:
    """The site's log-density `(K, N)`, `(..., K, N)` with enumerated latents."""
    logp = per_datum(site, depth=depth)
    if logp.shape[-2] > 1:
        raise ValueError(
            f"site '{site.name}' has {logp.shape[-2]} values per row: a likelihood is of one view of the data; pass "
            "the programs themselves instead of in_subsets(...), and batch.only(...) instead of batch.subsets(...)"
        )
    return logp.squeeze(-2)


def _mean(logs: list[Tensor]) -> Tensor:
    """Log of the mean density."""
    if len(logs) == 1:
        return logs[0]
    stacked = torch.stack(torch.broadcast_tensors(*logs))
    return stacked.logsumexp(0) - torch.tensor(float(len(logs))).log()
