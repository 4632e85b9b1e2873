"""The random streams that training draws from: saved, restored, and left alone while something else draws.

Noise in this library comes from torch; Python's and NumPy's streams are kept too, because a user's data set may
augment with them.  States hold tensors, numbers and lists only, so that `torch.load` reads them by default.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch

__all__ = ["aside", "noise_state", "set_noise"]


def noise_state(device: torch.device) -> dict[str, Any]:
    """Where every global stream stands, that of `device` included."""
    version, words, spare = random.getstate()
    kind, keys, place, has_spare, cached = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), spare],
        "numpy": [kind, np.asarray(keys).tolist(), place, has_spare, cached],
    }
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["device"] = torch.mps.get_rng_state()
    return state


def set_noise(state: dict[str, Any], device: torch.device) -> None:
    """Put every global stream back to `state`; a state from a machine without this device sets the others."""
    torch.set_rng_state(state["torch"])
    version, words, spare = state["python"]
    random.setstate((version, tuple(words), spare))
    kind, keys, place, has_spare, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_spare, cached))
    if "device" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)
    elif "device" in state and device.type == "mps":
        torch.mps.set_rng_state(state["device"])


@contextmanager
def aside(device: torch.device, seed: int | None = None, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Draw without disturbing training: afterwards every stream, `generators` included, is where it was.

    With a seed all of them start from it, so that the same draws come every time.
    """
    before, places = noise_state(device), [g.get_state() for g in generators]
    try:
        if seed is not None:
            pyro.set_rng_seed(seed)
            for g in generators:
                g.manual_seed(seed)
        yield
    finally:
        set_noise(before, device)
        for g, place in zip(generators, places, strict=True):
            g.set_state(place)
