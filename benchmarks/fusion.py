"""VAEs, a GAN and diffusions on the three tasks: classification, generation, retrieval, with noise and gaps.

    python benchmarks/fusion.py --data mnist_grey --root ~/data/mnist --out runs/fusion-mnist
    python benchmarks/fusion.py --data farsi_kannada_speech --root ~/data --out runs/fusion-digits
    python benchmarks/fusion.py --data mnist_grey --out runs/fusion-mnist --table      # the table of what is there

Trains MVAE, MoPoE, MMVAE+, JMVAE-kl, JMVAE-GAN and MLD (a folder OUT/SYSTEM each, resumed where it stood), and
`mopoe_noised`, whose encoders see noise in training (`input_noise`) of up to 1.5 standard deviations in every modality
but the label.  `mvae_diffusion`, `mopoe_noised_diffusion`: with a diffusion prior fitted to what was trained.  Of four
modalities `mvae_sampled` costs less, which trains on some of their subsets at a time: where it is among the systems,
the prior is fitted to that one.  JMVAE-kl is JMVAE-GAN without its GAN: what separates these two is the discriminator.
Of each: accuracy of the label from every set of the other modalities under four levels of noise; of decoders' means at
draws of the prior coherence, Frechet and kernel distance (the latter in the file only), precision and recall in the
features of autoencoders of the data, and sharpness of images and spectra, their mean squared Laplacian over that of
real ones; retrieval in every direction.
+- are standard errors over rows (a recording that stands in several rows counts once) and over generated and real rows
together; ranges are 95 % bootstrap intervals over queries.  None of them knows of another seed's training.  Writes
OUT/SYSTEM/fusion.json and OUT/table.md.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import data_set, of_one_plan, require_same_plan, trained_run
from torch import Tensor
from torch.nn.functional import conv2d

from pyro_mm.batch import Batch
from pyro_mm.cli.common import add_bf16
from pyro_mm.evaluation import joint_coherence
from pyro_mm.evaluation.coherence import generated
from pyro_mm.files import write_json
from pyro_mm.judges import Judges, train_judges
from pyro_mm.models import DiffusionPrior
from pyro_mm.post_hoc import with_prior
from pyro_mm.recipe import Recipe
from pyro_mm.runs import Run
from pyro_mm.settings import Settings
from pyro_mm.storage import load, save
from pyro_mm.tables import markdown
from pyro_mm.task_tables import interval
from pyro_mm.tasks import classification, retrieval, samples
from pyro_mm.training import fit

PRIOR, NOISED, NOISE = "_diffusion", "_noised", 1.5
WHOLE, SAMPLED, ROBUST = "mvae", "mvae_sampled", "mopoe" + NOISED
VAES = (WHOLE, SAMPLED, "mopoe", ROBUST, "mmvaeplus", "jmvae_kl")
SYSTEMS = (*VAES, "jmvae_gan", WHOLE + PRIOR, ROBUST + PRIOR, "mld")
MEASURED = "fusion.json"
PLAN = ("data", "epochs", "prior_epochs", "dim", "label_weight", "precision", "seed", "rows", "draws", "judge_epochs")


def main() -> None:
    """Train, measure, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default="mnist_grey")
    p.add_argument("--root", help="the data's folder")
    p.add_argument("--out", type=Path, default=Path("runs/fusion"))
    p.add_argument("--systems", nargs="+", default=[s for s in SYSTEMS if s != SAMPLED], choices=SYSTEMS)
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--prior-epochs", type=int, default=10, help="as many as MLD's diffusion has: --epochs")
    p.add_argument("--dim", type=int, default=32)
    p.add_argument("--label-weight", type=float, default=50.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--rows", type=int, default=1000, help="test rows")
    p.add_argument("--draws", type=int, default=10, help="of z for every row that is named, and for unknown means")
    p.add_argument("--judge-epochs", type=int, default=10)
    p.add_argument("--device", default="cpu")
    add_bf16(p, "32-true")
    p.add_argument("--table", action="store_true", help="train nothing")
    a = p.parse_args()
    torch.set_num_threads(1)
    for system in () if a.table else a.systems:
        if (a.out / system / MEASURED).is_file():
            require_same_plan(a.out / system / MEASURED, plan_of(a))
        else:
            write_json(a.out / system / MEASURED, measured(*at_hand(system, a), a))
            print(f"{system}: measured", flush=True)
    found = {n: json.loads((a.out / n / MEASURED).read_text()) for n in a.systems if (a.out / n / MEASURED).is_file()}
    if not found:
        raise SystemExit(f"nothing is measured in {a.out}")
    text = table(found)
    (a.out / "table.md").write_text(text)
    print(text)


def plan_of(a: argparse.Namespace) -> dict[str, Any]:
    """What decides the figures."""
    return {n: getattr(a, n) for n in PLAN}


def at_hand(system: str, a: argparse.Namespace) -> tuple[Run, Recipe]:
    """The system's run, trained, and its recipe; of a diffusion prior that of the VAE, and the new recipe."""
    name = system.removesuffix(PRIOR)
    if system == WHOLE + PRIOR and SAMPLED in a.systems:
        name = SAMPLED
    asked = {n: getattr(a, n) for n in ("data", "root", "dim", "epochs", "precision", "seed")}
    settings = Settings(name.removesuffix(NOISED), weights={"label": a.label_weight}, **asked)
    if name.endswith(NOISED):
        splits = data_set(a.data, a.root)
        settings = replace(settings, noise={m: NOISE for m in splits.names if m != splits.label})
    run = trained_run(settings, a.out / name, a.device)
    print(f"{name}: trained", flush=True)
    if not system.endswith(PRIOR):
        return run, run.recipe
    torch.manual_seed(a.seed)
    recipe = with_prior(run.recipe, DiffusionPrior(a.dim, steps=12), a.prior_epochs)
    folder = a.out / system / "model"
    if folder.is_dir():
        load(folder, recipe=recipe)
    else:
        fit(
            recipe,
            run.splits.train,
            seed=a.seed,
            folder=a.out / system / "fit",
            resume=True,
            accelerator=a.device,
            progress=False,
            precision=a.precision,
        )
        save(recipe, folder)
    for module in recipe.modules.values():
        module.to(a.device)
    return run, recipe


def measured(run: Run, recipe: Recipe, a: argparse.Namespace) -> dict[str, Any]:
    """Everything of one system."""
    judges = train_judges(run.splits, a.judge_epochs, folder=a.out / "judges", device=a.device)
    test, label, pair = run.test_rows(a.rows), str(run.splits.label), (recipe.model, recipe.guide)
    joint = joint_coherence(*pair, judges, recipe.modalities, a.rows, means=recipe.means)
    weights = [p for m in recipe.modules.values() for p in m.parameters()]
    return {
        "plan": plan_of(a),
        "parameters": sum(p.numel() for p in {id(p): p for p in weights}.values()),
        "seconds": run.record["seconds"],
        "last_epoch": last_epoch(run.folder / "log.csv"),
        "judges": {m: s.value for m, s in judges.accuracy.items()},
        "classification": classification(*pair, test, label, k=a.draws),
        "joint_coherence": {"value": joint.value, "se": joint.se},
        "generation": samples(recipe, judges, test),
        "retrieval": retrieval(*pair, test, label, k=a.draws),
        "sharpness": sharpness(recipe, judges, test),
    }


def last_epoch(log: Path) -> dict[str, float]:
    """Every term of the last epoch: of a GAN what its discriminator makes of real and made rows."""
    with log.open() as file:
        *_, row = csv.DictReader(file)
    return {k: float(v) for k, v in row.items() if v and k not in ("stage", "seconds")}


def sharpness(recipe: Recipe, judges: Judges, test: Batch) -> dict[str, float]:
    """Of every image modality the mean squared Laplacian of what is made from the prior over that of real images."""
    nothing = Batch.missing(recipe.modalities, len(test)).to(test.device)
    found = {}
    for m in (m for m in judges.names if test.x[m].dim() in (3, 4)):
        drawn = generated(recipe.model, recipe.guide, nothing, [m], means=recipe.means)
        made = torch.cat([values[m][0] for _, values in drawn])
        found[m] = (laplacian(made) / laplacian(test.x[m])).item()
    return found


def laplacian(x: Tensor) -> Tensor:
    """Mean square of the discrete Laplacian of x `(N, [C,] H, W)`."""
    kernel = x.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    return conv2d(x.reshape(-1, 1, *x.shape[-2:]).float(), kernel).square().mean()


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown, a column for every system."""
    first, systems = next(iter(found.values())), list(found.values())
    about = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in of_one_plan(found).items())
    judges = ", ".join(f"{m} {100 * v:.1f}" for m, v in first["judges"].items())
    named = [["accuracy of the label (%)", *found]]
    for i, e in enumerate(first["classification"]):
        each = [f["classification"][i] for f in systems]
        what = f"{', '.join(e['given'])}; noise {e['noise']:g}"
        named.append([what, *(f"{100 * c['accuracy']:.1f} ± {100 * c['se']:.1f}" for c in each)])
    joint = [f["joint_coherence"] for f in systems]
    drawn = [
        ["decoders' means at draws of the prior", *found],
        ["coherence (%)", *(f"{100 * j['value']:.1f} ± {100 * j['se']:.1f}" for j in joint)],
    ]
    for m, e in first["generation"].items():
        each = [f["generation"][m] for f in systems]
        for key, unit in (("frechet", e["frechet_halves"]), ("precision", 1.0), ("recall", 1.0)):
            what = f"{m}: {key}" + (" (1: that of halves of the real rows)" if key == "frechet" else "")
            drawn.append([what, *(f"{g[key] / unit:.3g} ± {g[f'{key}_se'] / unit:.2g}" for g in each)])
        if m in first["sharpness"]:
            drawn.append([f"{m}: sharpness", *(f"{f['sharpness'][m]:.2f}" for f in systems)])
    size = [["", *found], ["parameters, millions", *(f"{f['parameters'] / 1e6:.2f}" for f in systems)]]
    size.append(["training, seconds", *(f"{f['seconds']:.0f}" for f in systems)])
    lines = [f"{about}; judges' own accuracy (%): {judges}.", "", *markdown(size), "", *markdown(named), ""]
    return "\n".join(
        [*lines, *markdown(drawn), "", *markdown([["retrieval (%)", "chance", *found], *retrieved(systems)])]
    )


def retrieved(systems: list[dict[str, Any]]) -> list[list[str]]:
    """R@1, where rows have their own, and mean average precision in every direction, with their intervals, and chance.

    Where modalities are paired at random within a class, the best R@1 that knows the class is 1 over its rows.
    """
    rows = []
    for i, e in enumerate(systems[0]["retrieval"]):
        way = f"{', '.join(e['given'])} to {', '.join(e['of'])}"
        each = [f["retrieval"][i] for f in systems]
        if e["recall"]:
            rows.append([f"{way}: R@1", chance(e["recall"]["1"]), *(interval(r["recall"]["1"]) for r in each)])
        rows.append([f"{way}: mAP", chance(e["mean_precision"]), *(interval(r["mean_precision"]) for r in each)])
    return rows


def chance(m: dict[str, float]) -> str:
    """Of a random ranking."""
    return f"{100 * m['chance']:.1f} %"


if __name__ == "__main__":
    main()
