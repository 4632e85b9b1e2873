"""One page on a model/guide pair: does it use its latents, and do its modalities share the work?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_mm.batch import Batch, as_names
from pyro_mm.distributions import independent_components
from pyro_mm.evaluation.balance import ExpertShares, Gradients, expert_shares, gradients
from pyro_mm.evaluation.collapse import Latent
from pyro_mm.evaluation.marginal import require_likelihood
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.evaluation.terms import View, view
from pyro_mm.handlers import Program

__all__ = ["Report", "report"]

Group = tuple[str, ...]
Groups = Sequence[str | Sequence[str]]
LARGEST = 6  # dimensions whose KL a line of the table shows


@dataclass(frozen=True)
class Report:
    """See `report`; prints as a table.

    Attributes:
        n, k: rows of the batch, and draws per row.
        threshold: of the variance of posterior means, above which a unit is active.
        views: by the modalities that the guide was given, all together first.
        gradients: of the terms given all together; None where no latent has any.
        experts: shares in products by site, or why there are none.
    """

    n: int
    k: int
    threshold: float
    views: dict[Group, View]
    gradients: Gradients | None
    experts: dict[str, ExpertShares] | str

    @property
    def everything(self) -> View:
        """Given all that a row has."""
        return next(iter(self.views.values()))

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Latents whose posterior given everything is the prior in every dimension: posterior collapse."""
        return tuple(n for n, s in self.everything.latents.items() if bool(s.collapsed.all()))

    def summary(self) -> dict[str, Any]:
        """Everything as numbers, strings and lists, for JSON; NaN is None."""
        g = self.gradients
        return {
            "n": self.n,
            "k": self.k,
            "threshold": self.threshold,
            "collapsed": list(self.collapsed),
            "given": {", ".join(group): v.summary() for group, v in self.views.items()},
            "gradients": None if g is None else g.summary(),
            "experts": self.experts
            if isinstance(self.experts, str)
            else {site: e.summary() for site, e in self.experts.items()},
        }

    def __repr__(self) -> str:
        lines = [*_headline(self), "", *_latents(self), "", *_modalities(self), *_conflicts(self), "", *_experts(self)]
        return "\n".join(line.rstrip() for line in lines)


def report(
    model: Program,
    guide: Program,
    batch: Batch,
    k: int = 100,
    *,
    subsets: Groups | None = None,
    threshold: float = 0.01,
    levels: Mapping[str, int] | None = None,
    chunk: int | None = None,
    seed: int | None = None,
) -> Report:
    """Active units, KL per dimension, terms of the ELBO and their gradients, and experts' shares, for any pair.

    A row counts in what it has: a modality's numbers are means over the rows that have it, those given some modalities
    over the rows that have any of them.  Training weights never enter.

    Args:
        k: draws per datum, at least 2; components of mixtures are drawn independently.
        subsets: groups of modalities to give to the guide, beside all together; by default each alone.
        threshold: of the variance of posterior means, above which a unit is active.
        levels: grey levels of modalities that are `dequantised`, for bits per element.
        chunk: rows x particles per pass.
        seed: draw with this seed and leave the caller's random state alone.

    Raises:
        NoLikelihood: the model defines no density.
        ValueError: unknown modalities, groups that no row has, k < 2, or a pair that breaks a convention.
    """
    require_likelihood(model, given=tuple(getattr(model, "conditioned_on", ())))
    if k < 2:
        raise ValueError(f"a report needs at least 2 draws per datum, got k={k}")
    if any(mask.dim() > 1 for mask in batch.mask.values()):
        raise ValueError("a report is of one view of the data: pass the batch itself, not batch.subsets(...)")
    if unknown := set(levels or ()) - set(batch.names):
        raise ValueError(f"levels= names {sorted(unknown)}, but the modalities are {list(batch.names)}")
    some = batch[batch.present()]
    views = {}
    with evaluating(model, guide, seed=seed), independent_components():
        for group in _groups(guide, batch, subsets):
            views[group] = view(model, guide, some, group, k, threshold=threshold, levels=levels or {}, chunk=chunk)
        pull = gradients(model, guide, some, k, chunk)
        experts = expert_shares(guide, some, chunk)
    return Report(len(batch), k, threshold, views, pull, experts)


def _groups(guide: Program, batch: Batch, subsets: Groups | None) -> list[Group]:
    """All modalities that some row has, then the groups asked for."""
    here = [m for m, seen in batch.mask.items() if bool(seen.any())]
    if not here:
        raise ValueError("no row of the batch has any modality")
    read = getattr(guide, "names", None) or here
    chosen: Groups = [m for m in here if m in read] if subsets is None else subsets
    groups = [as_names(m) for m in chosen]
    for group in groups:
        if unknown := [m for m in group if m not in batch.mask]:
            raise ValueError(f"subsets= names {unknown}, but the modalities are {list(batch.names)}")
        if not any(m in here for m in group):
            raise ValueError(f"no row has any of {list(group)}")
    return list(dict.fromkeys([tuple(here), *groups]))


def _headline(r: Report) -> list[str]:
    v = r.everything
    lines = [
        f"ELBO {v.elbo:.3f} +- {v.elbo_se:.3f} nats, {v.bits:.4f} bits per element, KL {v.kl:.3f} "
        f"(N={v.rows}{f' of {r.n}' if v.rows < r.n else ''}, K={r.k})"
    ]
    if r.collapsed:
        lines.append(f"POSTERIOR COLLAPSE: given everything, the prior in every dimension of {', '.join(r.collapsed)}")
    return lines


def _latents(r: Report) -> list[str]:
    rows = []
    for group, v in r.views.items():
        for site, s in v.latents.items():
            known = bool(s.activity.isfinite().any())  # the mean of a label is no number
            units = f"{int(s.active.sum()) if known else '-'}/{len(s.active)}", f"{int(s.collapsed.sum())}"
            rows.append((site, ", ".join(group), f"{s.rows}", *units, f"{s.total:.3f}", _largest(s), s.method))
    return _table(("latent", "given", "rows", "active", "collapsed", "KL", "largest", "method"), rows, "ll")


def _largest(s: Latent) -> str:
    """KL of the dimensions that cost most, in order."""
    if s.kl is None:
        return "-"
    some = s.kl.sort(descending=True).values[:LARGEST].tolist()
    return " ".join(f"{v:.2f}" for v in some) + (" ..." if len(s.kl) > LARGEST else "")


def _modalities(r: Report) -> list[str]:
    g = r.gradients
    norm = {} if g is None else g.norm
    rows = []
    for m, t in r.everything.terms.items():
        pull = f"{norm[m]:.3f}" if m in norm else "-"
        rows.append((m, f"{t.rows}", f"{t.nats:.3f}", f"{t.se:.3f}", f"{t.share:.1%}", f"{t.per_element:.4f}", pull))
    rows.append(
        ("KL", f"{r.everything.rows}", f"{r.everything.kl:.3f}", "", "", "", "-" if g is None else f"{g.kl:.3f}")
    )
    return _table(("E_q log p(x|z)", "rows", "nats", "+-", "share", "per element", "|gradient|"), rows)


def _conflicts(r: Report) -> list[str]:
    if r.gradients is None:
        return ["no latent has a gradient"]
    over = ", ".join(r.gradients.over)
    cosines = [f"{a}, {b}: {c:+.2f}" for (a, b), c in r.gradients.cosine.items()]
    return [f"gradients at {over}" + (f"; cosines  {'   '.join(cosines)}" if cosines else "")]


def _experts(r: Report) -> list[str]:
    if isinstance(r.experts, str):
        return [f"experts: {r.experts}"]
    return [
        f"share of the precision of {site}, in rows that have it:  "
        + "   ".join(f"{m} {v:.1%}" for m, v in e.mean().items())
        for site, e in r.experts.items()
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: str = "l") -> list[str]:
    """Columns set right, the first ones, and the last where it is prose, left."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
    out = []
    for line in lines:
        cells = [
            c.ljust(w) if i < len(left) or head[i] in ("largest", "method") else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, wide, strict=True))
        ]
        out.append("  ".join(cells))
    return out
