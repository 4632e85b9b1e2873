"""Which modality pulls how hard: gradients of the ELBO's terms at the shared latents, and experts' shares in a product.

The gradient of a term f is taken with respect to a shift of all draws of a row,

    g(x) = d/ds E_{q(z|x)} f(z + s) at s = 0  =  E_q grad_z f(z),    f = log p(x_m | z)  or  KL: f = -log p(z)

(moving q changes no entropy).  At an optimum over q's location, sum_m g_m = g_KL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture
from pyro_mm.evaluation.chunks import Plan
from pyro_mm.evaluation.collapse import by_row, finite, seen_rows
from pyro_mm.evaluation.modules import modules_of
from pyro_mm.guides.experts import opinions
from pyro_mm.handlers import Given, Program, particles
from pyro_mm.weights import Site, Sites, per_datum, replay, run

__all__ = ["ExpertShares", "Gradients", "expert_shares", "gradients"]


@dataclass(frozen=True)
class Gradients:
    """Root mean squares over rows, and cosines, of the terms' gradients; free of the noise of finitely many draws.

    Attributes:
        norm: of every modality's expected log-likelihood, over the rows that have it, nats per unit of z.
        kl: of the KL, over all rows that have anything.
        cosine: of two modalities, sum g_a . g_b / sqrt(sum |g_a|^2 sum |g_b|^2) over the rows that have both: below 0
            they are in conflict.
        over: the latents that were moved: those that more than one modality reads, or all when none is.
    """

    norm: dict[str, float]
    kl: float
    cosine: dict[tuple[str, str], float]
    over: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Numbers for JSON; NaN is None."""
        return {
            "over": list(self.over),
            "norm": {m: finite(v) for m, v in self.norm.items()},
            "kl": finite(self.kl),
            "cosine": {f"{a}, {b}": finite(v) for (a, b), v in self.cosine.items()},
        }


class _Gram:
    """Products <g_i, g_j> of the terms' mean gradients in every row, `(T, T, N)`.

    Means over all pairs of *different* draws, so that they are unbiased: sum_{k != l} <g_ik, g_jl> / K(K-1).
    """

    def __init__(self) -> None:
        self.k = 0
        self.total: Any = 0.0
        self.own: Any = 0.0

    def add(self, g: Tensor) -> None:
        """Take in gradients `(T, K, N, D)`."""
        g = g.double()
        self.k, self.total = self.k + g.shape[1], self.total + g.sum(1)
        self.own = self.own + torch.einsum("iknd,jknd->ijn", g, g)

    @property
    def value(self) -> Tensor:
        product = torch.einsum("ind,jnd->ijn", self.total, self.total)
        return (product - self.own) / (self.k * (self.k - 1))


def gradients(model: Program, guide: Program, batch: Batch, k: int, chunk: int | None = None) -> Gradients | None:
    """None where no latent has a gradient (discrete latents, or a model that reads none)."""
    plan, parts, seen = Plan.for_batch(batch, k, chunk), [], []
    names: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    for rows in plan.blocks(batch):
        gram = _Gram()
        for which in plan.slices(torch.arange(k)):
            drawn = run(particles(guide, len(which)), rows)
            values = {n: s.value.detach().requires_grad_(_moves(s)) for n, s in drawn.items()}
            with torch.enable_grad():
                sites = replay(particles(model, len(which)), rows, values)
                terms = _terms(sites, drawn)
            found = _differentiated(terms, {n: v for n, v in values.items() if v.requires_grad})
            names, over = tuple(terms), over or _shared(found)
            if not over:
                return None
            gram.add(torch.stack([_flat(found[t], drawn, over) for t in terms]))
        parts.append(gram.value)
        masks = [seen_rows(sites[m], len(rows)) for m in names[:-1]]
        seen.append(torch.stack([*masks, torch.ones_like(rows.present())]))
    return _summed(torch.cat(parts, -1), torch.cat(seen, -1), names, over)


def _moves(site: Site) -> bool:
    """Can its draws be shifted?"""
    discrete = getattr(getattr(site.fn, "support", None), "is_discrete", False)
    return site.value.is_floating_point() and not discrete


def _terms(sites: Sites, drawn: Sites) -> dict[str, Tensor]:
    """Every observation's log-density, and last, as "", minus that of the latents."""
    terms = {n: per_datum(s).sum() for n, s in sites.items() if s.observed}
    prior: Any = 0.0
    for n in drawn:
        prior = prior - per_datum(sites[n]).sum()
    return {**terms, "": prior}


def _differentiated(terms: dict[str, Tensor], values: dict[str, Tensor]) -> dict[str, dict[str, Tensor | None]]:
    """term -> latent -> gradient, None where the term does not read the latent."""
    found: dict[str, dict[str, Tensor | None]] = {}
    for name, term in terms.items():
        found[name] = dict.fromkeys(values)
        if values and term.requires_grad:
            g = torch.autograd.grad(term, list(values.values()), retain_graph=True, allow_unused=True)
            found[name] = dict(zip(values, g, strict=True))
    return found


def _shared(found: dict[str, dict[str, Tensor | None]]) -> tuple[str, ...]:
    """The latents that more than one modality reads, or any."""
    readers = {z: sum(g[z] is not None for m, g in found.items() if m) for z in found[""]}
    return tuple(z for z, c in readers.items() if c > 1) or tuple(z for z, c in readers.items() if c)


def _flat(found: dict[str, Tensor | None], drawn: Sites, over: Sequence[str]) -> Tensor:
    """`(K, N, D)`."""
    parts = []
    for z in over:
        site, g = drawn[z], found[z]
        parts.append(by_row(torch.zeros_like(site.value) if g is None else g, site.fn.event_dim))
    return torch.cat(parts, -1)


def _summed(gram: Tensor, seen: Tensor, names: Sequence[str], over: tuple[str, ...]) -> Gradients:
    """`gram` is `(T, T, N)`, `seen` says which rows have a term, `(T, N)`; the last term is the KL."""
    norms, cosine = [], {}
    for i in range(len(names)):
        rows = seen[i]
        norms.append(gram[i, i][rows].mean().clamp(min=0.0).sqrt().item() if bool(rows.any()) else float("nan"))
    for i in range(len(names) - 1):
        for j in range(i + 1, len(names) - 1):
            both = gram[:, :, seen[i] & seen[j]].sum(-1)
            size = both[i, i].clamp(min=0.0).sqrt() * both[j, j].clamp(min=0.0).sqrt()
            cosine[names[i], names[j]] = (both[i, j] / size).clamp(-1, 1).item() if size > 0 else float("nan")
    return Gradients(dict(zip(names[:-1], norms, strict=False)), norms[-1], cosine, over)


@dataclass(frozen=True)
class ExpertShares:
    """Parts of a product's precision: of expert m, 1/s_m^2 / (1/s_0^2 + sum_S 1/s^2), and of the prior.

    (For `product_of_posteriors`, what each adds to the prior's precision.)  Tensors are `(M + 1, D)`, the prior last.

    Attributes:
        names: the experts, then "prior".
        share: mean over the rows in which the expert's modality is present.
        stacked: mean over the rows in which anything is, an absent expert counting 0: these add up to 1.
    """

    names: tuple[str, ...]
    share: Tensor
    stacked: Tensor

    def mean(self) -> dict[str, float]:
        """`share` averaged over the dimensions."""
        return dict(zip(self.names, self.share.mean(-1).tolist(), strict=True))

    def summary(self) -> dict[str, Any]:
        """Numbers for JSON; NaN is None."""
        rows = zip(self.names, self.share.tolist(), strict=True)
        return {
            "mean": {m: finite(v) for m, v in self.mean().items()},
            "per_dim": {m: [finite(v) for v in row] for m, row in rows},
        }


def expert_shares(guide: Program, batch: Batch, chunk: int | None = None) -> dict[str, ExpertShares] | str:
    """By site, the shares of every expert in it; or why there are none.

    A module with `encoders` counts as a product where the precision that the guide draws with is the sum of its
    experts' and of its prior's, whatever its fusion rule is called.
    """
    while isinstance(guide, Given):
        batch, guide = batch.only(*guide.shown), guide.program
    modules = [m for outer in modules_of(guide) for m in outer.modules()]
    groups = [m for m in modules if isinstance(getattr(m, "encoders", None), nn.ModuleDict)]
    if not groups:
        return "not a product of experts: the guide has no encoders"
    plan = Plan.for_batch(batch, 1, chunk)
    sums: dict[str, list[Tensor]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for rows in plan.blocks(batch):
        sites = run(guide, rows)
        for name, site in sites.items():
            found = next((f for m in groups if (f := _shares(m, site, rows)) is not None), None)
            if found is None:
                names[name] = ()
            elif names.setdefault(name, found[0]):
                shares, seen = found[1:]
                new = [torch.where(seen.unsqueeze(-1), shares, 0.0).sum(0).double(), seen.sum(0)]
                sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new
    products = {n: _result(names[n], *sums[n]) for n in sums if names[n]}
    kinds = ", ".join(f"'{n}' ({type(getattr(s.fn, 'base_dist', s.fn)).__name__})" for n, s in sites.items())
    return products or f"not a product of experts: no experts' precisions add up to that of {kinds}"


def _result(names: tuple[str, ...], total: Tensor, count: Tensor) -> ExpertShares:
    return ExpertShares(names, total / count.unsqueeze(-1), total / count[-1])


def _shares(experts: Any, site: Site, batch: Batch) -> tuple[tuple[str, ...], Tensor, Tensor] | None:
    """Names, shares `(N, M + 1, D)` and presence `(N, M + 1)`; None where the site is no product of these experts."""
    scale = getattr(getattr(site.fn, "base_dist", None), "scale", None)
    if scale is None or isinstance(site.fn, Mixture):
        return None
    try:
        _, own, seen = opinions(experts.encoders, batch)
        prior = getattr(experts, "prior", None)
        base = 1.0 if prior is None else prior().base_dist.scale ** -2
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # whatever these encoders give, it is no location and scale
    if own[:, 0].shape != scale.shape:
        return None
    mask, whole = seen.unsqueeze(-1), scale**-2
    base = torch.as_tensor(base).to(whole).expand(whole.shape)
    for gain in _gains(own, base, mask):
        if torch.allclose(base + gain.sum(-2), whole, rtol=1e-3):
            gain = gain.clamp(min=0.0)
            parts = torch.cat([gain, base.unsqueeze(-2)], -2)
            some = seen.any(-1, keepdim=True)
            shares = parts / parts.sum(-2, keepdim=True)
            return (*experts.encoders, "prior"), shares, torch.cat([seen, some], -1)
    return None


def _gains(scale: Tensor, base: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """What every expert adds to the precision `(N, M, D)`, as an expert and as a posterior that holds the prior."""
    own = torch.where(mask, scale**-2, 0.0)
    yield own
    gain = torch.where(mask, own - base.unsqueeze(-2), 0.0)
    yield torch.where(mask.sum(-2, keepdim=True) == 1, gain, gain.clamp(min=0.0))
