"""The figures of a run, each into a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_mm.cli.common import drawn

if TYPE_CHECKING:
    from pyro_mm.batch import Batch
    from pyro_mm.data import Splits
    from pyro_mm.evaluation import Evidence
    from pyro_mm.runs import Run

__all__ = ["examples", "figures_of", "generated"]

POINTS = 1000  # of a latent map
RANKED = 100  # rows that choose the dimensions of a traversal
Figure = Callable[[Path], Any]


def figures_of(run: Run, evidence: Mapping[str, Evidence], seed: int = 0) -> dict[str, Figure]:
    """How to draw every figure of a run, by file name; a histogram of k-hat only for evidence at hand."""
    from pyro_mm import plots

    recipe, splits, test = run.recipe, run.splits, run.splits.test
    few, hooks = test[examples(splits)], hooks_of(splits)
    rows = few if getattr(recipe.model, "conditioned_on", ()) else None
    skip = run.record["epochs"] // 20  # the first epochs' fall would flatten the rest
    found: dict[str, Figure] = {
        "loss": lambda path: plots.loss_curves(run.folder / "log.csv", modalities=splits.names, skip=skip, path=path),
        "cross_generation": lambda path: plots.cross_generation(recipe, few, show=hooks, seed=seed, path=path),
        "reconstructions": lambda path: plots.reconstructions(recipe, few, show=hooks, seed=seed, path=path),
        "prior_samples": lambda path: plots.prior_samples(recipe, n=10, rows=rows, show=hooks, seed=seed, path=path),
        "latent_map": lambda path: plots.latent_map(
            recipe.guide, test[:POINTS], labels=classes_of(splits, test[:POINTS]), seed=seed, path=path
        ),
    }
    found.update(_of_coordinates(run, few, hooks, seed))
    found.update(_of_tasks(run))
    if evidence:
        found["khat"] = lambda path: plots.khat_histogram(evidence, path=path)
    return found


def _of_tasks(run: Run) -> dict[str, Figure]:
    """Of what `evaluate --tasks` left in the folder."""
    from pyro_mm import plots
    from pyro_mm.files import read_json
    from pyro_mm.runs import TASKS

    if not (run.folder / TASKS).is_file():
        return {}
    told, found = read_json(run.folder / TASKS), {}
    if accuracies := told.get("classification"):
        found["classification"] = lambda path: plots.accuracy_curves(accuracies, kind=told["kind"], path=path)
    if ranked := told.get("retrieval"):
        found["retrieval"] = lambda path: plots.retrieval_chart(ranked, path=path)
    return found


def _of_coordinates(run: Run, few: Batch, hooks: Mapping[str, Any], seed: int) -> dict[str, Figure]:
    """The sheet of cross-generation, and traversals of z and of one private latent, for a pair that has them."""
    from pyro_mm.plots.sheets import cross_generation_sheet, fits_sheet
    from pyro_mm.plots.traversals import latents_of, traversal

    recipe, test = run.recipe, run.splits.test
    latents = latents_of(recipe.model, few[0])
    found: dict[str, Figure] = {}
    if fits_sheet(recipe.model, recipe.guide, run.splits.names):
        found["cross_generation_sheet"] = lambda path: cross_generation_sheet(
            recipe, _whole(few), show=hooks, seed=seed, path=path
        )
    if "z" in latents:
        found["traversal"] = lambda path: traversal(recipe, test[:RANKED], show=hooks, seed=seed, path=path)
    private = ((f"{letter}_{m}", m) for m in run.splits.names for letter in "wz")
    if own := next(((site, m) for site, m in private if site in latents), None):
        found["private_traversal"] = lambda path: traversal(
            recipe, test[:RANKED], site=own[0], of=[own[1]], show=hooks, seed=seed, path=path
        )
    return found


def _whole(rows: Batch) -> Batch:
    """The first row in which most modalities are present."""
    counts = [sum(present) for present in zip(*(seen.tolist() for seen in rows.mask.values()), strict=True)]
    return rows[counts.index(max(counts))]


def generated(run: Run, batch: Batch, given: Sequence[str], k: int, seed: int, path: Path) -> None:
    """Draw what is generated from the given modalities, or from the prior; a figure has room for 12 rows."""
    from pyro_mm import plots

    recipe, few, show = run.recipe, batch[:12], hooks_of(run.splits)

    def draw(place: Path) -> Any:
        if given:
            return plots.cross_generation(recipe, few, sets=[tuple(given)], k=k, show=show, seed=seed, path=place)
        return plots.prior_samples(recipe, n=len(few), show=show, seed=seed, path=place)

    drawn(draw, path)


def examples(splits: Splits, most: int = 10) -> list[int]:
    """Test rows to show: the first of every class, or the first few."""
    test, label = splits.test, splits.label
    if label is None or test.x[label].dim() > 1:
        return list(range(min(8, len(test))))
    first: dict[int, int] = {}
    for row, value in enumerate(test.x[label].tolist()):
        if bool(test.mask[label][row]):
            first.setdefault(int(value), row)
    return [first[c] for c in sorted(first)][:most]


def classes_of(splits: Splits, rows: Batch) -> Any:
    """What colours a latent map: the label, or the digit that a caption names."""
    from pyro_mm.data import caption_label

    return caption_label(rows.x["caption"]) if splits.name == "digit_captions" else splits.label


def hooks_of(splits: Splits) -> dict[str, Callable[[Any, Any], object]]:
    """How modalities are drawn that are not pictures, labels or numbers."""
    from pyro_mm import plots
    from pyro_mm.data import caption_text

    if splits.name != "digit_captions":
        return {}
    return {"caption": plots.written(lambda tokens: caption_text(tokens.unsqueeze(0))[0])}
