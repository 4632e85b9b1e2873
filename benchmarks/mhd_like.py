"""Cross-modality inference on MHD-like data: NEXUS, its baselines and flat systems, equal budgets, several seeds.

    python benchmarks/mhd_like.py --root ~/data --out runs/mhd_like            # everything, one run after the other
    python benchmarks/mhd_like.py --root ~/data --out runs/mhd_like --table    # the tables of what is there

Every run is a folder OUT/SYSTEM-SEED as `pyro-mm train` makes it; what is done already is not done again, so an
interrupted benchmark goes on where it stood.  Of a finished run run.json, metrics.json and likelihood.json are enough
(docs/results/mhd_like has those of the published table).  Writes OUT/table.json and OUT/table.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import data_set, over_seeds, trained_run

from pyro_mm.evaluation.psis import threshold
from pyro_mm.tables import markdown

# The same data, epochs, rows per step and optimiser for all.  Hierarchies have the paper's sizes; the flat systems as
# many dimensions as a picture's own latent has there; shared and private latents half of these each.
SYSTEMS: dict[str, dict[str, Any]] = {
    "nexus": {"dim": 32},
    "nexus_elbo": {"dim": 32},
    "hierarchical_mvae": {"dim": 32},
    "hierarchical_mmvae": {"dim": 32},
    "mvae": {"dim": 64, "weights": {"label": 50.0}},
    "mmvae": {"dim": 64, "weights": {"label": 50.0}},
    "mopoe": {"dim": 64, "weights": {"label": 50.0}},
    "dmvae": {"dim": 32, "weights": {"label": 50.0}, "options": {"private": 32}},
    "mmvaeplus": {"dim": 32, "weights": {"label": 50.0}},
}
LIKELIHOOD, JUDGES, FAILED = "likelihood.json", "judges", "judges.failed"


def main() -> int:
    """Train, measure, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--root", help="folder with pendigits and fsdd, or with the cached set")
    p.add_argument("--data", default="mhd_like", help="the data set (default: mhd_like)")
    p.add_argument("--out", type=Path, default=Path("runs/mhd_like"))
    p.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--epochs", type=int, default=30)
    p.add_argument("--judge-epochs", type=int, default=20)
    p.add_argument("--rows", type=int, default=100, help="test rows whose log-likelihood is estimated (0: none)")
    p.add_argument("--k", type=int, default=1000, help="draws per row")
    p.add_argument("--annealed-rows", type=int, default=32, help="as many of them by annealing as well")
    p.add_argument("--temperatures", type=int, default=500)
    p.add_argument("--device", default="auto")
    p.add_argument("--workers", type=int, default=1, help="runs at once")
    p.add_argument("--threads", type=int, default=1, help="of each run")
    p.add_argument("--table", action="store_true", help="train nothing")
    p.add_argument("--one", nargs=2, metavar=("SYSTEM", "SEED"), help=argparse.SUPPRESS)
    arguments = p.parse_args()
    if arguments.one:
        return one(arguments, arguments.one[0], int(arguments.one[1]))
    if not arguments.table:
        several(arguments)
    found = collected(arguments.out)
    if not found:
        print(f"no finished runs in {arguments.out}", file=sys.stderr)
        return 1
    text = table(found)
    (arguments.out / "table.json").write_text(json.dumps(found, indent=1))
    (arguments.out / "table.md").write_text(text)
    print(text)
    return 0


def several(arguments: argparse.Namespace) -> None:
    """Every run in a process of its own, `workers` at a time; a failed one is named and the others go on."""
    left = [(JUDGES, 0), *((s, seed) for seed in arguments.seeds for s in arguments.systems)]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / FAILED).unlink(missing_ok=True)
    while left or running:
        while left and len(running) < arguments.workers:
            job = left.pop(0)
            command = [sys.executable, __file__, *sys.argv[1:], "--one", job[0], str(job[1])]
            log = open(arguments.out / f"{job[0]}-{job[1]}.log", "wb")  # noqa: SIM115
            environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
            running[job] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        for job, process in list(running.items()):
            if process.poll() is not None:
                del running[job]
                if job[0] == JUDGES and process.returncode:
                    (arguments.out / FAILED).touch()
                print(
                    f"{job[0]} seed {job[1]}: {'done' if process.returncode == 0 else 'FAILED, see its log'}",
                    flush=True,
                )
        time.sleep(0.5)


def one(arguments: argparse.Namespace, system: str, seed: int) -> int:
    """Train, measure accuracy, rank and likelihoods of one run, as far as that is not done yet."""
    import torch

    torch.set_num_threads(arguments.threads)
    from pyro_mm.cli.common import device_of
    from pyro_mm.files import write_json
    from pyro_mm.metrics import evaluate_metrics
    from pyro_mm.runs import METRICS, Settings

    folder, device = arguments.out / f"{system}-{seed}", device_of(arguments.device)
    if system == JUDGES:
        judges(arguments, device)
        return 0
    if (folder / METRICS).is_file() and (not arguments.rows or (folder / LIKELIHOOD).is_file()):
        return 0
    common = {
        "data": arguments.data,
        "root": arguments.root,
        "epochs": arguments.epochs,
        "batch_size": 64,
        "seed": seed,
    }
    run = trained_run(Settings(system, **common, **SYSTEMS[system]), folder, device)
    print(f"trained {system} {seed}", flush=True)
    if not (folder / METRICS).is_file():
        wait_for_judges(arguments.out)
        evaluate_metrics(run, judges=judges(arguments, device), seed=0)
        print("measured", flush=True)
    if arguments.rows and not (folder / LIKELIHOOD).is_file():
        write_json(folder / LIKELIHOOD, likelihoods(run, arguments))
        print("likelihoods", flush=True)
    return 0


def wait_for_judges(out: Path) -> None:
    """Another process is training them, or has failed."""
    while not (out / JUDGES / "judges.json").is_file():
        if (out / FAILED).is_file():
            raise SystemExit(f"the judges could not be trained: see {out / JUDGES}-0.log")
        time.sleep(1)


def judges(arguments: argparse.Namespace, device: str) -> Any:
    """Classifiers and autoencoders of the data, trained once for all runs."""
    from pyro_mm.judges import train_judges

    splits = data_set(arguments.data, arguments.root)
    return train_judges(splits, arguments.judge_epochs, folder=arguments.out / JUDGES, device=device)


def likelihoods(run: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The joint log-likelihood by importance sampling from guide and refined proposal, and by annealing the latter."""
    import torch

    from pyro_mm import log_marginal, log_marginal_ais

    batch, pair = run.test_rows(arguments.rows), (run.recipe.model, run.recipe.guide)
    out: dict[str, Any] = {"k": arguments.k, "temperatures": arguments.temperatures}
    for name, options in (("guide", {"refine": False}), ("refined", {"refine": True})):
        out[name] = summary(log_marginal(*pair, batch, arguments.k, seed=0, **options))
        torch.cuda.empty_cache()
    if arguments.annealed_rows:
        few = batch[: arguments.annealed_rows]
        out["annealed"] = summary(log_marginal_ais(*pair, few, arguments.temperatures, chains=4, refine=True, seed=0))
    return out


def summary(ev: Any) -> dict[str, list[float]]:
    """Of every row the estimate, and how far to trust it."""
    return {name: getattr(ev, name).tolist() for name in ("estimate", "se", "ess", "khat")}


def collected(out: Path) -> dict[str, list[dict[str, Any]]]:
    """What is done, by system."""
    found: dict[str, list[dict[str, Any]]] = {}
    for system in SYSTEMS:
        for folder in sorted(out.glob(f"{system}-[0-9]*")):
            if not (folder / "metrics.json").is_file():
                continue
            entry = {
                "seed": int(folder.name.rpartition("-")[2]),
                "metrics": json.loads((folder / "metrics.json").read_text()),
            }
            entry["record"] = json.loads((folder / "run.json").read_text())
            if (folder / LIKELIHOOD).is_file():
                entry["likelihood"] = json.loads((folder / LIKELIHOOD).read_text())
            found.setdefault(system, []).append(entry)
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: means over seeds, and their standard deviations."""
    first = next(iter(found.values()))[0]
    judges = ", ".join(f"{m} {100 * j['accuracy']:.1f} %" for m, j in first["metrics"]["judges"].items())
    lines = [f"Judges' own accuracy on the test rows: {judges}.", ""]
    targets = list(dict.fromkeys(e["target"] for e in first["metrics"]["cross_accuracy"]))
    rows = [["accuracy (%) of", *found]]
    for target in targets:
        for size in (1, 2, 3):
            cells = [over_seeds([100 * of_size(r, target, size) for r in runs]) for runs in found.values()]
            rows.append([f"{target}, {size} given", *cells])
    joint = [over_seeds([100 * r["metrics"]["joint_coherence"]["value"] for r in runs]) for runs in found.values()]
    lines += [*markdown([*rows, ["joint coherence", *joint]]), "", *sets(found), ""]
    ranks = list(first["metrics"]["rank"])
    rows = [["Frechet distance", *found]]
    for m in ranks:
        for how, given in (("mean", "one"), ("every", "all"), ("prior", "nothing")):
            cells = [over_seeds([r["metrics"]["rank"][m][how] for r in runs]) for runs in found.values()]
            rows.append([f"{m}, {given} given", *cells])
    halves = ", ".join(f"{m} {first['metrics']['rank'][m]['baseline']:.1f}" for m in ranks)
    lines += [*markdown(rows), "", f"Between two halves of the real rows: {halves}.", "", *likelihood_table(found)]
    return "\n".join(lines) + "\n"


def sets(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Accuracy by every conditioning set, means over seeds."""
    rows = [["target", "given", *found]]
    for i, entry in enumerate(next(iter(found.values()))[0]["metrics"]["cross_accuracy"]):
        values = [
            statistics.mean(100 * r["metrics"]["cross_accuracy"][i]["accuracy"] for r in runs)
            for runs in found.values()
        ]
        cells = [f"**{v:.1f}**" if v == max(values) else f"{v:.1f}" for v in values]
        rows.append([entry["target"], ", ".join(entry["given"]), *cells])
    return markdown(rows)


def likelihood_table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """log p(X): means over rows and seeds, what separates systems on the same rows, and what annealing adds."""
    having = {s: [r["likelihood"] for r in runs if "likelihood" in r] for s, runs in found.items()}
    having = {s: values for s, values in having.items() if values}
    if not having:
        return []
    base = next(iter(having))
    rows, k = len(having[base][0]["refined"]["estimate"]), having[base][0]["k"]
    limit = threshold(k)
    head = ["log p(X), nats", "refined", f"refined, minus {base}", "guide alone", "ESS", f"k-hat > {limit:.2f} (%)"]
    head += ["annealed minus refined, same rows"]
    table = [head]
    for system, values in having.items():
        refined, guide = ([v[how] for v in values] for how in ("refined", "guide"))
        gain = [
            [a - r for a, r in zip(v["annealed"]["estimate"], v["refined"]["estimate"], strict=False)]
            for v in values
            if "annealed" in v
        ]
        table.append(
            [
                system,
                of_rows([v["estimate"] for v in refined]),
                "" if system == base else of_rows(paired(found[system], found[base])),
                of_rows([v["estimate"] for v in guide]),
                f"{statistics.median(x for v in refined for x in v['ess']):.1f}",
                f"{100 * statistics.mean(x > limit for v in refined for x in v['khat']):.0f}",
                of_rows(gain) if gain else "",
            ]
        )
    return [*markdown(table), "", f"{rows} test rows, K = {k:,}; +-: standard error over rows, of the mean over seeds."]


def paired(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> list[list[float]]:
    """Differences of refined estimates row by row, of the seeds that both have."""
    known, other = (
        {r["seed"]: r["likelihood"]["refined"]["estimate"] for r in x if "likelihood" in r} for x in (runs, base)
    )
    return [[a - b for a, b in zip(known[s], other[s], strict=True)] for s in known if s in other]


def of_rows(seeds: list[list[float]]) -> str:
    """The mean over seeds and rows +- its standard error over rows."""
    if not seeds:
        return "-"
    means = [statistics.mean(values) for values in zip(*seeds, strict=True)]
    return f"{statistics.mean(means):.1f} ± {statistics.stdev(means) / len(means) ** 0.5:.1f}"


def of_size(run: dict[str, Any], target: str, size: int) -> float:
    """Mean accuracy over conditioning sets of a size."""
    return statistics.mean(
        e["accuracy"] for e in run["metrics"]["cross_accuracy"] if e["target"] == target and len(e["given"]) == size
    )


if __name__ == "__main__":
    sys.exit(main())
