"""The terms of the ELBO given some of the modalities: every latent's KL, every modality's expected log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log, log2, nan, sqrt
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.collapse import Latent, LatentSums, finite, seen_rows
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import Run, Site, Sites, check_sites, per_datum, replay, run

__all__ = ["Modal", "View", "view"]


@dataclass(frozen=True)
class Modal:
    """E_q log p(x_m | z) of one modality, nats: mean and standard error over the `rows` that have it.

    Attributes:
        elements: numbers per datum.
        share: |sum over rows| of this term, as a part of the sum of that over the modalities.
    """

    rows: int
    elements: int
    nats: float
    se: float
    share: float

    @property
    def per_element(self) -> float:
        """Nats per element."""
        return self.nats / max(self.elements, 1)


@dataclass(frozen=True)
class View:
    """What holds given some modalities S; means over the `rows` that have any of them, nats.

    Attributes:
        elbo: E_q log p(x_S | z) - KL(q(z|x_S) || p(z)) <= log p(x_S), training weights left out.
        elbo_se: its standard error over the data, Monte Carlo noise included.
        bits: -elbo in bits per element of x_S, plus log2(levels) for elements that have grey levels.
        kl: of all latents together.
        latents: the sites that are drawn in some row.
        terms: the modalities of S that the model scores.
    """

    rows: int
    elbo: float
    elbo_se: float
    bits: float
    kl: float
    latents: dict[str, Latent]
    terms: dict[str, Modal]

    def summary(self) -> dict[str, Any]:
        """Numbers for JSON; NaN is None."""
        return {
            "rows": self.rows,
            "elbo": finite(self.elbo),
            "elbo_se": finite(self.elbo_se),
            "bits_per_element": finite(self.bits),
            "kl": finite(self.kl),
            "latents": {n: s.summary() for n, s in self.latents.items()},
            "terms": {
                m: {
                    "rows": t.rows,
                    "nats": finite(t.nats),
                    "se": finite(t.se),
                    "share": finite(t.share),
                    "per_element": finite(t.per_element),
                }
                for m, t in self.terms.items()
            },
        }


def view(
    model: Program,
    guide: Program,
    batch: Batch,
    group: tuple[str, ...],
    k: int,
    *,
    threshold: float,
    levels: Mapping[str, int],
    chunk: int | None = None,
) -> View:
    """q(z | x_S) against the model of x_S, S = `group`, on K draws of every row that has any of it.

    A model that is given modalities sees them, whatever the guide is shown.
    """
    conditions = [m for m in getattr(model, "conditioned_on", ()) if m in batch.mask]
    rows = batch[batch.present(group)]
    plan = Plan.for_batch(rows, k, chunk)
    parts = []
    for block in plan.blocks(rows):
        sums = _Block(len(block))
        shown, scored = block.only(*group), block.only(*group, *conditions)
        for which in plan.slices(torch.arange(k)):
            drawn = run(particles(guide, len(which)), shown)
            sites = replay(particles(model, len(which)), scored, {n: s.value for n, s in drawn.items()})
            check_sites(sites, drawn)
            _require_one_view(drawn)
            sums.add(Run(sites, drawn), len(which) / k)
        parts.append(sums)
    return _view(parts, threshold, levels)


def _require_one_view(drawn: Sites) -> None:
    for site in drawn.values():
        if any(f.name == "subset" for f in site.frames):
            raise ValueError(
                f"site '{site.name}' stands in the plate 'subset': a report is of one view of the data; pass the "
                "programs themselves instead of in_subsets(...)"
            )


@dataclass
class _Block:
    """Means over particles for some rows."""

    n: int
    latents: dict[str, LatentSums] = field(default_factory=dict)
    kl: Any = 0.0
    logp: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)

    def add(self, pair: Run, share: float) -> None:
        """Take in a chunk that is `share` of the particles."""
        for name in pair.latents:
            self.kl = self.kl + share * self.latents.setdefault(name, LatentSums()).add(pair, name)
        for name, site in pair.model.items():
            if site.observed:
                logp = share * per_datum(site).squeeze(1).double().mean(0).expand(self.n)
                self.logp[name] = self.logp[name] + logp if name in self.logp else logp
                self.seen[name], self.elements[name] = seen_rows(site, self.n), _elements(site)


def _elements(site: Site) -> int:
    """Numbers per datum: event dimensions, and plates nested inside the datum."""
    nested = site.fn.batch_shape[-2:-1] + site.fn.batch_shape[:-3]
    return torch.Size([*nested, *site.fn.event_shape]).numel()


def _view(parts: list[_Block], threshold: float, levels: Mapping[str, int]) -> View:
    first = parts[0]
    logp = {m: torch.cat([p.logp[m] for p in parts]) for m in first.logp}
    seen = {m: torch.cat([p.seen[m] for p in parts]) for m in first.logp}
    size = sum(abs(v.sum().item()) for v in logp.values())
    terms = {}
    for m, values in logp.items():
        if bool(seen[m].any()):
            mean, se = _mean(values[seen[m]])
            share = abs(values.sum().item()) / size if size else nan
            terms[m] = Modal(int(seen[m].sum()), first.elements[m], mean, se, share)
    kl = torch.cat([torch.as_tensor(p.kl, dtype=torch.float64).expand(p.n) for p in parts])
    elbo = sum(logp.values(), torch.zeros_like(kl)) - kl
    numbers = {m: t.rows * t.elements for m, t in terms.items()}
    grey = sum(numbers[m] * log2(levels[m]) for m in numbers if m in levels)
    total = sum(numbers.values())
    bits = (-elbo.sum().item() / log(2) + grey) / total if total else nan
    joined = {n: LatentSums.join([p.latents[n] for p in parts]).result(threshold) for n in first.latents}
    latents = {n: s for n, s in joined.items() if s is not None}
    return View(len(kl), *_mean(elbo), bits, kl.mean().item(), latents, terms)


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean over the rows and its standard error."""
    return values.mean().item(), values.std().item() / sqrt(len(values)) if len(values) > 1 else nan
