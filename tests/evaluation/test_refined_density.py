"""A refined proposal's density, and its sampler."""

from __future__ import annotations

from math import inf

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_mm.batch import Batch
from pyro_mm.evaluation.check.densities import bridge
from pyro_mm.evaluation.latents import Coordinates
from pyro_mm.evaluation.refine import Refined
from pyro_mm.handlers import particles
from pyro_mm.weights import run

D = torch.float64


def made(dof: float, positive: bool = False, n: int = 6, dim: int = 3) -> Refined:
    """Some density over a latent of two coordinates and one that is masked in every third row."""

    def guide(batch: Batch) -> None:
        family = dist.LogNormal if positive else dist.Normal
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", family(torch.zeros(2, dtype=D), 1.0).to_event(1))
            with pyro.poutine.mask(mask=batch.mask["a"]):
                pyro.sample("w", family(torch.zeros(dim - 2, dtype=D), 1.0).to_event(1))

    batch = Batch({"a": torch.zeros(n, 1, dtype=D)}, {"a": torch.arange(n) % 3 > 0})
    where = Coordinates.of(run(particles(guide, 1), batch), n)
    root = torch.tril(0.3 * torch.randn(n, dim, dim, dtype=D), -1)
    root = root + torch.diag_embed(0.5 + torch.rand(n, dim, dtype=D))
    return Refined(where, torch.randn(n, dim, dtype=D), root, dof)


@pytest.mark.parametrize("dof", [inf, 4.0])
def test_the_density_is_that_of_the_multivariate_t(dof: float) -> None:
    """And in rows in which w is masked, of z alone: its own marginal."""
    q = made(dof)
    u = 2 * torch.randn(5, 6, 3, dtype=D)
    found = q.log_density(u)
    for i in range(6):
        size = 3 if i % 3 else 2
        loc, root = q.loc[i, :size], q.root[i, :size, :size]
        law = dist.MultivariateStudentT(dof, loc, root) if dof < inf else dist.MultivariateNormal(loc, scale_tril=root)
        torch.testing.assert_close(found[:, i], law.log_prob(u[:, i, :size]))
    lost = u.clone()
    lost[:, 0, 2] = inf
    torch.testing.assert_close(q.log_density(lost)[:, 0], found[:, 0])


@pytest.mark.parametrize("dof", [inf, 4.0])
@pytest.mark.parametrize("positive", [False, True])
def test_the_density_of_the_latents_integrates_to_one(dof: float, positive: bool) -> None:
    """Over z itself, its Jacobian included: sum over the cells of a grid in log z for a positive one."""
    q = made(dof, positive, n=3)[torch.tensor([0])]
    line = torch.linspace(-60, 60, 1201, dtype=D)
    u = torch.cartesian_prod(line, line).view(-1, 1, 2)
    z = (u.exp() if positive else u).unsqueeze(1)
    size = torch.where(torch.tensor(positive), u.sum(-1), 0.0) + 2 * (line[1] - line[0]).log()
    w = torch.ones(len(u), 1, 1, 1, dtype=D)
    total = torch.logsumexp((q.log_prob({"z": z, "w": w}, len(u)) + size)[:, 0], 0)
    assert total.exp().item() == pytest.approx(1, abs=2e-3 if dof < inf else 1e-6)


@pytest.mark.parametrize("dof", [inf, 4.0])
@pytest.mark.parametrize("positive", [False, True])
def test_the_sampler_matches_the_density(dof: float, positive: bool) -> None:
    """Mean of r / (q/2 + r/2) = 1; and a density that is off by a tenth in its widths is found out."""
    q = made(dof, positive, n=60)
    rows = torch.arange(60)[torch.arange(60) % 3 > 0]
    part = q[rows]
    pilots, draws = part.sample(200), part.sample(2000)
    off, error = bridge(pilots, draws, part.log_density)
    assert abs(off) < 4 * error and error < 0.002
    narrow = Refined(part.coordinates, part.loc, 0.9 * part.root, dof)
    off, error = bridge(pilots, draws, narrow.log_density)
    assert abs(off) > 6 * error
    made_ = q.draw(50)
    torch.testing.assert_close(made_.log_q, q.log_prob(made_.values, 50))


def test_rows_are_replaced_one_by_one() -> None:
    one, other, at = made(inf), made(inf), torch.tensor([1, 4])
    both = one.replaced(at, other[at])
    u = torch.randn(5, 6, 3, dtype=D)
    expected = one.log_density(u)
    expected[:, at] = other.log_density(u)[:, at]
    torch.testing.assert_close(both.log_density(u), expected)
    with pytest.raises(ValueError, match="inf and 4 degrees of freedom cannot stand side by side"):
        one.replaced(at, made(4.0)[at])
