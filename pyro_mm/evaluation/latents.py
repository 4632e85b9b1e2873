"""All continuous latents of a row as one vector of real numbers.

    u = (T_1^-1(z_1), T_2^-1(z_2), ...),   T_i the bijection from real numbers to site i's support

A density of z is one of u after multiplying by |dz/du|.  Refined proposals, Hamiltonian dynamics and density checks all
move in u, whatever the sites' supports, nested plates and order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_mm.weights import Site, Sites

__all__ = ["Coordinates", "is_continuous"]


@dataclass(frozen=True)
class Part:
    """One site's place in the vector: entries `start : start + size`, as `(nested, ..., *event)` before flattening."""

    name: str
    start: int
    size: int
    free_shape: torch.Size
    free_event: int
    event: int
    change: Any


@dataclass(frozen=True)
class Coordinates:
    """Where every site's values stand in u `(K, N, D)`.

    Attributes:
        parts: the sites, in the guide's order.
        seen: bool `(N, D)`, False at entries of a latent that is masked in a row: they mean nothing there, and neither
            densities nor Jacobians count them.
    """

    parts: tuple[Part, ...]
    seen: Tensor

    @staticmethod
    def of(sites: Sites, n: int, names: Sequence[str] | None = None) -> Coordinates:
        """The layout of latents as they were drawn under plates `(K, 1, N)`, or `(N,)`.

        Raises:
            ValueError: naming a site that has no density over real numbers.
        """
        parts, seen, start = [], [], 0
        for name in sites if names is None else names:
            site = sites[name]
            if not is_continuous(site):
                raise ValueError(f"latent '{name}' ({type(site.fn).__name__}) has no density over real numbers")
            change = biject_to(site.fn.support)
            free = change.inv(site.value)
            event = site.fn.event_dim
            free_event = event + free.dim() - site.value.dim()
            moved = _rows_second(free, n, free_event)
            parts.append(Part(name, start, moved[0, 0].numel(), moved.shape[2:], free_event, event, change))
            seen.append(_seen(site, n).unsqueeze(-1).expand(n, parts[-1].size))
            start += parts[-1].size
        return Coordinates(tuple(parts), torch.cat(seen, -1))

    @property
    def names(self) -> tuple[str, ...]:
        """The sites."""
        return tuple(p.name for p in self.parts)

    @property
    def dim(self) -> int:
        """D."""
        return self.seen.shape[-1]

    def labels(self) -> list[str]:
        """A name for every entry: `z[0]`, `z[1]`, ..., or the site's own where it is a single number."""
        return [p.name if p.size == 1 else f"{p.name}[{i}]" for p in self.parts for i in range(p.size)]

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """u `(K, N, D)` of the sites' values under plates `(K, 1, N)`, or `(K, nested, N)`."""
        n = len(self.seen)
        return torch.cat(
            [_rows_second(p.change.inv(values[p.name]), n, p.free_event).flatten(2) for p in self.parts], -1
        )

    def unpack(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The sites' values under plates `(K, nested, N)`, and log |dz/du| `(K, N)` over what is not masked."""
        values: dict[str, Tensor] = {}
        total = torch.zeros_like(u[..., 0])
        for p in self.parts:
            free = u[..., p.start : p.start + p.size].reshape(*u.shape[:2], *p.free_shape)
            free = free.movedim((0, 1), (-3 - p.free_event, -1 - p.free_event))
            values[p.name] = p.change(free)
            slope = p.change.log_abs_det_jacobian(free, values[p.name])
            batch = values[p.name].shape[: values[p.name].dim() - p.event]
            slope = slope.reshape(*batch, -1).sum(-1).movedim((-3, -1), (0, 1)).flatten(2).sum(-1)
            total = total + torch.where(self.seen[:, p.start], slope, 0.0)
        return values, total

    def __getitem__(self, rows: slice | Tensor) -> Coordinates:
        """The same layout for some of the rows.

        Raises:
            ValueError: naming a latent whose support differs between rows.
        """
        for p in self.parts:
            event = p.free_shape[len(p.free_shape) - p.free_event :]
            if p.change(self.seen.new_zeros(event, dtype=torch.float64)).dim() > p.event:
                raise ValueError(f"latent '{p.name}' has another support in every row: it cannot be refined row by row")
        return Coordinates(self.parts, self.seen[rows])


def _rows_second(free: Tensor, n: int, event: int) -> Tensor:
    """`(nested, K, nested, N, *event)`, with or without all but N, as `(K, N, nested, *event)`."""
    while free.dim() < 3 + event:
        free = free.unsqueeze(0)
    lead = free.shape[: free.dim() - event - 1]
    free = free.expand(*lead, n, *free.shape[free.dim() - event :])
    return free.movedim((-3 - event, -1 - event), (0, 1))


def _seen(site: Site, n: int) -> Tensor:
    """Bool `(N,)`: rows in which the latent is not masked (a latent nested in plates: in none of them)."""
    if not isinstance(site.mask, Tensor):
        return torch.full((n,), site.mask is not False, device=site.value.device)
    return site.mask.expand(*site.mask.shape[:-1], n).reshape(-1, n).all(0)


def is_continuous(site: Site) -> bool:
    """Has the site a density over real numbers, so that its values can be moved at will?"""
    try:
        support = site.fn.support
        biject_to(support)
    except (AttributeError, NotImplementedError):
        return False
    return not getattr(support, "is_discrete", False) and type(site.fn).__name__ not in ("Delta", "Unit")
