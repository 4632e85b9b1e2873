"""Handwritten Farsi digits, handwritten Kannada digits and spoken English ones, brought together by class.

Hoda x Kannada-MNIST x the Free Spoken Digit Dataset: the three were never seen together, so all that a row's modalities
share is its digit.  Their official splits stay apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.data import fsdd
from pyro_mm.data import hoda as farsi
from pyro_mm.data.binarise import Binarised, binarised_once
from pyro_mm.data.fetch import cache_folder, fetched
from pyro_mm.data.idx_sets import TEST_SEED, VALIDATION_SEED, WHITE
from pyro_mm.data.kannada import kannada_source
from pyro_mm.data.mel import BANDS, FRAMES, log_mel, one_second
from pyro_mm.data.mfcc import COEFFICIENTS, mfcc_centroid
from pyro_mm.data.paired import Paired
from pyro_mm.data.splits import Splits, stratified
from pyro_mm.likelihoods import Bernoulli, Categorical, Normal
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP, Conv, Net

__all__ = ["farsi_kannada_mfcc", "farsi_kannada_speech"]

SHARES = (0.8, 0.2)
FIRST_TRAINED = 9  # takes 0 to 4 of a speaker are for testing, 5 to 8 for validation, 9 to 49 for training
HODA_URL = "https://github.com/amir-saniyan/HodaDatasetReader/raw/master/DigitDB"
SPEECH_URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip"
SOUNDS_AT_ONCE = 250
MOST = 100_000_000  # bytes of one download
Nets = tuple[Net, Net | None]  # of the encoder, and of the decoder where that is another
PICTURE: Nets = MLP((512, 512)), None
SOUND: Nets = Conv((32, 64), 256), None
LABEL: Nets = MLP((128,)), None
# As published, activation included; the label had no encoder there.
PUBLISHED: dict[str, Nets] = {
    "picture": (MLP((2048, 1024, 512), nn.Mish), MLP((512,) * 4, nn.Mish)),
    "sound": (MLP((512, 512), nn.Mish), MLP((512,) * 3, nn.Mish)),
    "label": (MLP((512, 512), nn.Mish), MLP((512,) * 3, nn.Mish)),
}
NOTE = (
    "Hoda (research use only), Kannada-MNIST and FSDD 1.0.10 (CC BY-SA 4.0) paired within a digit, anew at every fetch "
    "in training; official test sets; 92 of Hoda's test bitmaps equal a training one"
)
Sound = Callable[[Sequence[fsdd.Recording]], Tensor]


def farsi_kannada_speech(root: str | Path | None = None, download: bool = False, seed: int = 0) -> Splits:
    """`farsi`, `kannada` (1, 28, 28) of 0 and 1, `sound` (1, 32, 128) log-mel in [0, 1], `label` 0..9, one digit a row.

    48,000 training and 12,000 validation rows (every bitmap once, 80/20 within a class), 20,000 test rows (every Hoda
    bitmap once, every Kannada one twice, every recording about 67 times).  Recordings 9 to 49 of each speaker train, 5
    to 8 validate, 0 to 4 test.  Training rows are paired, and grey pixels binarised, anew at every fetch; others once.

    Args:
        root: a folder with the files of Hoda, Kannada-MNIST and FSDD, or with them in folders `hoda`, `kannada_mnist`
            and `fsdd`.
        download: fetch what is missing (80 MB), into `root` or else `cache_folder()`.
        seed: of the division into training and validation, and of the fixed pairs.

    Raises:
        FileNotFoundError: naming what is missing, where it was looked for, and what to do.
        ValueError: a file is truncated, corrupt or not the original one, naming it.
        RuntimeError: the download failed, naming the URL and the cure.
    """
    modalities = _modalities(PICTURE, Modality("sound", (1, FRAMES, BANDS), Normal(bounded=True), *SOUND), LABEL)
    return _splits("farsi_kannada_speech", modalities, _spectrograms, root, download, seed)


def farsi_kannada_mfcc(root: str | Path | None = None, download: bool = False, seed: int = 0) -> Splits:
    """`farsi`, `kannada` (1, 28, 28) of 0 and 1, `sound` (13,) MFCC centroids in [0, 1], `label` 0..9, one digit a row.

    As published: a recording is the centroid of its whitened MFCCs, each feature scaled by the training recordings'
    range.  The density of the sound is Normal(sqrt(1/200)), its squared error times 100.  The networks are the
    published ones: encoders of pictures 2048-1024-512, decoders of four layers of 512, of three for sound and label,
    all Mish.  Arguments, rows and errors as in `farsi_kannada_speech`.
    """
    sound = Modality("sound", (COEFFICIENTS,), Normal(0.005**0.5), *PUBLISHED["sound"])
    modalities = _modalities(PUBLISHED["picture"], sound, PUBLISHED["label"])
    return _splits("farsi_kannada_mfcc", modalities, _centroids, root, download, seed)


def _splits(
    name: str,
    modalities: tuple[Modality, ...],
    features: Sound,
    root: str | Path | None,
    download: bool,
    seed: int,
) -> Splits:
    base = _base(root, download)
    spoken = _spoken(fsdd.fsdd(_place(base, "fsdd", _sounds)), features)
    drawn = {"farsi": _farsi(base), "kannada": _kannada(base)}
    made = {}
    for split in ("train", "validation", "test"):
        pixel_seed = {"train": None, "validation": VALIDATION_SEED, "test": TEST_SEED}[split]
        parts = {m: _pixels(_part(batches, split, seed), m, pixel_seed) for m, batches in drawn.items()}
        made[split] = Paired({**parts, "sound": spoken[split]})
    held, test = made["validation"].fixed(seed), made["test"].fixed(seed)
    return Splits(name, modalities, made["train"], held, test, "label", f"{NOTE}; seed {seed}")


def _modalities(picture: Nets, sound: Modality, label: Nets) -> tuple[Modality, ...]:
    pictures = [Modality(m, (1, 28, 28), Bernoulli(), *picture) for m in ("farsi", "kannada")]
    return (*pictures, sound, Modality("label", (), Categorical(10), *label))


def _part(batches: dict[str, Batch], split: str, seed: int) -> Batch:
    """The official test rows, or 80 or 20 per cent of the training rows of every class."""
    if split == "test":
        return batches["test"]
    rows = stratified(batches["train"].x["label"], SHARES, seed)
    return batches["train"][rows[0 if split == "train" else 1]]


def _pixels(grey: Batch, name: str, seed: int | None) -> Batch | Binarised:
    """Grey bytes as Bernoulli draws: anew at every fetch without a seed."""
    return Binarised(grey, name, WHITE) if seed is None else binarised_once(grey, name, seed, WHITE)


def _farsi(base: Path) -> dict[str, Batch]:
    folder = _place(base, "hoda", _bitmaps)
    out = {}
    for part in ("train", "test"):
        bitmaps = farsi.hoda(folder, part)
        image = torch.from_numpy(farsi.fitted(bitmaps.images))[:, None]
        out[part] = Batch({"farsi": image, "label": torch.from_numpy(bitmaps.labels)})
    return out


def _kannada(base: Path) -> dict[str, Batch]:
    source = kannada_source()
    folder, crops = source.folder(base, False), {"kannada": (slice(0, 28), slice(0, 28))}
    return {part: source.rows(folder, part, crops) for part in ("train", "test")}


def _spoken(recordings: Sequence[fsdd.Recording], features: Sound) -> dict[str, Batch]:
    groups = {
        "train": [r for r in recordings if r.index >= FIRST_TRAINED],
        "validation": [r for r in recordings if not r.test and r.index < FIRST_TRAINED],
        "test": [r for r in recordings if r.test],
    }
    found = {split: features(group) for split, group in groups.items()}
    if found["train"].dim() == 2:  # vectors of features, each with a range of its own
        low, high = found["train"].min(0).values, found["train"].max(0).values
        found = {split: (x - low) / (high - low) for split, x in found.items()}
    return {s: Batch({"sound": found[s], "label": torch.tensor([r.label for r in g])}) for s, g in groups.items()}


def _spectrograms(group: Sequence[fsdd.Recording]) -> Tensor:
    waves = torch.stack([one_second(torch.from_numpy(r.wave).to(torch.get_default_dtype())) for r in group])
    return torch.cat([log_mel(part) for part in waves.split(SOUNDS_AT_ONCE)])[:, None]


def _centroids(group: Sequence[fsdd.Recording]) -> Tensor:
    return torch.from_numpy(np.stack([mfcc_centroid(r.wave) for r in group])).to(torch.get_default_dtype())


def _bitmaps(folder: Path) -> bool:
    return all(farsi.found(folder, part) for part in ("train", "test"))


def _sounds(folder: Path) -> bool:
    return fsdd.find_recordings(folder) is not None


def _place(base: Path, inside: str, there: Callable[[Path], bool]) -> Path:
    return next((p for p in (base / inside, base) if there(p)), base)


def _base(root: str | Path | None, download: bool) -> Path:
    """The folder with all files."""
    base = cache_folder() if root is None else Path(root).expanduser()
    if root is None and not download:
        raise FileNotFoundError(
            "Farsi, Kannada and spoken digits: where are they? Pass root=FOLDER (--root) with folders hoda, "
            f"kannada_mnist and fsdd, or download=True (--download) to fetch 80 MB into {base}"
        )
    kannada = kannada_source()
    needs = {"hoda": _bitmaps, "fsdd": _sounds}
    lacking = [inside for inside, there in needs.items() if not there(_place(base, inside, there))]
    if lacking and not download:
        text = {
            "hoda": f"Hoda's training file ({' or '.join(farsi.FILES['train'])}) and {farsi.FILES['test'][0]}",
            "fsdd": f"FSDD's {fsdd.ARCHIVE} or wav files",
        }
        raise FileNotFoundError(
            f"Farsi, Kannada and spoken digits: root={base} lacks {' and '.join(text[i] for i in lacking)}, looked for "
            f"there and in its folders {', '.join(lacking)}. Correct root, or pass download=True (--download)"
        )
    for inside in lacking:
        _fetch(base / inside, inside)
    kannada.folder(base, download)
    return base


def _fetch(folder: Path, inside: str) -> None:
    if inside == "fsdd":
        fetched(SPEECH_URL, folder / fsdd.ARCHIVE, MOST)
        return
    for part in ("train", "test"):
        name = farsi.FILES[part][0]
        fetched(f"{HODA_URL}/{name.replace(' ', '%20')}", folder / name, MOST)
