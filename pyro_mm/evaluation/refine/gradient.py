"""Semi-amortised inference: some gradient steps on a row's own variational parameters."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from pyro_mm.evaluation.refine.ascent import ascend
from pyro_mm.evaluation.refine.density import Refined
from pyro_mm.evaluation.refine.laplace import inflation, spread_of
from pyro_mm.evaluation.target import Target

__all__ = ["GradientSteps"]


@dataclass(frozen=True)
class GradientSteps:
    """u ~ N(m, R diag(s^2) R'), m and s from Adam steps on the row's own ELBO (Kim et al. 2018).

    R is the identity: a mean-field Gaussian, started at the guide's moments.  After another refiner (`Cascade`) it is
    the root of what that one found, whose mean and widths become those that minimise KL(q || p).  The gradient is that
    of sticking the landing (Roeder et al. 2017), which vanishes at the optimum.  What the guide gains by the mean-field
    form is its amortisation gap (`gaps`); what is left to log p(x) is the gap of the family.

    Args:
        steps: of Adam.
        draws: of u in each.
        rate: first step size in units of the start's standard deviations, decreasing as a cosine to 0.
        inflate, dof: as for `Laplace`; 1 and infinity are the variational optimum itself.
    """

    steps: int = 100
    draws: int = 8
    rate: float = 0.1
    inflate: float | None = None
    dof: float = inf

    def __call__(self, target: Target, pilots: Tensor, before: Refined | None = None) -> Refined:
        """From the guide's draws of u `(P, N, D)`, or from the density `before`."""
        if before is None:
            loc, root = pilots.mean(0), torch.diag_embed(spread_of(pilots))
        else:
            loc, root = before.loc.to(pilots.dtype), before.root.to(pilots.dtype)
        shift, log_width = self.fit(target, loc, root)
        loc = loc + torch.einsum("nij,nj->ni", root, shift)
        root = inflation(self.inflate, loc.shape[-1]) * root * log_width.exp().unsqueeze(-2)
        return Refined(target.coordinates, loc, root, self.dof, "gradient steps")

    def fit(self, target: Target, loc: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log-widths `(N, D)` in units of the start's root."""

        seen = target.coordinates.seen  # elsewhere widths would grow without end

        def slope(theta: Tensor) -> Tensor:
            # Antithetic pairs: what is odd in the noise cancels.
            noise = torch.randn((self.draws + 1) // 2, *loc.shape, dtype=loc.dtype, device=loc.device)
            noise = torch.cat([noise, -noise])[: self.draws]
            width = theta[1].exp()
            _, gradient = target.gradient(loc + torch.einsum("nij,knj->kni", root, theta[0] + width * noise))
            # d/dv [log p(x, u) - log q(v)], u = loc + R v; -d log q / dv = noise / width.
            path = torch.einsum("nij,kni->knj", root, gradient.to(root.dtype)) + noise / width
            return torch.stack([path.mean(0), (path * noise).mean(0) * width]) * seen

        theta = ascend(loc.new_zeros(2, *loc.shape), slope, self.steps, self.rate)
        return theta[0], theta[1]
