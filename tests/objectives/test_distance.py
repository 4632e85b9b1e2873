"""Distances between guides: against optimal transport by quadrature, and code written by hand."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, PrivateExperts, mixture_of_experts, product_of_posteriors
from pyro_mm.handlers import given, in_subsets
from pyro_mm.modality import encoders
from pyro_mm.objectives import symmetric_kl, wasserstein
from tests.helpers.oracle import LG, assert_same_gradients, gradients

D = torch.float64


def made(fuse=product_of_posteriors) -> tuple[LG, Experts]:
    lg = LG()
    torch.manual_seed(4)
    return lg, Experts(encoders(lg.modalities(), 2), fuse).double()


def moments(guide: Experts, batch: Batch, m: str) -> tuple[Tensor, Tensor]:
    """Of q(z|x_m), no library code but the network."""
    out = guide.encoders[m].net(batch.x[m])
    return out[:, :2], nn.functional.softplus(out[:, 2:]) + 1e-4


def by_hand(guide: Experts, batch: Batch, m: str, n: str, power: int) -> Tensor:
    (loc, scale), (other, other_scale) = moments(guide, batch, m), moments(guide, batch, n)
    both = batch.mask[m] & batch.mask[n]
    square = ((loc - other) ** 2 + (scale - other_scale) ** 2).sum(-1)[both]
    return (square if power == 2 else square.sqrt()).sum() / len(batch)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("missing", [False, True])
def test_value_and_gradient_by_hand(power: int, missing: bool) -> None:
    """Rows that lack either modality are left out of the sum, not of the mean."""
    lg, guide = made()
    batch = lg.data(10, missing=missing)
    found = wasserstein(given(guide, "a"), given(guide, "b"), power=power)(batch)
    truth = by_hand(guide, batch, "a", "b", power)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(found, guide), gradients(truth, guide))
    assert truth.item() > 0


class Two(nn.Module):
    """z ~ N(loc, scale^2) of one dimension, and w beside it."""

    def __init__(self, loc: float, scale: float, w: float | None = None) -> None:
        super().__init__()
        self.loc, self.scale, self.w = loc, scale, w

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.full((len(batch), 1), self.loc, dtype=D), self.scale).to_event(1))
            if self.w is not None:
                pyro.sample("w", dist.Normal(torch.full((len(batch),), self.w, dtype=D), 1.0))


def test_it_is_the_cost_of_optimal_transport() -> None:
    """In one dimension W_2^2 is the integral of (F^-1(u) - G^-1(u))^2 over u in (0, 1)."""
    u = (torch.arange(400_000, dtype=D) + 0.5) / 400_000
    one, two = torch.distributions.Normal(0.3, 0.5), torch.distributions.Normal(-1.1, 1.7)
    cost = (one.icdf(u) - two.icdf(u)).square().mean()
    batch = Batch({"x": torch.zeros(3, 1, dtype=D)})
    found = wasserstein(Two(0.3, 0.5), Two(-1.1, 1.7), power=2)(batch)
    torch.testing.assert_close(found, cost, rtol=1e-4, atol=0.0)
    # Independent latents: costs add up, and the root is taken of the sum.
    together = wasserstein(Two(0.3, 0.5, w=2.0), Two(-1.1, 1.7, w=-1.0))(batch)
    torch.testing.assert_close(together, (found + 9.0).sqrt())


def test_private_latents_count_where_their_modality_is_present() -> None:
    lg, shared = made()
    torch.manual_seed(5)
    one, two = (PrivateExperts(shared, encoders(lg.modalities()[:1], 3)).double() for _ in range(2))
    batch = lg.data(10, missing=True)
    seen = batch.mask["a"].unsqueeze(-1)
    (q, p) = (guide.private["a"](batch.x["a"]).base_dist for guide in (one, two))
    square = torch.where(seen, (q.loc - p.loc) ** 2 + (q.scale - p.scale) ** 2, 0.0).sum(-1)
    torch.testing.assert_close(wasserstein(one, two)(batch), square.sqrt().mean())


def test_no_distance_has_no_gradient_and_no_nan() -> None:
    lg, guide = made()
    loss = wasserstein(guide, guide)(lg.data(10, missing=True))
    assert loss.item() == 0.0
    assert all(bool((g == 0).all()) for g in gradients(loss, guide).values())


def test_subsets_add_up() -> None:
    lg, guide = made()
    torch.manual_seed(6)
    other, batch = Experts(encoders(lg.modalities(), 2), product_of_posteriors).double(), lg.data(10, missing=True)
    subsets = [("a", "b"), ("c",)]
    stacked = wasserstein(in_subsets(guide, subsets), in_subsets(other, subsets))(batch)
    apart = [wasserstein(given(guide, *s), given(other, *s))(batch) for s in subsets]
    torch.testing.assert_close(stacked, sum(apart))


def test_the_symmetric_divergence_by_hand() -> None:
    lg, guide = made()
    batch = lg.data(10)
    q, p = (dist.Normal(*moments(guide, batch, m)).to_event(1) for m in ("a", "b"))
    truth = (kl_divergence(q, p) + kl_divergence(p, q)).mean()
    found = symmetric_kl(given(guide, "a"), given(guide, "b"))(batch)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(found, guide), gradients(truth, guide))


def test_what_it_cannot_measure_is_named() -> None:
    lg, guide = made(mixture_of_experts)
    batch = lg.data(4)
    with pytest.raises(ValueError, match="power 1 or 2, got 3"):
        wasserstein(guide, guide, power=3)
    with pytest.raises(
        ValueError, match=r"site 'z': the 2-Wasserstein distance is known for Normals .*not for Mixture"
    ):
        wasserstein(guide, given(guide, "a"))(batch)
    with pytest.raises(ValueError, match=r"guides of the same sites; these have \['z'\] and \['z', 'w'\]"):
        wasserstein(Two(0.0, 1.0), Two(0.0, 1.0, w=0.0))(batch)


def test_how_it_is_printed() -> None:
    _, guide = made()
    q, p = given(guide, "a"), given(guide, "b")
    assert repr(-2 * wasserstein(q, p)) == "maximise  2 W2(q(z | a), q(z | b))"
    assert wasserstein(q, p, power=2)._repr_latex_() == r"$-W_2^2(q(z \mid a), q(z \mid b))$"
