"""Digits and speech, clustered by modules that exchange messages: does the second modality make clusters purer?

    python benchmarks/serket.py --root ~/data --out runs/serket     # writes OUT/serket.json, prints the table

Every row is an MNIST image and a recording of the same digit (FSDD) by chance.  A VAE hears from a Gaussian mixture of
its codes, and that from a co-occurrence module of acoustic words: the recording's MFCC frames, put into classes by
k-means and counted in its first, second and last third.  No module sees a label.  The score is the adjusted Rand index
of classes and digits.  Before it talks the VAE is trained alone, the weight of its KL growing from 0 to 1: without that
it forgot the images under some seeds, all of q(z | x) being N(0, I).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.data import Paired, available
from pyro_mm.data.fsdd import Recording, fsdd
from pyro_mm.data.mfcc import mfcc
from pyro_mm.files import write_json
from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.modules import (
    ClassMixture,
    Counts,
    Gaussians,
    em,
    exchange,
    k_means,
    likelihood_message,
    posterior_message,
)
from pyro_mm.objectives import Warmup, elbo
from pyro_mm.provenance import commit
from pyro_mm.tables import markdown
from pyro_mm.training import fit

CLASSES, WORDS, PARTS = 10, 40, 3
WARM = 8  # epochs
Rows = tuple[Modality, Batch, Tensor]
SOUND, APART = "sounds alone: mixture of words", "images alone: VAE, then a mixture"
TALKING = {
    "images alone: VAE and mixture exchange": (False, likelihood_message),
    "both, SERKET's messages": (True, posterior_message),
    "both, likelihoods as messages": (True, likelihood_message),
}


def main() -> int:
    """Cluster, write, print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--root", type=Path, required=True, help="folder with mnist and fsdd")
    p.add_argument("--out", type=Path, default=Path("runs/serket"))
    p.add_argument("--rows", type=int, default=10_000)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--dim", type=int, default=10, help="of the VAE's codes")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--epochs", type=int, default=8, help="of the VAE in every round")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    plan = {k: getattr(a, k) for k in ("rows", "seeds", "dim", "rounds", "epochs")} | {"warm": WARM}
    found: dict[str, list[float]] = {}
    for seed in a.seeds:
        rows = paired("mnist", a.root / "mnist", a.root / "fsdd", a.rows, seed)
        for name, score in scores(rows, seed, a.dim, a.rounds, a.epochs).items():
            found.setdefault(name, []).append(score)
            print(f"seed {seed}: {name}: {score:.3f}", flush=True)
    write_json(a.out / "serket.json", {"plan": plan, "commit": commit(), "ari": found})
    print("\n".join(table(found)))
    return 0


def paired(name: str, root: Path | None, speech: Path, count: int, seed: int) -> Rows:
    """The images' modality, rows of an image and a sound of one digit, and the digits `(N,)`."""
    splits = available()[name](**({} if root is None else {"root": root}))
    recordings = [r for r in fsdd(speech) if not r.test]
    spoken = Batch({"sound": counted(recordings, seed), "label": torch.tensor([r.label for r in recordings])})
    rows = Paired({"drawn": splits.train_batch(seed), "spoken": spoken}).fixed(seed)[:count]
    modality = next(m for m in splits.modalities if m.name == "image")
    return modality, Batch({m: rows.x[m] for m in ("image", "sound")}), rows.x["label"]


def counted(recordings: Sequence[Recording], seed: int) -> Tensor:
    """Acoustic words `(N, 3 x 40)`: how often each class of frames occurs in every third of a recording.

    Coefficients are those of each recording less their means, which are the voice's and the microphone's.
    """
    frames = [found - found.mean(0) for found in (mfcc(r.wave)[:, 1:] for r in recordings)]
    classes = KMeans(WORDS, n_init=1, random_state=seed).fit(np.concatenate(frames)[::5])
    rows = []
    for each in frames:
        thirds = np.array_split(classes.predict(each), PARTS)
        rows.append(np.concatenate([np.bincount(t, minlength=WORDS) for t in thirds]))
    return torch.as_tensor(np.stack(rows), dtype=torch.get_default_dtype())


def scores(rows: Rows, seed: int, dim: int, rounds: int, epochs: int, **training: Any) -> dict[str, float]:
    """Adjusted Rand index of every system."""
    modality, batch, label = rows
    words = ClassMixture({"sound": Counts(PARTS * WORDS, CLASSES)}, CLASSES)
    found = {SOUND: em(words, batch, k_means(batch.x["sound"], CLASSES, seed), 50).argmax(-1)}
    torch.manual_seed(seed)
    options = {"batch_size": 50, "lr": 1e-3, "accelerator": "cpu", **training}
    vae = Joint(decoders([modality], dim), dim), Experts(encoders([modality], dim), product_of_experts)
    fit(elbo(*vae, beta=Warmup(WARM)), batch, WARM, seed=seed, progress=False, **options)
    found[APART] = talk(vae, batch, seed, dim, 1, rounds * epochs, False, likelihood_message, options)
    for name, (sound, send) in TALKING.items():
        found[name] = talk(vae, batch, seed, dim, rounds, epochs, sound, send, options)
    return {name: float(adjusted_rand_score(label, classes)) for name, classes in found.items()}


def talk(
    vae: tuple[Joint, Experts],
    batch: Batch,
    seed: int,
    dim: int,
    rounds: int,
    epochs: int,
    sound: bool,
    send: Callable[[ClassMixture, Batch], Tensor],
    options: dict[str, Any],
) -> Tensor:
    """Classes `(N,)` of a copy of the VAE, a mixture of its codes and perhaps the words."""
    modules = [ClassMixture({"code": Gaussians(dim, CLASSES)}, CLASSES)]
    if sound:
        modules.append(ClassMixture({"sound": Counts(PARTS * WORDS, CLASSES)}, CLASSES))
    return exchange(
        *copy.deepcopy(vae), modules, batch, rounds=rounds, epochs=epochs, steps=20, send=send, seed=seed, **options
    ).classes


def table(found: dict[str, list[float]]) -> list[str]:
    """Means and ranges over seeds."""
    head = ["clusters of", "adjusted Rand index", "least", "most"]
    rows = [[n, f"{statistics.mean(s):.3f}", f"{min(s):.3f}", f"{max(s):.3f}"] for n, s in found.items()]
    return markdown([head, *rows])


if __name__ == "__main__":
    sys.exit(main())
