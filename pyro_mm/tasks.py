"""What `evaluate --tasks` measures: classification, generation and retrieval, with noisy or missing modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import permutations
from typing import Any

import torch

from pyro_mm.batch import Batch
from pyro_mm.data.corrupt import KINDS, corrupted, swapped
from pyro_mm.evaluation.coherence import CHUNK, classes_of, conditions, decoded, generated
from pyro_mm.evaluation.frechet import frechet, split_half
from pyro_mm.evaluation.retrieval import retrieve
from pyro_mm.evaluation.retrieval_density import by_likelihood
from pyro_mm.evaluation.retrieval_scores import Score, by_cosine, by_kl, by_sampled_kl, by_wasserstein
from pyro_mm.evaluation.sample_quality import jackknife, kernel_distance, precision_recall
from pyro_mm.evaluation.shares import distinct, share_of
from pyro_mm.files import write_json
from pyro_mm.handlers import Program
from pyro_mm.judges import Judges, train_judges
from pyro_mm.metrics import accuracies, earlier, heading
from pyro_mm.recipe import Recipe
from pyro_mm.runs import TASKS, Run

__all__ = [
    "CORRUPTIONS",
    "KNOWN",
    "LEVELS",
    "SCORES",
    "classification",
    "evaluate_tasks",
    "retrieval",
    "samples",
]

KNOWN = ("classification", "generation", "retrieval")
LEVELS = (0.0, 0.25, 0.5, 1.0)
"""Of noise: its root mean square in standard deviations of each modality."""
NOISE = "noise"
CORRUPTIONS = (NOISE, *(k for k in KINDS if k != "gaussian"))
DRAWS, TRIES = 10, 25
DISTANCES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], float]] = {
    "frechet": frechet,
    "kernel": lambda real, made: kernel_distance(real, made)[0],
    "precision": lambda real, made: precision_recall(real, made).precision,
    "recall": lambda real, made: precision_recall(real, made).recall,
}
SCORES: Mapping[str, Score] = {
    "cosine": by_cosine,
    "kl": by_kl,
    "sampled-kl": by_sampled_kl,
    "wasserstein": by_wasserstein,
    "likelihood": by_likelihood,
}
"""How a row of one modality is compared with one of another, by the names of the command line."""


def classification(
    model: Program,
    guide: Program,
    batch: Batch,
    label: str,
    levels: Sequence[float] = LEVELS,
    k: int = DRAWS,
    seed: int = 0,
    kind: str = NOISE,
) -> list[dict[str, Any]]:
    """How many rows are named rightly from every set of the other modalities, all of these under noise.

    The class with the largest mean of p(label | z_k) over z_k ~ q(z | what is given): guide and decoder as a
    classifier, which every system has, with a likelihood or without (`classify` is Bayes' rule for those that have).
    Rows that lack the label, or something of a set, do not count.

    Standard errors and 95 % intervals are `share_of`'s: rows that show the same recording count as one.

    Args:
        levels, kind: what is done to every modality that is given, and how much of it (`spoilt`).
        k: draws for every row.
    """
    found = []
    for level in levels:
        noisy = spoilt(batch, label, level, seed, kind)
        for given in conditions(batch.names, label):
            rows = torch.stack([noisy.mask[m] for m in (*given, label)]).all(0).nonzero().flatten()
            if len(rows):
                right = named(model, guide, noisy[rows].only(*given), label, k, seed) == classes_of(
                    noisy.x[label][rows]
                )
                share = share_of(right, distinct(batch[rows], given)).to_json()
                found.append({"given": list(given), "noise": level, "accuracy": share.pop("value"), **share})
    return found


def spoilt(batch: Batch, label: str, level: float, seed: int = 0, kind: str = NOISE) -> Batch:
    """Every modality of numbers but the label, spoilt.  Labels and tokens are left as they are.

    `noise` changes a modality by so many of its standard deviations, in root mean square and after what keeps values
    in their range: Gaussian, or of zeros and ones flips of a share (level sd)^2, at most a half.  `salt_and_pepper`,
    `occlusion` and `swap` are those of `pyro_mm.data.corrupt`, where the level is a share.
    """
    for m in batch.names if level else ():
        x = batch.x[m]
        if m == label or not x.is_floating_point() or not bool(batch.mask[m].any()):
            continue
        if kind == "swap":
            batch = swapped(batch, m, level, seed, label)
        elif kind != NOISE:
            batch = corrupted(batch, m, kind, level, seed)
        elif bool(((x == 0) | (x == 1)).all()):
            share = 2 * (level * x[batch.mask[m]].std().item()) ** 2  # half of the hits change nothing
            batch = corrupted(batch, m, "salt_and_pepper", min(1.0, share), seed)
        else:
            batch = _noisy(batch, m, level * x[batch.mask[m]].std().item(), seed)
    return batch


def _noisy(batch: Batch, name: str, rms: float, seed: int) -> Batch:
    """Gaussian noise that changes values by `rms` after rounding and clamping, to a hundredth or as near as it can.

    What is left of the noise grows with it, ever more slowly, so that scaling by what is lacking closes in on it.
    """
    sd, seen, found = rms, batch.mask[name], batch
    for _ in range(TRIES):
        found = corrupted(batch, name, "gaussian", sd, seed)
        reached = (found.x[name] - batch.x[name])[seen].double().square().mean().sqrt().item()
        if abs(reached / rms - 1) < 0.01:
            break
        sd *= min(rms / reached, 2.0) if reached else 2.0
    return found


def named(model: Program, guide: Program, batch: Batch, label: str, k: int, seed: int) -> torch.Tensor:
    """The most probable class of every row `(N,)`, from k draws.

    What `classify_plug_in` says, without scoring the draws: a diffusion's density costs far more than they do.
    """
    blocks = decoded(model, guide, batch, [label], k, seed=seed, chunk=8 * CHUNK)
    return torch.cat([made[label].probs.mean(0).argmax(-1) for _, made, _ in blocks])  # type: ignore[attr-defined]


def samples(recipe: Recipe, judges: Judges, test: Batch, seed: int = 0) -> dict[str, Any]:
    """Decoders' means of every modality but the label at draws of the prior, as many as test rows, beside these.

    In the judges' features: Frechet distance (and what two halves of the data have), kernel distance, precision and
    recall, each with a standard error by `jackknife`.  A decoder that knows no mean (`DiffusionDecoder`) gives draws.
    """
    nothing = Batch.missing(recipe.modalities, len(test)).to(test.device)
    made: dict[str, list[torch.Tensor]] = {m: [] for m in judges.names}
    drawn = generated(recipe.model, recipe.guide, nothing, judges.names, means=recipe.means, seed=seed)
    for _, values in drawn:
        for m in judges.names:
            made[m].append(judges.features(m, values[m][0]))
    found = {}
    for m, parts in made.items():
        real = judges.features(m, test.x[m][test.mask[m]])
        fake = torch.cat(parts)[: len(real)]  # of equal size: the smaller of two samples is farther from anything
        measures = {name: measure(real, fake) for name, measure in DISTANCES.items()}
        errors = {f"{name}_se": jackknife(measure, real, fake) for name, measure in DISTANCES.items()}
        found[m] = {**measures, **errors, "frechet_halves": split_half(real), "n": len(fake)}
    return found


def retrieval(
    model: Program,
    guide: Program,
    batch: Batch,
    label: str | None,
    scores: Sequence[str] = ("cosine",),
    k: int = DRAWS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """`retrieve` of every modality among the rows of every other, by every one of `SCORES` that is named.

    To and from the label no row is a query's own, since labels tell classes and not rows: average precision only.

    Args:
        k: draws for posterior means that are not known.
    """
    drawn: dict[str, Score] = {
        "cosine": partial(by_cosine, k=k, seed=seed, kept={}),  # one pass over every modality
        "sampled-kl": partial(by_sampled_kl, seed=seed),
        "likelihood": partial(by_likelihood, seed=seed),
    }
    known: dict[str, Score] = {**SCORES, **drawn}
    return [
        retrieve(
            model,
            guide,
            batch,
            batch,
            of=of,
            given=given,
            score=known[score],
            pairs=() if label in (of, given) else None,
            label=label,
            seed=seed,
        ).to_json()
        for score in scores
        for given, of in permutations(batch.names, 2)
    ]


def evaluate_tasks(
    run: Run,
    which: Sequence[str] = KNOWN,
    rows: int | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    kind: str = NOISE,
    draws: int = DRAWS,
    scores: Sequence[str] = ("cosine",),
    judges: Judges | None = None,
    folder: Any = None,
    seed: int = 0,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Measure a run on its test rows (the first `rows` of them) and write `tasks.json`, after each task.

    What the file has of other tasks, measured in the same way, stays in it.

    Args:
        levels, kind: of classification under `spoilt` inputs; the kind is one of `CORRUPTIONS`.
        draws: for every row, of classification, and of posterior means that are not known.
        scores: of retrieval, some of `SCORES`.

    Raises:
        ValueError: an unknown task, score or kind, or none of what it needs: a label, or a second modality.
    """
    if not which or set(which) - set(KNOWN):
        raise ValueError(f"tasks are {', '.join(KNOWN)}; got {list(which)}")
    if kind not in CORRUPTIONS:
        raise ValueError(f"inputs are spoilt by {', '.join(CORRUPTIONS)}; got '{kind}'")
    if not scores or set(scores) - set(SCORES):
        raise ValueError(f"scores of retrieval are {', '.join(SCORES)}; got {list(scores)}")
    test, label = run.test_rows(rows), run.splits.label
    pair = run.recipe.model, run.recipe.guide
    if label is None and set(which) - {"retrieval"}:
        raise ValueError(f"data set '{run.settings.data}' has no label, which classification and generation need")
    if len(test.names) < 2 and "retrieval" in which:
        raise ValueError(f"retrieval needs two modalities; there is {list(test.names)}")
    head = heading(run, len(test), seed) | {"levels": list(levels), "kind": kind, "draws": draws}
    found: dict[str, Any] = dict(head)
    for task in (t for t in KNOWN if t in which):
        tell(task)
        if task == "classification":
            found[task] = classification(*pair, test, str(label), levels, draws, seed, kind)
        elif task == "generation":
            judges = judges or train_judges(run.splits, folder=folder, device=test.device, tell=tell)
            found["judges"] = accuracies(judges)
            found[task] = samples(run.recipe, judges.to(test.device), test, seed)
        else:
            found[task] = retrieval(*pair, test, label, scores, draws, seed)
        write_json(run.folder / TASKS, {**earlier(run.folder / TASKS, head), **found})
    return found
