"""MHD-like digits out of nothing but a seed: drawn by a model of the pen, spoken by a model of the voice; no file.

It has MHD's shapes and modalities, and anybody can make it anywhere, but it is not MHD and its numbers do not compare
with those on MHD or on `mhd_like`: synthetic classes are easier to tell apart than people's.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import torch

from pyro_mm.batch import Batch
from pyro_mm.data.digits import SHARES
from pyro_mm.data.fetch import cache_folder
from pyro_mm.data.handwriting import drawn_digits
from pyro_mm.data.mel import log_mel
from pyro_mm.data.mhd_like_rows import LEVELS, WIDTHS
from pyro_mm.data.mhd_modalities import mhd_modalities
from pyro_mm.data.pen import as_vector, rendered
from pyro_mm.data.speech import spoken_digits
from pyro_mm.data.splits import Splits, stratified
from pyro_mm.data.stored import read_arrays, write_arrays
from pyro_mm.files import BadFile

__all__ = ["mhd_drawn"]

FORMAT = 1  # of the cache; changes whenever the same seed gives other rows
LEAST = 100  # rows: every class in every split
SOUNDS_AT_ONCE = 250
log = logging.getLogger(__name__)


def mhd_drawn(seed: int = 0, n: int = 2000) -> Splits:
    """MHD-like digits drawn and spoken by models, no download: `image`, `trajectory`, `sound`, `label` 0..9.

    `image` (1, 28, 28), `trajectory` (200,) and `sound` (1, 32, 128) lie in [0, 1].  A row's picture is drawn along its
    own trajectory by a pen of random width; its sound is of the same digit and otherwise independent.  The rows are
    split 70/10/20 within every class.  The first call takes some ten seconds; what it makes is kept in
    `cache_folder()`.

    Args:
        seed: of everything: rows of two seeds have nothing in common.
        n: rows in all, at least 100.

    Raises:
        ValueError: n is too small, or the seed is not between 0 and 2**32 - 1.
    """
    if n < LEAST:
        raise ValueError(f"mhd_drawn: n must be at least {LEAST}, so that every split holds every class; got {n}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"mhd_drawn: the seed must be between 0 and 2**32 - 1, got {seed}")
    key = hashlib.sha256(repr((FORMAT, seed, n)).encode()).hexdigest()[:12]
    store = cache_folder() / f"mhd_drawn-{key}.npz"
    rows = _kept(store, key)
    if rows is None:
        rows = _made(seed, n)
        try:
            write_arrays(store, key, rows)
        except OSError as error:  # a read-only home must not stop anybody
            log.info("mhd_drawn: the rows could not be kept for next time: %s", error)
    every = _batch(rows)
    train, validation, test = (every[part] for part in stratified(every.x["label"], SHARES, seed))
    note = f"MHD-like, drawn: sigma-lognormal pen and formant voice, not MHD; 70/10/20 within every class; seed {seed}"
    return Splits("mhd_drawn", mhd_modalities(), train, validation, test, "label", note)


def _made(seed: int, n: int) -> dict[str, np.ndarray]:
    """`image` (n, 28, 28) and `sound` (n, 32, 128) in 256 levels, `trajectory` (n, 200) float16, `label` (n,) uint8."""
    random = np.random.RandomState((seed, 3))
    label = random.permutation(np.arange(n) % 10)
    points = drawn_digits(label, seed)
    pens = zip(points, random.uniform(*WIDTHS, n), strict=True)
    waves = torch.from_numpy(spoken_digits(label, seed))
    sounds = [(log_mel(w) * LEVELS).round().to(torch.uint8) for w in waves.split(SOUNDS_AT_ONCE)]
    return {
        "image": np.stack([np.rint(rendered(p, width) * LEVELS).astype(np.uint8) for p, width in pens]),
        "trajectory": as_vector(points).astype(np.float16),
        "sound": torch.cat(sounds).numpy(),
        "label": label.astype(np.uint8),
    }


def _batch(rows: dict[str, np.ndarray]) -> Batch:
    dtype = torch.get_default_dtype()
    x = {m: torch.from_numpy(values) for m, values in rows.items()}
    return Batch(
        {
            "image": x["image"][:, None].to(dtype).div_(LEVELS),
            "trajectory": x["trajectory"].to(dtype),
            "sound": x["sound"][:, None].to(dtype).div_(LEVELS),
            "label": x["label"].long(),
        }
    )


def _kept(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The rows kept in `path`; None if there are none or they are damaged, and so must be made again."""
    try:
        found, rows = read_arrays(path)
    except FileNotFoundError:
        return None
    except (BadFile, OSError) as error:
        log.info("mhd_drawn: the rows are made again: %s", error)
        return None
    return rows if found == key else None
