"""A row's posterior up to its normaliser, as a function of one real vector, with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.components import log_density
from pyro_mm.evaluation.latents import Coordinates
from pyro_mm.evaluation.proposals import summed
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import depth_of, replay, run

__all__ = ["Target", "exploring", "value_and_gradient"]

Density = Callable[[Tensor], Tensor]


class Target:
    """log p(x_S, z(u)) + log |dz/du| for every row, S what is present in it; enumerated latents are summed over.

    Args:
        chunk: rows x particles in one pass.

    Raises:
        ValueError: naming a latent that the coordinates lack and that is not enumerated: with it drawn anew at every
            call this would be no function of u.
    """

    def __init__(self, model: Program, batch: Batch, coordinates: Coordinates, chunk: int = 4096) -> None:
        self.model, self.batch, self.coordinates, self.chunk = model, batch, coordinates, chunk
        self.particles = max(1, chunk // max(1, len(batch)))
        sites = run(particles(model, 1), batch)
        left = [n for n, s in sites.items() if not s.observed and n not in coordinates.names]
        if unknown := [n for n in left if not sites[n].enumerated]:
            raise ValueError(
                f"the model's latents {unknown} are not in the guide: a proposal cannot be refined for them; let the "
                "guide draw them, or mark discrete ones with infer={'enumerate': 'parallel'}"
            )
        self.depth = depth_of(sites) if left else None

    def __getitem__(self, rows: Tensor) -> Target:
        """That of some rows, in the order of the index."""
        return Target(self.model, self.batch[rows], self.coordinates[rows], self.chunk)

    def __call__(self, u: Tensor) -> Tensor:
        """`(K, N, D)` to `(K, N)`, nats, float64."""
        with pyro.validation_enabled(False):
            return torch.cat([self._pass(part) for part in u.split(self.particles)])

    def _pass(self, u: Tensor) -> Tensor:
        values, jacobian = self.coordinates.unpack(u)
        sites = replay(particles(self.model, len(u)), self.batch, values, self.depth)
        return summed(log_density(sites, self.depth)).double() + jacobian.double()

    def prior(self, k: int) -> Tensor:
        """K draws of u from the model's prior, `(K, N, D)`."""
        parts = []
        for start in range(0, k, self.particles):
            with torch.no_grad():
                sites = run(particles(self.model, min(self.particles, k - start)), self.batch)
            parts.append(self.coordinates.pack({n: s.value for n, s in sites.items()}))
        return torch.cat(parts)

    def gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Values `(K, N)` and gradients `(K, N, D)`."""
        parts = [value_and_gradient(self._pass, part) for part in u.split(self.particles)]
        return torch.cat([v for v, _ in parts]), torch.cat([g for _, g in parts])


@contextmanager
def exploring() -> Iterator[None]:
    """With gradients, and without validation: a step may well leave the support, where the density is not finite."""
    # cuDNN has no backward pass of recurrent networks in evaluation mode.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False), pyro.validation_enabled(False):
        yield


def value_and_gradient(density: Density, u: Tensor) -> tuple[Tensor, Tensor]:
    """Of a density of points `(K, N, D)` that treats every one by itself; 0 where the density is not finite."""
    with exploring():
        u = u.detach().requires_grad_()
        value = density(u)
        (slope,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
