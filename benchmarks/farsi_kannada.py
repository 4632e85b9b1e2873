"""Farsi, Kannada and spoken digits with their label: what every subset of the three tells about the rest.

    python benchmarks/farsi_kannada.py --root ~/data --out runs/farsi_kannada             # train both systems, measure
    python benchmarks/farsi_kannada.py --root ~/data --out runs/farsi_kannada --table     # the tables of what is there

`published` is the system of the source paper: MFCC centroids, its networks, 512 latents, a label that is decoded
only, cross-reconstruction from all 7 subsets. `ours` hears log-mel spectrograms, the label is a modality like the
others, and a row is reconstructed from one of the 15 subsets, drawn anew at every step: MoPoE's bound, which is the
mean of the 15 that cross-reconstruction adds up. Both are measured by products of experts. Each is a run as `pyro-mm
train` makes it; an interrupted one goes on where it stood. Writes figures and measured.json into the runs' folders,
and OUT/table.json and OUT/table.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from common import require_same_plan, trained_run

from pyro_mm import log_marginal, plots
from pyro_mm.batch import Batch
from pyro_mm.cli.common import add_bf16
from pyro_mm.evaluation import encode, generate
from pyro_mm.evaluation.classify import classify
from pyro_mm.evaluation.disentanglement import disentanglement
from pyro_mm.files import write_json
from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.handlers import in_subsets
from pyro_mm.objectives import elbo
from pyro_mm.runs import Run, Settings
from pyro_mm.tables import markdown

SEEN = ("farsi", "kannada", "sound")
SUBSETS = [s for r in (3, 2, 1) for s in combinations(SEEN, r)]
SYSTEMS: dict[str, dict[str, Any]] = {
    "published": {
        "variant": "mvae_cross",
        "data": "farsi_kannada_mfcc",
        "dim": 512,
        "beta_warmup": 200.0,
        "batch_size": 128,
    },
    "ours": {
        "variant": "mopoe",
        "data": "farsi_kannada_speech",
        "dim": 64,
        "batch_size": 128,
        "weights": {"label": 50.0},
    },
}
MEASURED, PARTIAL = "measured.json", "measured.partial.json"
BLOCK = 500  # rows at once
PLUGGED_IN = 20  # draws of z; `classify_plug_in`, which would decode the images too


def main() -> int:
    """Train, measure, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--root", help="folder with hoda, kannada_mnist and fsdd")
    p.add_argument("--out", type=Path, default=Path("runs/farsi_kannada"))
    p.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--warmup", type=float, help="epochs of the KL's weight from 0 to 1 (published: 200)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--test-rows", type=int, help="rows for bounds, reconstruction and accuracy (all 20,000)")
    p.add_argument("--rows", type=int, default=200, help="rows for log-likelihoods and Bayes accuracy")
    p.add_argument("--k", type=int, default=1000, help="draws per row")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cpu")
    add_bf16(p, "32-true")
    p.add_argument("--table", action="store_true", help="train and measure nothing")
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    for system in [] if arguments.table else arguments.systems:
        one(system, arguments)
    found = {}
    for system in SYSTEMS:
        for place in sorted(arguments.out.glob(f"{system}-*/{MEASURED}")):
            found[place.parent.name] = json.loads(place.read_text())
    if not found:
        print(f"nothing measured in {arguments.out}", file=sys.stderr)
        return 1
    text = table(found)
    write_json(arguments.out / "table.json", found)
    (arguments.out / "table.md").write_text(text)
    print(text)
    return 0


def one(system: str, a: argparse.Namespace) -> None:
    """Train and measure one system, as far as that is not done."""
    folder = a.out / f"{system}-{a.seed}"
    plan = {n: getattr(a, n) for n in ("epochs", "warmup", "precision", "seed", "test_rows", "rows", "k")}
    if (folder / MEASURED).is_file():
        require_same_plan(folder / MEASURED, plan)
        return
    asked = {**SYSTEMS[system], "root": a.root, "epochs": a.epochs, "seed": a.seed, "precision": a.precision}
    if a.warmup is not None and "beta_warmup" in asked:
        asked["beta_warmup"] = a.warmup
    run = trained_run(Settings(**asked), folder, a.device, progress=sys.stderr.isatty())
    guide = Experts(dict(run.recipe.guide.encoders), product_of_experts)  # the products in MoPoE's mixture
    run = replace(run, recipe=replace(run.recipe, guide=guide))
    pictures(run)
    start = time.perf_counter()
    result = measured(run, a, plan)
    facts = {"epochs": run.record["epochs"], "plan": plan}
    write_json(folder / MEASURED, {**facts, **result, "seconds": time.perf_counter() - start})


def measured(run: Run, a: argparse.Namespace, plan: dict[str, Any]) -> dict[str, Any]:
    """By subset: bound, reconstruction, accuracy, log-likelihood; disentanglement of the posterior means.

    A subset that is measured is written down, and not measured again.
    """
    partial, done = run.folder / PARTIAL, []
    if partial.is_file():
        require_same_plan(partial, plan)
        done = json.loads(partial.read_text())["subsets"]
    every = run.test_rows()
    test, few = shuffled(every, a.test_rows or len(every)), shuffled(every, a.rows)
    model, guide = run.recipe.model, run.recipe.guide
    out: dict[str, Any] = {"test_rows": len(test), "rows": len(few), "k": a.k, "subsets": done}
    for s in SUBSETS[len(done) :]:
        entry = {"given": list(s), **over_blocks(model, guide, test, s)}
        bayes = classify(model, guide, few, "label", s, a.k, seed=0).argmax(-1) == few.x["label"]
        ev = log_marginal(model, guide, few.only(*s), a.k, refine=True, seed=0)
        entry |= {
            "bayes_accuracy": bayes.double().mean().item(),
            "log_p": ev.mean,
            "se": ev.mean_se,
            "median_ess": ev.median_ess,
            "khat_above": ev.unreliable_share,
            "proposal": ev.proposal,
        }
        out["subsets"].append(entry)
        write_json(partial, {"plan": plan, "subsets": out["subsets"]})
        print(entry, flush=True)
    return out | {"codes": scores(run, test)}


def over_blocks(model: Any, guide: Any, test: Batch, s: tuple[str, ...]) -> dict[str, float]:
    """Means over all rows: the bound on log p(X) from q(z | x_S), -log p(x_m | z), and accuracies at draws of z."""
    pair = in_subsets(model, [s], whole=True), in_subsets(guide, [s])
    bound = elbo(*pair, analytic_kl=True)
    sums: dict[str, float] = {}
    with torch.no_grad():
        torch.manual_seed(0)
        for number, block in enumerate(blocks(test)):
            made = generate(model, guide, block.only(*s))
            codes = encode(guide, block.only(*s), PLUGGED_IN, seed=number).draws["z"]
            right = model.decoders["label"](codes).probs.mean(0).argmax(-1) == block.x["label"]
            found = {"elbo": -bound(block).item() * len(block), "accuracy": right.double().sum().item()}
            for m in (*SEEN, "label"):
                found[f"-log p({m} | z)"] = -made[m].log_prob(block.x[m]).sum().item()
            error = (made["sound"].mean - block.x["sound"]).square().flatten(2).mean(-1)
            found["rmse(sound)"] = error.sum().item()
            sums = {n: sums.get(n, 0.0) + v for n, v in found.items()}
    means = {n: v / len(test) for n, v in sums.items()}
    return means | {"rmse(sound)": means["rmse(sound)"] ** 0.5}


def blocks(rows: Batch) -> Iterator[Batch]:
    """Some rows at a time."""
    for i in range(0, len(rows), BLOCK):
        yield rows[i : i + BLOCK]


def shuffled(rows: Batch, count: int) -> Batch:
    """A fixed choice."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]]


def scores(run: Run, test: Batch) -> dict[str, Any]:
    """Disentanglement of the posterior means given everything but the label, with the class as the factor."""
    rows = shuffled(test, 5000)
    with torch.no_grad():
        codes = torch.cat([encode(run.recipe.guide, b.only(*SEEN)).mean["z"] for b in blocks(rows)])
    d = disentanglement(codes, {"label": rows.x["label"]})
    return {
        "completeness": d.completeness,
        "informativeness": d.informativeness["label"],
        "mig": d.mig["label"],
        "sap": d.sap["label"],
    }


def pictures(run: Run) -> None:
    """Cross-generation, traversal, interpolation."""
    run.figures.mkdir(exist_ok=True)
    rows = shuffled(run.test_rows(), 100)
    plots.cross_generation(run.recipe, rows[:4], path=run.figures / "cross_generation.png")
    plots.traversal(run.recipe, rows.only(*SEEN), dims=3, path=run.figures / "traversal.png")
    pairs = [(0, 1), (2, 3)]
    plots.interpolation(run.recipe, rows, between=pairs, given=SEEN, path=run.figures / "interpolation.png")


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines: list[str] = []
    for system, r in found.items():
        sounds = "rmse(sound)"
        head = ["given", "ELBO", "-log p(farsi | z)", "-log p(kannada | z)", sounds, "accuracy (%)", "Bayes (%)"]
        head += ["log p(given)", "± SE", "ESS"]
        lines += [
            f"`{system}`, {r['epochs']} epochs, {r['test_rows']:,} test rows ({r['rows']} for the last four):",
            "",
        ]
        rows = [head]
        for e in r["subsets"]:
            values = [e["elbo"], e["-log p(farsi | z)"], e["-log p(kannada | z)"]]
            accuracies = [f"{100 * e['accuracy']:.1f}", f"{100 * e['bayes_accuracy']:.1f}"]
            likelihood = [f"{e['log_p']:.1f}", f"{e['se']:.1f}", f"{e['median_ess']:.0f}"]
            bounds = [f"{v:.1f}" for v in values]
            rows.append([", ".join(e["given"]), *bounds, f"{e[sounds]:.3f}", *accuracies, *likelihood])
        c = r["codes"]
        lines += [
            *markdown(rows),
            "",
            f"Posterior means given all three, class as factor: completeness {c['completeness']:.2f}, informativeness "
            f"{c['informativeness']:.3f}, MIG {c['mig']:.3f}, SAP {c['sap']:.3f}.",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
