"""An explicit density of a row's latents: a Gaussian or Student t with full covariance, in real coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, pi

import torch
from torch import Tensor

from pyro_mm.evaluation.components import Drawn
from pyro_mm.evaluation.latents import Coordinates
from pyro_mm.weights import Sites

__all__ = ["Refined"]


class Refined:
    """u_n ~ t_nu(loc_n, root_n root_n'), z = z(u): a component of a proposal, one density per row.

    Args:
        loc: `(N, D)`.
        root: lower triangular `(N, D, D)`.
        dof: nu; infinite for a Gaussian.
        label: what made it.

    Entries of masked latents are drawn but not scored: their mean becomes 0, their covariance the identity, apart from
    the others.
    """

    def __init__(
        self, coordinates: Coordinates, loc: Tensor, root: Tensor, dof: float = inf, label: str = "refined"
    ) -> None:
        self.coordinates, self.rows, self.dof, self.label = coordinates, len(loc), dof, label
        seen = coordinates.seen
        both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
        self.loc = torch.where(seen, loc, 0.0).double()
        self.root = torch.where(both, root, torch.eye(root.shape[-1]).to(root)).double()
        self.dtype = loc.dtype

    def __getitem__(self, rows: Tensor) -> Refined:
        """The densities of some rows, in the order of the index."""
        return Refined(self.coordinates[rows], self.loc[rows].to(self.dtype), self.root[rows], self.dof, self.label)

    @property
    def names(self) -> Sequence[str]:
        return self.coordinates.names

    def replaced(self, rows: Tensor, other: Refined) -> Refined:
        """This with the densities of some rows put in place of its own."""
        if other.dof != self.dof:
            raise ValueError(
                f"densities of {self.dof:g} and {other.dof:g} degrees of freedom cannot stand side by side"
            )
        loc, root = self.loc.clone(), self.root.clone()
        loc[rows], root[rows] = other.loc, other.root
        return Refined(self.coordinates, loc.to(self.dtype), root, self.dof, "refined")

    def sample(self, k: int) -> Tensor:
        """u `(K, N, D)`, rounded to the model's precision."""
        noise = torch.randn(k, *self.loc.shape, dtype=torch.float64, device=self.loc.device)
        if self.dof < inf:
            gamma = torch.distributions.Gamma(self.loc.new_tensor(self.dof / 2), self.loc.new_tensor(self.dof / 2))
            noise = noise / gamma.sample((k, self.rows, 1)).sqrt()
        return (self.loc + torch.einsum("nij,knj->kni", self.root, noise)).to(self.dtype)

    def draw(self, k: int) -> Drawn:
        """K values per row, scored as they are after rounding."""
        u = self.sample(k)
        values, jacobian = self.coordinates.unpack(u)
        return Drawn(values, self.log_density(u) - jacobian)

    def log_prob(self, values: dict[str, Tensor], k: int) -> Tensor:
        """Log-density `(K, N)` of the latents' values."""
        u = self.coordinates.pack(values)
        return self.log_density(u) - self.coordinates.unpack(u)[1]

    def log_density(self, u: Tensor) -> Tensor:
        """Of u `(K, N, D)`, without the Jacobian of z(u)."""
        seen = self.coordinates.seen
        away = torch.where(seen, u.double() - self.loc, 0.0).permute(1, 2, 0)  # (N, D, K): one solve per row
        square = torch.linalg.solve_triangular(self.root, away, upper=False).square().sum(1).T
        size = seen.sum(-1).double()
        spread = torch.where(seen, self.root.diagonal(dim1=-2, dim2=-1), 1.0).log().sum(-1)
        if self.dof == inf:
            return -0.5 * (square + size * log(2 * pi)) - spread
        half = self.dof / 2
        constant = torch.lgamma(half + size / 2) - torch.lgamma(self.loc.new_tensor(half))
        constant = constant - size / 2 * log(self.dof * pi) - spread
        return constant - (half + size / 2) * torch.log1p(square / self.dof)

    def seen(self, name: str) -> Tensor:
        """Rows in which the latent is not masked, bool `(N,)`."""
        part = next(p for p in self.coordinates.parts if p.name == name)
        return self.coordinates.seen[:, part.start]

    def check(self, model: Sites) -> None:
        """Its latents are the guide's, which were checked when it was made."""
