"""Grids of cells: what a model makes of what it is given, of its own input, and of nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pyro_mm.batch import Batch
from pyro_mm.evaluation.generation import generate
from pyro_mm.evaluation.modules import modules_of
from pyro_mm.modality import Modality
from pyro_mm.plots.cells import Cells, Line
from pyro_mm.plots.contents import Content, of_data, of_distribution
from pyro_mm.plots.sets import Sets, Subset, chosen, subsets_of
from pyro_mm.plots.show import Hook
from pyro_mm.plots.style import Place
from pyro_mm.recipe import Recipe

__all__ = ["cross_generation", "prior_samples", "reconstructions"]

Axes = dict[tuple[Any, ...], Any]
MOST = 12  # rows of data in one figure


def cross_generation(
    *what: Any,
    sets: Sets | None = None,
    k: int = 1,
    means: Sequence[str] | None = None,
    show: Mapping[str, Hook] | None = None,
    seed: int = 0,
    path: Place = None,
) -> tuple[Any, Axes]:
    """What the model generates from every subset of the modalities.

    For each subset two lines: what the guide sees (given values framed in the modality's colour, hidden ones hatched),
    and the decoders' means at a draw of z ~ q(z | given), the same z for all modalities; labels as probabilities.
    One group of columns per modality, one column per row of data.

    Args:
        what: `recipe, rows` or `model, guide, modalities, rows`; rows a Batch of up to 12.
        sets: the subsets, each a name or names; default every non-empty one of up to 3 modalities, else each alone and
            all together.  For a model that is conditioned on some modalities, those that contain them.
        k: draws of z whose means and probabilities are averaged (tokens: the first draw's).
        means: latents of hidden modalities that take the mean of the model's conditional, rather than a draw of it;
            default those of the recipe (`Recipe.means`), else none.
        show: by modality, `draw(ax, value)` in place of the library's drawing; value has the event shape.
        seed: of the draws; the caller's random state is left alone.
        path: save there as well.

    Returns:
        The figure, and its axes by `(subset, "input" | "generated", modality, row)`.

    Raises:
        TypeError: `what` is neither form.
        ValueError: naming the modality, when a set or hook names an unknown one, or rows lack one; too many rows.
    """
    model, guide, modalities, rows = subject(what, "cross_generation")
    means = at_means(what, means)
    groups, own = _sets(model, guide, modalities, sets), _of_the_pair(model, guide, modalities)
    cells = Cells(modalities, len(rows), side_by_side=True, corner="given")
    for group in groups:
        made = generated(model, guide, modalities, rows.only(*group), k, means, seed)
        shown = [m for m in modalities if m in own or m.name in group]
        cells.add(_input(group, shown, rows, name=", ".join(group)))
        cells.add(Line((group, "generated"), "generated", {m: [*c] for m, c in made.items()}, gap=0.05))
    return cells.drawn(show, path)


def reconstructions(
    *what: Any,
    k: int = 1,
    means: Sequence[str] | None = None,
    show: Mapping[str, Hook] | None = None,
    seed: int = 0,
    path: Place = None,
) -> tuple[Any, Axes]:
    """Data, and below them the decoders' means given all that is present; a missing datum is hatched, and imputed.

    One block of lines per modality, one column per row of data.

    Arguments and errors as in `cross_generation`.  Axes by `("data" | "reconstruction", modality, row)`.
    """
    model, guide, modalities, rows = subject(what, "reconstructions")
    cells = Cells(modalities, len(rows), side_by_side=False)
    own = _of_the_pair(model, guide, modalities)
    seen = _input(tuple(m.name for m in own), own, rows, name="")
    cells.add(Line(("data",), "data", seen.contents, seen.marks))
    made = generated(model, guide, modalities, rows, k, at_means(what, means), seed)
    cells.add(Line(("reconstruction",), "reconstruction", {m: [*c] for m, c in made.items()}, gap=0.05))
    return cells.drawn(show, path)


def prior_samples(
    what: Any,
    modalities: Sequence[Modality] | None = None,
    n: int = 8,
    *,
    rows: Batch | None = None,
    means: Sequence[str] | None = None,
    show: Mapping[str, Hook] | None = None,
    seed: int = 0,
    path: Place = None,
) -> tuple[Any, Axes]:
    """The decoders' means at n draws of z ~ p(z): a column is one draw, the same z for all modalities.

    Args:
        what: a recipe, or a model with its `modalities`.
        n: how many, up to 12.
        rows: for a model that is conditioned on some modalities, the rows that give them, one draw for each.
        means, show, seed, path: as in `cross_generation`.

    Returns:
        The figure, and its axes by `("given" | "sample", modality, draw)`.

    Raises:
        TypeError: a model without modalities.
        ValueError: too many draws; a conditional model without rows that have all its conditions; as in
            `cross_generation`.
    """
    model, means = what, at_means((what,), means)
    if isinstance(what, Recipe):
        model, modalities = what.model, modalities or what.modalities
    if not modalities:
        raise TypeError("prior_samples takes (recipe) or (model, modalities)")
    conditions = tuple(getattr(model, "conditioned_on", ()))
    if conditions and rows is None:
        raise ValueError(f"the model is conditioned on {list(conditions)}: pass rows= that have them")
    rows = Batch.missing(modalities, n).to(_device(model)) if rows is None else rows
    _check_rows(rows, _of_the_pair(model, model, modalities))
    cells = Cells(modalities, len(rows), side_by_side=False)
    if conditions:
        given = _input(conditions, [m for m in modalities if m.name in conditions], rows, name="")
        cells.add(Line(("given",), "given", given.contents, given.marks))
    # A guide without sites: every latent is then the model's own.
    made = generated(model, lambda batch: None, modalities, rows.only(*conditions), 1, means, seed)
    cells.add(Line(("sample",), "", {m: [*c] for m, c in made.items()}, gap=0.05 if conditions else 0.0))
    return cells.drawn(show, path)


def at_means(what: Sequence[Any], means: Sequence[str] | None) -> Sequence[str]:
    """The latents to take at their means: those asked for, else the recipe's."""
    if means is not None:
        return means
    return what[0].means if what and isinstance(what[0], Recipe) else ()


def subject(
    what: Sequence[Any], function: str, most: int | None = MOST, scored: bool = False
) -> tuple[Any, Any, Sequence[Modality], Batch]:
    """Model, guide, modalities and rows (at most `most`) from the ways in which they may be given.

    A recipe's guide is the one that draws best, or with `scored` that whose density is known.

    Raises:
        TypeError, ValueError: see `cross_generation`.
    """
    *head, rows = what if what else (None,)
    if len(head) == 1 and isinstance(head[0], tuple):
        head = list(head[0])
    if len(head) == 1 and isinstance(head[0], Recipe):
        head = [head[0].model, head[0].guide if scored else head[0].drawing, head[0].modalities]
    if len(head) != 3 or not isinstance(rows, Batch) or not _all_modalities(head[2]):
        raise TypeError(f"{function} takes (recipe, rows) or (model, guide, modalities, rows), rows a Batch")
    model, guide, modalities = head
    _check_rows(rows, _of_the_pair(model, guide, modalities), most)
    return model, guide, modalities, rows


def _all_modalities(found: Any) -> bool:
    return isinstance(found, Sequence) and len(found) > 0 and all(isinstance(m, Modality) for m in found)


def _of_the_pair(model: Any, guide: Any, modalities: Sequence[Modality]) -> list[Modality]:
    """Without those that a pair, if it says what it is about, neither generates nor looks at."""
    own = [getattr(model, "names", ()), getattr(guide, "names", ()), getattr(model, "conditioned_on", ())]
    named = {name for names in own for name in names}
    return [m for m in modalities if not (own[0] and own[1]) or m.name in named]


def _check_rows(rows: Batch, modalities: Sequence[Modality], most: int | None = MOST) -> None:
    if most is not None and not 0 < len(rows) <= most:
        raise ValueError(f"a figure shows 1 to {most} rows, got {len(rows)}: pass some of them, such as batch[:4]")
    for m in modalities:
        if m.name not in rows.x:
            raise ValueError(f"the rows have no modality '{m.name}'; they have {list(rows.names)}")
        if (found := tuple(rows.x[m.name].shape[1:])) != m.shape:
            raise ValueError(f"modality '{m.name}' has event shape {found} in the rows, expected {m.shape}")
        if rows.mask[m.name].dim() != 1:
            raise ValueError(f"modality '{m.name}' has several views per row: pass the batch itself, not its subsets")


def _sets(model: Any, guide: Any, modalities: Sequence[Modality], sets: Sets | None) -> list[Subset]:
    """The subsets asked for, or the default ones of what the pair can be given."""
    names = [m.name for m in modalities]
    if sets is not None:
        return chosen(sets, names)
    conditions = set(getattr(model, "conditioned_on", ()))
    seen = {*(getattr(guide, "names", ()) or names), *conditions}
    return [s for s in subsets_of([m for m in names if m in seen]) if conditions <= set(s)]


def generated(
    model: Any,
    guide: Any,
    modalities: Sequence[Modality],
    rows: Batch,
    k: int = 1,
    means: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, list[Content]]:
    """What the pair makes of what is present in the rows, one cell for each of them, by modality."""
    made = generate(model, guide, rows, k, means=means, seed=seed)
    return {m.name: of_distribution(m, made[m.name], rows.device) for m in modalities if m.name in made}


def _device(model: Any) -> torch.device:
    """Of the model's parameters."""
    parameters = (p for module in modules_of(model) for p in module.parameters())
    return next((p.device for p in parameters), torch.device("cpu"))


def _input(group: Subset, modalities: Sequence[Modality], rows: Batch, name: str) -> Line:
    """What a guide that is given `group` sees: values, or a mark for what is hidden or missing."""
    contents: dict[str, list[Content | None]] = {}
    marks: dict[str, list[str]] = {}
    for m in modalities:
        if m.name not in group:
            contents[m.name], marks[m.name] = [None] * len(rows), ["hidden"] * len(rows)
            continue
        present = rows.mask[m.name].tolist()
        values = of_data(m, rows.x[m.name])
        contents[m.name] = [v if p else None for v, p in zip(values, present, strict=True)]
        marks[m.name] = ["given" if p else "missing" for p in present]
    return Line((group, "input"), "input", contents, marks, gap=0.22, name=name)
