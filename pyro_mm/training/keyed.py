"""Noise that belongs to a row, whichever process has it: several processes then train as one does, to rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, Normal

from pyro_mm.distributions import Mixture
from pyro_mm.ranks import derived_seed

__all__ = ["KeyedNoise", "keyed_noise"]


class KeyedNoise(Messenger):
    """Draw latents by (key, site, place): `places` `(N,)` are those of the rows in a minibatch of `total` rows.

    Every process draws the noise of all `total` rows and takes that of its own.  A site that is drawn again in the same
    pass, by another program or for another term, has other noise: `mmd` compares independent draws.

    Raises:
        ValueError: at a latent that is neither Normal nor a `Mixture` of Normals, naming it.
    """

    def __init__(self, key: int, places: Tensor, total: int) -> None:
        super().__init__()
        self.key, self.places, self.total = key, places, total
        self.drawn: Counter[str] = Counter()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is not None or msg["is_observed"] or site_is_subsample(msg):
            return
        name, fn = msg["name"], msg["fn"]
        self.drawn[name] += 1
        if isinstance(fn, Mixture) and isinstance(fn.family, type) and issubclass(fn.family, Normal):
            lead = fn.batch_shape[1:] if len(fn.batch_shape) > 1 else fn.batch_shape
            start = self._rows(torch.rand, name, "component", lead, 0, fn.loc)
            loc, scale = fn.drawn_component(fn.batch_shape, start)
        else:
            base = fn
            while isinstance(base, Independent):
                base = base.base_dist
            if not isinstance(base, Normal):
                raise ValueError(
                    f"noise by row: site '{name}' is a {type(base).__name__}; only Normal latents and mixtures of them "
                    "can be drawn so that several processes agree with one.  Leave out noise_by_row"
                )
            loc, scale = base.loc, base.scale
        noise = self._rows(torch.randn, name, "noise", loc.shape, fn.event_dim, loc)
        msg["value"], msg["done"] = loc + scale * noise, True

    def _rows(self, draw: Any, name: str, what: str, shape: torch.Size, event: int, like: Tensor) -> Tensor:
        """Numbers of this shape, of which the dimension of the rows stands left of the event's."""
        before = self.drawn[name] - 1
        seed = derived_seed(self.key, name, what, *([before] if before else []))
        source = torch.Generator(like.device).manual_seed(seed)
        dim = len(shape) - 1 - event
        if dim < 0 or shape[dim] != len(self.places):  # one latent for all rows: the same on every rank
            alike: Tensor = draw(shape, generator=source, dtype=like.dtype, device=like.device)
            return alike
        whole = (*shape[:dim], self.total, *shape[dim + 1 :])
        every: Tensor = draw(whole, generator=source, dtype=like.dtype, device=like.device)
        return every.index_select(dim, self.places)


@contextmanager
def keyed_noise(key: int, rank: int, world: int, rows: int, total: int, device: torch.device) -> Iterator[None]:
    """A pass over this rank's `rows` of a minibatch of `total`, of which it has every world-th: (0, 1) of a whole one.

    Rows beyond the minibatch's end are those that a rank repeats and nobody counts.
    What else the pass draws (random subsets, say) comes from a stream that starts from the key on every rank; the
    training's own stream is left where it was.
    """
    places = (rank + world * torch.arange(rows, device=device)).clamp(max=total - 1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        with KeyedNoise(key, places, total):
            yield
