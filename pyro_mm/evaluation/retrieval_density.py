"""log p(x_A^j | x_B^i) of every gallery row j for every query i."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch, as_names
from pyro_mm.evaluation.chunks import MEMORY
from pyro_mm.evaluation.classify import require_sites
from pyro_mm.evaluation.components import row_wise
from pyro_mm.evaluation.effort import Effort, fit_all, proposal_of
from pyro_mm.evaluation.estimation import planned
from pyro_mm.evaluation.evidence import NoLikelihood
from pyro_mm.evaluation.gaussians import is_seen
from pyro_mm.evaluation.marginal import Marginal, require_likelihood
from pyro_mm.evaluation.proposals import Draws, evaluating, summed
from pyro_mm.evaluation.refine import Refiner
from pyro_mm.evaluation.streaming import RatioSums
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import Site, Sites, depth_of, replay, run

__all__ = ["CrossConditional", "by_likelihood", "completed", "cross_conditional"]

ELEMENTS = 1 << 22  # of observations that are scored at once
COMPARED = 16  # gallery rows on which the short way of scoring is compared with the long one


@dataclass(frozen=True)
class CrossConditional:
    """log p(x_A^j | x_B^i), nats.

    Attributes:
        estimate: `(Q, G)`.
        se: standard error of each by the delta method, `(Q, G)`.  Errors of one query share their draws.
        ess: effective number of draws of p(z | x_B^i), `(Q,)`.
    """

    estimate: Tensor
    se: Tensor
    ess: Tensor

    @classmethod
    def of(cls, sums: RatioSums) -> CrossConditional:
        """Those of one query, `(G,)`."""
        return cls(sums.estimate, sums.variance.sqrt(), 1 / sums.denominator.concentration)


def cross_conditional(
    model: Program,
    guide: Program,
    queries: Batch,
    gallery: Batch,
    of: str | Sequence[str],
    given: str | Sequence[str],
    k: int = 1000,
    *,
    refine: Refiner | bool = False,
    defensive: float = 0.1,
    chunk: int | None = None,
    memory: int = MEMORY,
    seed: int | None = None,
) -> CrossConditional:
    """log sum_k w_k p(x_A^j | z_k, x_B^i) / sum_k w_k,  w_k = p(x_B^i, z_k) / q_mix(z_k), for all i and j.

    z_k from q_mix = (1 - a) q(z | x_B^i) + a p(z).  Every gallery row is scored under the same draws, decoded once:
    self-normalised importance sampling, consistent in K.  No draw has seen x_A^j, unlike in `log_conditional`, so that
    values of rows that fit badly are the less sure; `se` says how much.  Private latents of x_A come from the model.

    Args:
        of, given: the modalities A and B; every row must have all of them.
        k, refine, defensive, chunk, memory, seed: as in `log_marginal`, for x_B.

    Raises:
        NoLikelihood: the model defines no such density.
        ValueError: a row lacks a modality, or the guide does not draw a latent that x_B depends on.
    """
    a, b = as_names(of), as_names(given)
    require_likelihood(model, b, of=a)
    _require_present(queries, b, "query")
    _require_present(gallery, a, "gallery")
    shown, found = completed(queries, gallery).only(*b), completed(gallery, queries)
    effort = Effort(k, None, refine, defensive, False, chunk, memory, seed)
    quantity = Marginal(model, guide, "", effort)
    parts: list[CrossConditional] = []
    with evaluating(model, guide, seed=effort.seed):
        plan = planned(quantity, shown, effort)
        scorer: _Scorer | None = None
        for block in plan.blocks(shown):
            proposal = proposal_of(quantity, block, effort, fit_all(quantity, block, effort, plan.units))
            sites = run(particles(model, 1), block)
            sums = [RatioSums(k, tails=False) for _ in range(len(block))]
            for which in plan.slices(proposal.assign(k)):
                draws = proposal.draw(block, which)
                scorer = scorer or _scorer(model, block, found, a, b, draws, sites)
                log_w = draws.log_terms([m for m in b if m in draws.log_likelihood])
                for i, own in enumerate(sums):
                    w = log_w[..., i : i + 1]
                    log_p = scorer(block[i], _known(draws, sites, i, len(block)), len(which))
                    own.add(summed(w + log_p), summed(w))
            parts += [CrossConditional.of(own) for own in sums]
    return CrossConditional(
        torch.stack([p.estimate for p in parts]), torch.stack([p.se for p in parts]), torch.cat([p.ess for p in parts])
    )


def by_likelihood(
    model: Program,
    guide: Program,
    queries: Batch,
    gallery: Batch,
    of: Sequence[str],
    given: Sequence[str],
    *,
    k: int = 1000,
    refine: Refiner | bool = False,
    defensive: float = 0.1,
    chunk: int | None = None,
    memory: int = MEMORY,
    seed: int = 0,
) -> Tensor:
    """log p(x_A^j | x_B^i) in nats, `(Q, G)`: the estimate of `cross_conditional`, which has its error too."""
    options: dict[str, Any] = {"refine": refine, "defensive": defensive, "chunk": chunk, "memory": memory, "seed": seed}
    return cross_conditional(model, guide, queries, gallery, of, given, k, **options).estimate


@dataclass(frozen=True)
class _Scorer:
    """log p(x_A^j | z_k, x_B^i, c) `(..., K, G)` of every gallery row at draws of z for one query.

    The decoders run on one row, whose distributions then score the gallery.  Where the distribution of x_A depends on
    the row itself (on another part of x_A, say), they run on the whole gallery (`whole`).
    """

    model: Program
    gallery: Batch
    of: tuple[str, ...]
    given: tuple[str, ...]
    depth: int | None
    whole: bool = False

    def __call__(self, query: Batch, values: dict[str, Tensor], k: int) -> Tensor:
        """For a query of one row and K values `(K, 1, 1, *event)` of latents; the model draws those that lack."""
        numbers = k * sum(self.gallery.x[m][0].numel() for m in self.of)
        width = max(1, ELEMENTS // numbers)
        blocks = self.gallery.blocks(width)
        if self.whole:
            scores = []
            for rows in blocks:
                spread = {n: v.expand(*v.shape[:2], len(rows), *v.shape[3:]) for n, v in values.items()}
                scores.append(self._scored(self._run(query, rows, spread, k)))
        else:
            sites = self._run(query, self.gallery[:1], values, k)
            scores = [self._scored({m: replace(sites[m], value=rows.x[m]) for m in self.of}) for rows in blocks]
        return torch.cat(scores, -1).double()

    def _run(self, query: Batch, rows: Batch, values: dict[str, Tensor], k: int) -> Sites:
        """The model's sites where every row has x_B of the query and x_A of its own."""
        x = {
            m: query.x[m].expand(len(rows), *query.x[m].shape[1:]) if m in self.given else v for m, v in rows.x.items()
        }
        batch = Batch(x).only(*self.of, *self.given)
        sites = replay(particles(self.model, k), batch, values, self.depth)
        if unknown := [m for m in self.of if m not in sites]:
            raise NoLikelihood(f"the model has no site {unknown}, so it defines no density of it; it has {list(sites)}")
        return sites

    def _scored(self, sites: Sites) -> Tensor:
        return torch.stack(torch.broadcast_tensors(*(row_wise(sites[m], self.depth) for m in self.of))).sum(0)

    def checked(self, query: Batch, values: dict[str, Tensor]) -> _Scorer:
        """With `whole` where the short way fails, or differs on one draw for some rows."""
        one = {n: v[:1] for n, v in values.items()}
        sites = self._run(query, self.gallery[:1], one, 1)
        left = {n: s for n, s in sites.items() if not s.observed and n not in one and not s.enumerated}
        if any(s.value.dim() - s.fn.event_dim > 3 for s in left.values()):
            return replace(self, whole=True)
        one |= {n: s.value for n, s in left.items()}
        some = torch.arange(len(self.gallery))[:: max(1, len(self.gallery) // COMPARED)]
        few = replace(self, gallery=self.gallery[some])
        try:
            short = few(query, one, 1)
        except (RuntimeError, ValueError, NotImplementedError):
            return replace(self, whole=True)
        exact = replace(few, whole=True)(query, one, 1)
        same = short.shape == exact.shape and torch.allclose(short, exact, rtol=1e-4, atol=1e-4)
        return self if same else replace(self, whole=True)


def _scorer(
    model: Program, block: Batch, gallery: Batch, a: tuple[str, ...], b: tuple[str, ...], draws: Draws, sites: Sites
) -> _Scorer:
    """How the gallery is scored, decided on the first draw for the first query.

    Raises:
        ValueError: x_B depends on latents that the model drew and did not show.
    """
    require_sites(model, b, draws)
    if drawn := [n for n in draws.prior_sites if is_seen(sites[n])]:
        raise ValueError(f"the guide does not draw latents {drawn}, which the queries' part of the model has")
    enumerated = any(s.enumerated and n not in draws.values for n, s in sites.items())
    scorer = _Scorer(model, gallery, a, b, depth_of(sites) if enumerated else None)
    return scorer.checked(block[:1], _known(draws, sites, 0, len(block)))


def _known(draws: Draws, sites: Sites, i: int, n: int) -> dict[str, Tensor]:
    """Values `(K, 1, 1, *event)` of the latents of query i of n; not of those that the model masks with x_B alone."""
    return {name: value.narrow(2, i, 1) for name, value in draws.values.items() if _in_row(sites[name], i, n)}


def _in_row(site: Site, i: int, n: int) -> bool:
    if not isinstance(site.mask, Tensor):
        return site.mask is not False
    return bool(site.mask.expand(*site.mask.shape[:-1], n)[..., i].all())


def completed(batch: Batch, other: Batch) -> Batch:
    """The batch with the modalities that only the other one holds, as hidden ones."""
    x, mask = dict(batch.x), dict(batch.mask)
    for m, v in other.x.items():
        if m not in x:
            x[m] = v[:1].expand(len(batch), *v.shape[1:])
            mask[m] = torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
    return Batch(x, mask)


def _require_present(batch: Batch, names: tuple[str, ...], what: str) -> None:
    for m in names:
        if m not in batch.mask or not bool(batch.mask[m].all()):
            raise ValueError(f"every {what} row needs '{m}'; retrieve leaves out the rows that lack it")
