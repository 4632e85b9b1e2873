"""Cascades take the better proposal row by row, and one mode of two is flagged."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation import Cascade, Laplace, log_marginal
from pyro_mm.evaluation.refine import Refined
from pyro_mm.evaluation.refine.cascade import efficiency
from pyro_mm.evaluation.target import Target
from tests.helpers.estimates import Folded, OneMode, Stretched
from tests.helpers.refined import LG, covariance, refined

D = torch.float64


def test_one_mode_of_two_is_flagged() -> None:
    """Refining sharpens the view of the mode that the guide knows; what shows the other are the guide and the prior
    beside it, and the k-hat of what they find.
    """
    x = torch.full((60,), 6.0, dtype=D) + 0.5 * torch.randn(60, dtype=D)
    batch = Batch({"x": x})
    alone = refined(Folded(), OneMode(), batch, Laplace())
    where = Target(Folded(), batch, alone.coordinates)
    with torch.no_grad():
        u = alone.sample(2000)
        seen = torch.logsumexp(where(u) - alone.log_density(u), 0) - log(2000)
    assert (seen - Folded.exact(x)).mean().item() == pytest.approx(-log(2), abs=0.05), "half of the mass, silently"
    ev = log_marginal(Folded(), OneMode(), batch, 2000, refine=Laplace(), seed=0)
    error = ev.estimate - Folded.exact(x)
    assert abs(error.mean().item()) < 0.1
    assert ev.unreliable_share > 0.9 and ev.khat.median().item() > 1
    silent = log_marginal(Folded(), OneMode(), batch, 2000, refine=Laplace(), defensive=0.0, seed=0)
    assert silent.unreliable_share < 0.2 and (silent.estimate - Folded.exact(x)).mean().item() < -0.6


class Fixed:
    """A refiner that finds what it is told, and counts the rows that it was asked for."""

    def __init__(self, scale: Tensor) -> None:
        self.scale, self.rows = scale, 0

    def __call__(self, target: Target, pilots: Tensor, before: Refined | None = None) -> Refined:
        mean, exact = LG.posterior(target.batch)
        self.rows += len(mean)
        scale = self.scale[target.batch.x["row"].long()]
        return Refined(target.coordinates, mean, scale.view(-1, 1, 1) * torch.linalg.cholesky(exact))


def test_a_cascade_takes_the_best_for_every_row() -> None:
    """First good in even rows and bad in the others; then good in half of these and worse in the rest."""
    n = 40
    kind = torch.arange(n) % 4
    data_ = LG.sample(n, seed=1)
    batch = Batch({**data_.x, "row": torch.arange(n).double()})
    first = Fixed(torch.tensor([1.1, 5.0, 1.1, 5.0], dtype=D)[kind])
    second = Fixed(torch.tensor([9.0, 1.2, 9.0, 20.0], dtype=D)[kind])
    third = Fixed(torch.full((n,), 1.0, dtype=D))
    q = refined(LG.model(), Stretched(LG, 1.0), batch, Cascade((first, second)))
    assert (first.rows, second.rows) == (n, n // 2)
    found = covariance(q).diagonal(dim1=-2, dim2=-1) / LG.posterior(batch)[1].diagonal(dim1=-2, dim2=-1)
    wanted = torch.tensor([1.1, 1.2, 1.1, 5.0], dtype=D)[kind].square()
    torch.testing.assert_close(found, wanted.unsqueeze(-1).expand(n, 2))
    refined(LG.model(), Stretched(LG, 1.0), batch, Cascade((Fixed(torch.ones(n, dtype=D)), third)))
    assert third.rows == 0


@pytest.mark.parametrize("scale", [1.2, 2.0])
def test_the_efficiency_of_too_wide_a_gaussian_in_closed_form(scale: float) -> None:
    """(sqrt(2 c^2 - 1) / c^2)^D."""
    batch = LG.sample(200, seed=1)
    where = refined(LG.model(), Stretched(LG, 1.0), batch, Laplace(inflate=1.0))
    q = Refined(where.coordinates, where.loc, scale * where.root)
    with torch.no_grad():
        share = efficiency(q, Target(LG.model(), batch, q.coordinates), 2000)
    assert share.mean().item() == pytest.approx(((2 * scale**2 - 1) ** 0.5 / scale**2) ** 2, rel=0.02)
