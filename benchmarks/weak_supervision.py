"""Few labels: how well a label is told from its picture, and how likely held-out pairs are, by the number of labels.

    python benchmarks/weak_supervision.py --root ~/data --out runs/weak            # MNIST, 0.1 % to 100 % of the labels
    python benchmarks/weak_supervision.py --root ~/data --out runs/weak --table    # table and figure of what is there

Compared, all on networks of the same size: a supervised classifier on the labelled rows alone; MVAE (product of
experts, a sum of bounds over subsets); the same product trained by the plain masked bound; and M2, which sums over
missing labels exactly.  Every measurement is a file OUT/SYSTEM-LABELS-SEED.json and is not repeated, so an interrupted
benchmark goes on where it stood.  Writes OUT/table.json, OUT/table.md and OUT/weak_supervision.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import data_set, over_seeds, panels, require_same_plan

from pyro_mm import fit, log_marginal, variants
from pyro_mm.batch import Batch
from pyro_mm.cli.common import add_bf16
from pyro_mm.data import Splits
from pyro_mm.data.binarise import Binarised
from pyro_mm.data.missing import few_labels
from pyro_mm.evaluation.classify import classify, classify_plug_in
from pyro_mm.files import write_json
from pyro_mm.networks import MLP, Embedding
from pyro_mm.objectives import elbo
from pyro_mm.recipe import Recipe
from pyro_mm.tables import markdown

SYSTEMS = ("classifier", "elbo", "mvae", "m2")
NAMES = {"classifier": "supervised classifier", "elbo": "PoE, masked ELBO", "mvae": "MVAE", "m2": "M2"}
LABEL_WEIGHT = 50.0
PLAN = ("epochs", "classifier_steps", "alpha", "width", "dim", "precision", "rows", "k")


def main() -> int:
    """Train, measure, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--root", help="folder with MNIST's files")
    p.add_argument("--data", default="mnist", help="a data set of pictures `image` and classes `label`")
    p.add_argument("--out", type=Path, default=Path("runs/weak_supervision"))
    p.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    p.add_argument("--shares", type=float, nargs="+", default=[0.001, 0.003, 0.01, 0.1, 1.0], help="of rows labelled")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--classifier-steps", type=int, default=3000)
    p.add_argument(
        "--alpha", type=float, default=10.0, help="M2's classifier against all rows' bounds (its paper: 0.1)"
    )
    p.add_argument("--width", type=int, default=256, help="of both hidden layers of every network")
    p.add_argument("--dim", type=int, default=32)
    p.add_argument("--rows", type=int, default=500, help="test rows for Bayes accuracy and log-likelihood")
    p.add_argument("--k", type=int, default=500, help="draws per row")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cpu")
    add_bf16(p, "32-true")
    p.add_argument("--table", action="store_true", help="train nothing")
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        run_all(arguments)
    found = [json.loads(f.read_text()) for f in sorted(arguments.out.glob("*-*-*.json"))]
    if not found:
        print(f"nothing measured in {arguments.out}", file=sys.stderr)
        return 1
    text = table(found)
    write_json(arguments.out / "table.json", {"runs": found})
    (arguments.out / "table.md").write_text(text)
    plot(found, arguments.out / "weak_supervision.png")
    print(text)
    return 0


def run_all(arguments: argparse.Namespace) -> None:
    """What is not measured yet, the fewest labels first."""
    splits = networks(data_set(arguments.data, arguments.root), arguments.width)
    rows = len(splits.train)
    for seed in arguments.seeds:
        for share in sorted(arguments.shares):
            count = round(share * rows)
            for system in arguments.systems:
                place = arguments.out / f"{system}-{count}-{seed}.json"
                plan = {n: getattr(arguments, n) for n in ("data", *PLAN)}
                if place.is_file():
                    require_same_plan(place, plan)
                else:
                    start = time.perf_counter()
                    result = measured(system, splits, count, seed, arguments)
                    facts = {"system": system, "labels": count, "rows": rows, "seed": seed}
                    write_json(place, {**facts, **result, "plan": plan, "seconds": time.perf_counter() - start})
                    print(f"{place.name}: {result}", flush=True)


def networks(splits: Splits, width: int) -> Splits:
    """The data with two hidden layers of `width` for every encoder and decoder."""
    nets = {"image": MLP((width, width), torch.nn.SiLU), "label": Embedding(width, (width,), torch.nn.SiLU)}
    return replace(splits, modalities=tuple(replace(m, net=nets[m.name]) for m in splits.modalities))


def measured(system: str, splits: Splits, count: int, seed: int, a: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of a label from its picture on all test rows, by Bayes' rule on some; log p(image, label) of those."""
    recipe = trained(system, splits, count, seed, a)
    test, few = splits.test, splits.test[: a.rows]
    for module in recipe.modules.values():
        module.to("cpu").eval()
    right = predicted(system, recipe, test) == test.x["label"]
    out: dict[str, Any] = {"accuracy": right.double().mean().item(), "test_rows": len(test)}
    if system == "classifier":
        return out
    bayes = classify(recipe.model, recipe.guide, few, "label", "image", a.k, seed=0).argmax(-1) == few.x["label"]
    ev = log_marginal(recipe.model, recipe.guide, few, a.k, refine=True, seed=0)
    return out | {
        "bayes_accuracy": bayes.double().mean().item(),
        "log_p": ev.mean,
        "se": ev.mean_se,
        "median_ess": ev.median_ess,
        "few_rows": len(few),
    }


def trained(system: str, splits: Splits, count: int, seed: int, a: argparse.Namespace) -> Recipe:
    """The system after its training on rows of which `count` keep their label."""
    data = few_labels(splits.train, count, seed=seed)  # type: ignore[type-var]
    batch = data.batch if isinstance(data, Binarised) else data
    recipe = build(system, splits, count / len(data), seed, a)
    epochs = a.epochs
    if system == "classifier":
        rows = batch.mask["label"].nonzero().flatten()
        data = Binarised(batch[rows], data.pixels, data.levels) if isinstance(data, Binarised) else batch[rows]
        epochs = max(1, round(a.classifier_steps / -(-count // 100)))
    how: dict[str, Any] = {"accelerator": a.device, "precision": a.precision, "progress": False}
    fit(recipe.objective, data, epochs, batch_size=100, seed=seed, **how)
    return recipe


def build(system: str, splits: Splits, share: float, seed: int, a: argparse.Namespace) -> Recipe:
    """Model, guide and objective."""
    torch.manual_seed(seed)
    if system in ("m2", "classifier"):
        recipe = variants.m2(splits.modalities, a.dim, alpha=a.alpha / share, width=a.width)
        return recipe if system == "m2" else Recipe("classifier", recipe.model, recipe.guide, recipe.objective.terms[1])
    weights = {"label": LABEL_WEIGHT}
    recipe = variants.mvae(splits.modalities, a.dim, weights=weights)
    if system == "elbo":
        bound = elbo(recipe.model, recipe.guide, weights=weights, analytic_kl=True)
        return Recipe("masked ELBO", recipe.model, recipe.guide, bound)
    return recipe


def predicted(system: str, recipe: Recipe, test: Batch) -> torch.Tensor:
    """The most likely class: by q(c | image), or by the decoder at draws of q(z | image)."""
    with torch.no_grad():
        if system in ("m2", "classifier"):
            return torch.cat([recipe.guide.logits(test[i : i + 1000]) for i in range(0, len(test), 1000)]).argmax(-1)
        return classify_plug_in(recipe.model, recipe.guide, test, "label", "image", 100, seed=0).argmax(-1)


def grouped(found: list[dict[str, Any]], name: str) -> dict[str, dict[int, list[float]]]:
    """The values of a quantity by system and number of labels, one per seed."""
    out: dict[str, dict[int, list[float]]] = {}
    for system in SYSTEMS:
        for r in sorted(found, key=lambda r: (r["labels"], r["seed"])):
            if r["system"] == system and name in r:
                out.setdefault(system, {}).setdefault(r["labels"], []).append(r[name])
    return out


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: means over seeds."""
    counts, total = sorted({r["labels"] for r in found}), found[0]["rows"]
    systems = [s for s in SYSTEMS if any(r["system"] == s for r in found)]
    lines: list[str] = []
    kinds = {"accuracy": ("accuracy (%), all test rows", 100), "bayes_accuracy": ("accuracy (%), Bayes", 100)}
    for name, (title, factor) in {**kinds, "log_p": ("log p(image, label), nats", 1)}.items():
        values = grouped(found, name)
        rows = [[title, *(NAMES[s] for s in systems)]]
        for c in counts:
            cells = [over_seeds([factor * v for v in values.get(s, {}).get(c, [])]) for s in systems]
            rows.append([f"{c:,} ({100 * c / total:.1f} %)", *cells])
        lines += [*markdown(rows), ""]
    return "\n".join(lines)


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and log-likelihood against the number of labels."""
    titles = {"accuracy": "accuracy of label given image", "log_p": "log p(image, label), nats"}
    curves = {
        title: {
            NAMES[system]: (list(values), [statistics.mean(v) for v in values.values()])
            for system, values in grouped(found, name).items()
        }
        for name, title in titles.items()
    }
    panels(curves, "labelled training rows", path, log=True)


if __name__ == "__main__":
    sys.exit(main())
