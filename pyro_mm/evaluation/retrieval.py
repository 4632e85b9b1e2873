"""Does a query find what belongs to it among rows of another modality?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_mm.batch import Batch, as_names
from pyro_mm.evaluation.coherence import classes_of
from pyro_mm.evaluation.ranking import Measure, average_precision, bootstrapped, mean, median, places
from pyro_mm.evaluation.retrieval_density import completed
from pyro_mm.evaluation.retrieval_scores import Score, by_cosine
from pyro_mm.evaluation.shares import distinct
from pyro_mm.handlers import Program
from pyro_mm.tables import aligned

__all__ = ["Retrieval", "retrieve"]

Names = tuple[str, ...]


@dataclass(frozen=True, repr=False, eq=False)
class Retrieval:
    """What was found; its `repr` is a table.

    Attributes:
        of, given: the modalities that are ranked, and those that a query shows.
        score: the name of the score.
        queries, gallery: rows, Q and G.
        paired: queries whose own row is in the gallery, over which recall and ranks are.
        left_out: queries and gallery rows that lack a modality of theirs.
        level: of the bootstrap intervals.
        recall: R@k by k, the share of queries whose own row is among the first k.
        median_rank: of a query's own row, from 1; None without pairs, as is recall.
        precision: mean average precision of the queries of each class, their class's rows being relevant.
        mean_precision: over all queries that have a class of the gallery; None without a label.
        scores: `(Q, G)`, larger first.
        query_rows, gallery_rows: which rows of the two batches they are about.
    """

    of: Names
    given: Names
    score: str
    queries: int
    gallery: int
    paired: int
    left_out: tuple[int, int]
    level: float
    recall: dict[int, Measure]
    median_rank: Measure | None
    precision: dict[int, Measure]
    mean_precision: Measure | None
    scores: Tensor
    query_rows: Tensor
    gallery_rows: Tensor

    def best(self, k: int = 10) -> Tensor:
        """The gallery rows that each query ranks first, `(Q, k)`, as rows of the batch; ties in their order."""
        return self.gallery_rows[self.scores.argsort(dim=1, descending=True, stable=True)[:, :k]]

    def measures(self) -> dict[str, Measure]:
        """Every measure by its name in the table."""
        found = {f"R@{k}": m for k, m in self.recall.items()}
        if self.median_rank is not None:
            found["median rank"] = self.median_rank
        if self.mean_precision is not None:
            found["mAP"] = self.mean_precision
        return found | {f"mAP of class {c}": m for c, m in self.precision.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the scores."""
        own = ("score", "queries", "gallery", "paired", "level")
        return {
            "of": list(self.of),
            "given": list(self.given),
            **{name: getattr(self, name) for name in own},
            "left_out": dict(zip(("queries", "gallery"), self.left_out, strict=True)),
            "recall": {str(k): m.to_json() for k, m in self.recall.items()},
            "median_rank": None if self.median_rank is None else self.median_rank.to_json(),
            "mean_precision": None if self.mean_precision is None else self.mean_precision.to_json(),
            "precision": {str(c): m.to_json() for c, m in self.precision.items()},
        }

    def __repr__(self) -> str:
        head = f"{', '.join(self.of)} given {', '.join(self.given)}, {self.score}: "
        head += f"{self.queries:,} queries ({self.paired:,} with their own row) in a gallery of {self.gallery:,}"
        if any(self.left_out):
            head += "; left out for lack of a modality: {:,} queries, {:,} gallery rows".format(*self.left_out)
        rows = [["measure", "value", f"{self.level:.0%} interval", "chance"]]
        for name, m in self.measures().items():
            show = partial(_number, percent=name != "median rank")
            rows.append([name, show(m.value), f"{show(m.low)} to {show(m.high)}", show(m.chance)])
        return "\n".join([head, *aligned(rows)])


def retrieve(
    model: Program,
    guide: Program,
    queries: Batch,
    gallery: Batch,
    *,
    of: str | Sequence[str],
    given: str | Sequence[str],
    score: Score = by_cosine,
    pairs: Sequence[int] | Tensor | None = None,
    label: str | None = None,
    at: Sequence[int] = (1, 5, 10),
    level: float = 0.95,
    seed: int = 0,
) -> Retrieval:
    """Rank x_A, A = `of`, of every gallery row for every query's x_B, B = `given`; nothing else of a row is looked at.

    Recall and ranks are about the query's own row, average precision about the rows of its class.  Equal scores count
    in expectation over their orders.  Intervals are percentile bootstraps over queries (1,000 resamples), queries that
    show the same (a recording that stands in several rows) together; they hold the gallery fixed, whose size sets how
    hard the task is: `chance` stands beside every measure.

    Args:
        of, given: disjoint.  Rows that lack one of theirs are left out, and counted in `left_out`.
        score: `by_cosine`, `by_kl`, `by_sampled_kl`, `by_wasserstein`, `by_likelihood`, or any function
            `(model, guide, queries, gallery, of, given) -> (Q, G)`, larger for what fits better.
        pairs: the gallery row of each query, -1 for none.  By default the row at the same place where queries and
            gallery are equally many, else none; `()` for none.
        label: the modality with the classes of both; rows without are in no class.  It may be among `of` or `given`.
        at: the k of R@k.
        level: of the intervals.
        seed: of the bootstrap; a score has its own.

    Raises:
        ValueError: A and B overlap, or are unknown; no row is left; pairs that do not fit; neither pairs nor label;
            or scores of another shape or with NaN.
    """
    a, b = as_names(of), as_names(given)
    _require_known(a, b, queries, gallery)
    asked, sought = _rows_with(queries, b, "query"), _rows_with(gallery, a, "gallery")
    shown, hidden = completed(queries, gallery), completed(gallery, queries)
    scores = score(model, guide, shown.only(*b)[asked], hidden.only(*a)[sought], a, b).detach()
    name = _name_of(score)
    if scores.shape != (len(asked), len(sought)) or bool(scores.isnan().any()):
        raise ValueError(
            f"{name} must give numbers {(len(asked), len(sought))} for queries and gallery; it gave "
            f"{tuple(scores.shape)}, {int(scores.isnan().sum())} of them NaN"
        )
    target = _targets(pairs, len(queries), len(gallery), sought)[asked.cpu()].to(scores.device)
    options: dict[str, Any] = {"level": level, "seed": seed}
    same = distinct(queries[asked], b)
    recall, rank = _by_pair(scores, target, at, same, options)
    precision, average = (
        ({}, None) if label is None else _by_class(scores, queries, gallery, label, asked, sought, same, options)
    )
    if rank is None and average is None:
        raise ValueError("there is nothing to find: give `pairs`, as many queries as gallery rows, or a `label`")
    paired, lost = int((target >= 0).sum()), (len(queries) - len(asked), len(gallery) - len(sought))
    return Retrieval(
        a, b, name, *scores.shape, paired, lost, level, recall, rank, precision, average, scores, asked, sought
    )


def _by_pair(
    scores: Tensor, target: Tensor, at: Sequence[int], same: Tensor | None, options: dict[str, Any]
) -> tuple[dict[int, Measure], Measure | None]:
    """R@k and the median rank over the queries that have a row of their own."""
    known = target >= 0
    if not bool(known.any()):
        return {}, None
    found, g = places(_rows(scores, known), target[known]), scores.shape[1]
    options = options | {"groups": _some(same, known)}
    recall = {k: bootstrapped(found.within(k), mean, min(1.0, k / g), **options) for k in at}
    return recall, bootstrapped(found.rank, median, (g + 1) / 2, **options)


def _by_class(
    scores: Tensor,
    queries: Batch,
    gallery: Batch,
    label: str,
    asked: Tensor,
    sought: Tensor,
    same: Tensor | None,
    options: dict[str, Any],
) -> tuple[dict[int, Measure], Measure | None]:
    """Mean average precision by class and in all, over the queries whose class the gallery has."""
    for what, batch in (("queries", queries), ("gallery", gallery)):
        if label not in batch.mask:
            raise ValueError(f"the {what} have no '{label}' to take classes from; they have {list(batch.names)}")
    own, theirs = (_labels(queries, label)[asked], _labels(gallery, label)[sought])
    known = (own >= 0) & torch.isin(own, theirs)
    if not bool(known.any()):
        raise ValueError(f"no query has a '{label}' that a gallery row has too")
    own, same = own[known], _some(same, known)
    relevant = own.unsqueeze(1) == theirs
    values = average_precision(_rows(scores, known), relevant)
    # Where all rows are tied, the expectation over orders is that of a random ranking.
    classes = own.unique()
    members = classes.unsqueeze(1) == theirs
    chance = average_precision(torch.zeros_like(members, dtype=scores.dtype), members)
    found = {
        int(c): bootstrapped(values[own == c], mean, chance[i].item(), groups=_some(same, own == c), **options)
        for i, c in enumerate(classes)
    }
    overall = chance[torch.searchsorted(classes, own)].mean().item()
    return found, bootstrapped(values, mean, overall, groups=same, **options)


def _some(groups: Tensor | None, rows: Tensor) -> Tensor | None:
    """Groups of these rows, numbered anew."""
    return None if groups is None else groups[rows.cpu()].unique(return_inverse=True)[1]


def _rows(scores: Tensor, known: Tensor) -> Tensor:
    """Those of a score matrix, which may be large: no copy where it is all of them."""
    return scores if bool(known.all()) else scores[known]


def _labels(batch: Batch, label: str) -> Tensor:
    """Class numbers `(N,)`, -1 where there is none."""
    return torch.where(batch.mask[label], classes_of(batch.x[label]), -1)


def _targets(pairs: Sequence[int] | Tensor | None, q: int, g: int, sought: Tensor) -> Tensor:
    """The place among the kept gallery rows of each query's own row, -1 for none, `(Q,)`."""
    if pairs is None:
        pairs = torch.arange(q) if q == g else ()
    target = torch.as_tensor(pairs).long().cpu()
    if not len(target):
        target = torch.full((q,), -1)
    if target.shape != (q,) or bool((target < -1).any()) or bool((target >= g).any()):
        raise ValueError(f"pairs must hold a gallery row, 0 to {g - 1}, or -1, for each of {q} queries; got {pairs}")
    place = torch.full((g + 1,), -1)
    place[sought.cpu()] = torch.arange(len(sought))
    return place[target]


def _require_known(a: Names, b: Names, queries: Batch, gallery: Batch) -> None:
    if not a or not b or set(a) & set(b):
        raise ValueError(f"retrieval is of some modalities given others; got of={list(a)}, given={list(b)}")
    for names, batch, what in ((b, queries, "queries"), (a, gallery, "gallery")):
        if unknown := [m for m in names if m not in batch.mask]:
            raise ValueError(f"the {what} have no {unknown}; they have {list(batch.names)}")


def _rows_with(batch: Batch, names: Names, what: str) -> Tensor:
    """Indices of the rows in which all are present."""
    rows = torch.stack([batch.mask[m] for m in names]).all(0)
    if rows.dim() != 1:
        raise ValueError(f"the {what} batch holds several views of its rows (`subsets`); retrieval is of one")
    if not bool(rows.any()):
        raise ValueError(f"no {what} row has all of {list(names)}")
    return rows.nonzero().flatten()


def _name_of(score: Any) -> str:
    """Of a function, a `partial` of one, or an object's class."""
    inner = getattr(score, "func", score)
    return str(getattr(inner, "__name__", type(inner).__name__))


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.1f}"
