"""Draws by a seed that leave every global generator where it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["drawn_by"]


@contextmanager
def drawn_by(seed: int) -> Iterator[None]:
    """Inside, torch draws by `seed`; afterwards its generators, those of all devices included, are as before.

    `torch.manual_seed` reaches every device, and `fork_rng` puts back those alone that it is told of.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        yield
