"""Spoilt inputs: accuracy and likelihood by kind and level, and whether a conflict between modalities is noticed.

    python benchmarks/robustness.py RUN --modality image [--root ~/data] [--rows 500] [--k 500]

RUN is the folder of a trained run whose data have a label.  Of the modality named, pixels get Gaussian noise, salt and
pepper or an occluding block at several levels (a standard deviation is in units of the modality's range); or in a share
of the rows it is another class's.  Printed per level: the
share of rows whose label is told rightly from all other modalities (by Bayes' rule and by the guide), and log p of the
spoilt modality.  A conflict is looked for in rows of which half are swapped, by the conditional log-likelihood of the
modality given the rest and by that of the rest given the modality: area under the ROC curve.  Writes robustness.json
and robustness.png into the run's folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import panels

from pyro_mm import log_conditional, log_marginal
from pyro_mm.batch import Batch
from pyro_mm.data.corrupt import corrupted, swapped
from pyro_mm.evaluation.classify import classify, classify_plug_in
from pyro_mm.files import write_json
from pyro_mm.runs import Run, open_run
from pyro_mm.tables import aligned

LEVELS = {
    "gaussian": (0.0, 0.2, 0.4, 0.8),
    "salt_and_pepper": (0.0, 0.1, 0.2, 0.4),
    "occlusion": (0.0, 0.1, 0.25, 0.5),
    "swap": (0.0, 0.25, 0.5, 1.0),
}


def main() -> None:
    """Measure, print, write."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    p.add_argument("--modality", default="image", help="which one is spoilt")
    p.add_argument("--root", help="where the run's data are now")
    p.add_argument("--rows", type=int, default=500)
    p.add_argument("--k", type=int, default=500)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    run = open_run(a.run, a.root)
    label = run.splits.label
    if label is None or a.modality not in run.splits.names or a.modality == label:
        p.error(f"{a.run}: needs a label and a modality other than it; there are {', '.join(run.splits.names)}")
    test = run.test_rows()
    rows = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: a.rows]]
    found = []
    for kind, levels in LEVELS.items():
        for level in levels:
            clean = next((e for e in found if e["level"] == level == 0), None)  # of another kind: the same rows
            known = at_level(run, rows, a.modality, kind, level, a.k) if clean is None else clean
            found.append({**known, "kind": kind, "level": level})
    out = {"modality": a.modality, "rows": len(rows), "k": a.k, "levels": found}
    out["detection"] = detection(run, rows, a.modality, a.k)
    write_json(a.run / "robustness.json", out)
    plot(found, a.run / "robustness.png")
    print(table(found, a.modality))
    print("\n" + "\n".join(f"area under the ROC curve, {name}: {auc:.3f}" for name, auc in out["detection"].items()))


def at_level(run: Run, rows: Batch, m: str, kind: str, level: float, k: int) -> dict[str, float]:
    """Accuracies given all but the label, and log p of the spoilt modality alone."""
    label, given = str(run.splits.label), [n for n in run.splits.names if n != run.splits.label]
    pair = run.recipe.model, run.recipe.guide
    if kind == "swap":
        spoilt = swapped(rows, m, level, label=label)
    else:
        span = (rows.x[m].max() - rows.x[m].min()).item() if kind == "gaussian" else 1.0
        spoilt = corrupted(rows, m, kind, level * span)
    bayes = classify(*pair, spoilt, label, given, k, seed=0).argmax(-1) == rows.x[label]
    guide = classify_plug_in(*pair, spoilt, label, given, 50, seed=0).argmax(-1) == rows.x[label]
    ev = log_marginal(*pair, spoilt.only(m), k, refine=True, seed=0)
    return {
        "bayes": bayes.double().mean().item(),
        "guide": guide.double().mean().item(),
        "log_p": ev.mean,
        "se": ev.mean_se,
    }


def detection(run: Run, rows: Batch, m: str, k: int) -> dict[str, float]:
    """How well low conditional likelihoods tell rows in which the modality is another class's."""
    from sklearn.metrics import roc_auc_score

    rows = rows[rows.mask[m] & rows.mask[str(run.splits.label)]]
    mixed = swapped(rows, m, 0.5, label=run.splits.label)
    wrong = (mixed.x[m] != rows.x[m]).flatten(1).any(1)
    rest = [n for n in run.splits.names if n != m]
    pair, out = (run.recipe.model, run.recipe.guide), {}
    for of, given in (([m], rest), (rest, [m])):
        ev = log_conditional(*pair, mixed, of, given, k, refine=True, seed=0)
        out[f"-log p({', '.join(of)} | {', '.join(given)})"] = float(roc_auc_score(wrong.cpu(), -ev.estimate.cpu()))
    alone = log_marginal(*pair, mixed.only(m), k, refine=True, seed=0)
    out[f"-log p({m}), for comparison"] = float(roc_auc_score(wrong.cpu(), -alone.estimate.cpu()))
    return out


def table(found: list[dict[str, Any]], m: str) -> str:
    """Aligned text."""
    lines = [["spoilt", "level", "accuracy (Bayes)", "accuracy (guide)", f"log p({m})", "SE"]]
    for e in found:
        accuracies = f"{100 * e['bayes']:.1f} %", f"{100 * e['guide']:.1f} %"
        lines.append([e["kind"], f"{e['level']:g}", *accuracies, f"{e['log_p']:.1f}", f"{e['se']:.1f}"])
    return "\n".join(aligned(lines))


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and log-likelihood against the level, a curve for each kind."""
    titles = {"bayes": "accuracy of the label (Bayes)", "log_p": "log p of the spoilt modality, nats"}
    by_kind = {kind: [e for e in found if e["kind"] == kind] for kind in LEVELS}
    curves = {
        title: {kind: ([e["level"] for e in es], [e[name] for e in es]) for kind, es in by_kind.items()}
        for name, title in titles.items()
    }
    panels(curves, "level: standard deviation in units of the range, or share", path)


if __name__ == "__main__":
    main()
