"""The product in which surrogates stand in for missing experts, against the product written out."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.guides import SurrogateExperts
from pyro_mm.handlers import given
from pyro_mm.modality import encoders
from pyro_mm.models import LearntScale
from pyro_mm.weights import run
from tests.helpers.oracle import LG

DIM = 2


def guide(lg: LG, **options: nn.Module) -> SurrogateExperts:
    torch.manual_seed(0)
    modalities = lg.modalities()
    others = {m.name: encoders([n for n in modalities if n is not m], DIM) for m in modalities}
    return SurrogateExperts(encoders(modalities, DIM), others, **options).double()


def product(experts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Location and scale of a product of Gaussians with powers in front: (power, distribution)."""
    precision = sum(power * q.base_dist.scale**-2 for power, q in experts)
    moment = sum(power * q.base_dist.loc * q.base_dist.scale**-2 for power, q in experts)
    return moment / precision, precision**-0.5


def test_every_pattern_of_presence_is_the_product_written_out():
    lg = LG()
    q, batch = guide(lg), lg.data(10, missing=True)
    found = q.posterior(batch).base_dist
    for i in range(10):
        row = batch[i]
        seen = [m for m in lg.dims if bool(row.mask[m])]
        parts = [(1.0, q.encoders[m](row.x[m])) for m in seen]
        for n in lg.dims:
            if n not in seen:
                parts += [(1.0 / len(seen), q.surrogates[n][m](row.x[m])) for m in seen]
        loc, scale = product(parts) if seen else (torch.zeros(1, DIM).double(), torch.ones(1, DIM).double())
        torch.testing.assert_close(found.loc[i : i + 1], loc)
        torch.testing.assert_close(found.scale[i : i + 1], scale)


def test_views_under_a_plate_are_those_of_single_batches():
    lg = LG()
    q, batch = guide(lg), lg.data(10, missing=True)
    groups = [("a", "b"), ("c",), ("a", "b", "c")]
    stacked = q.posterior(batch.subsets(groups)).base_dist
    for i, group in enumerate(groups):
        plain = q.posterior(batch.only(*group)).base_dist
        torch.testing.assert_close(stacked.loc[i], plain.loc)
        torch.testing.assert_close(stacked.scale[i], plain.scale)
    assert run(given(q, "a"), Batch({"a": batch.x["a"]}))["z"].value.shape == (10, DIM)


def test_the_fall_back_is_the_models_prior():
    lg, prior = LG(), LearntScale(DIM, dist.Normal)
    with torch.no_grad():
        prior.raw.copy_(torch.tensor([1.0, -1.0]))
    batch = lg.data(5, missing=True)
    nothing = ~batch.present()
    q = guide(lg, prior=prior.double()).posterior(batch).base_dist
    torch.testing.assert_close(q.scale[nothing], prior().base_dist.scale.expand(int(nothing.sum()), -1))


def test_exact_surrogates_give_exact_posteriors():
    """q_m the likelihood's factor times the prior's root, q' the prior's root alone: products are posteriors."""
    oracle = LinearGaussian.random({"a": 3, "b": 2}, latent=1, seed=1)

    class Factor(nn.Module):
        def __init__(self, m: str, informed: bool) -> None:
            super().__init__()
            self.m, self.informed = m, informed

        def forward(self, x: Tensor) -> torch.distributions.Independent:
            w, b, s = oracle.weights[self.m], oracle.offsets[self.m], oracle.scales[self.m]
            gain = (w * w).sum() / s**2 if self.informed else 0.0
            pull = (x - b) @ w / s**2 if self.informed else torch.zeros(len(x), 1, dtype=x.dtype)
            precision = torch.as_tensor(0.5 + gain, dtype=x.dtype)
            normal = torch.distributions.Normal(pull / precision, (precision**-0.5).expand(pull.shape))
            return torch.distributions.Independent(normal, 1)

    q = SurrogateExperts(
        {m: Factor(m, True) for m in "ab"}, {"a": {"b": Factor("b", False)}, "b": {"a": Factor("a", False)}}
    )
    batch = oracle.sample(8, seed=2)
    for seen in (("a", "b"), ("a",), ("b",)):
        mean, covariance = oracle.posterior(batch.only(*seen))
        found = q.posterior(batch.only(*seen)).base_dist
        torch.testing.assert_close(found.loc, mean)
        torch.testing.assert_close(found.scale, covariance[..., 0].sqrt())


def test_wrong_names_are_told():
    lg = LG()
    q = guide(lg)
    with pytest.raises(ValueError, match=r"the surrogate of 'a' needs networks of all other modalities; see \['c'\]"):
        SurrogateExperts(dict(q.encoders), {"a": {"b": q.encoders["b"]}})
    others = {n: dict(q.surrogates[n]) for n in "abc"} | {"d": dict(q.surrogates["a"])}
    with pytest.raises(ValueError, match=r"surrogates of \['d'\], which have no encoder"):
        SurrogateExperts(dict(q.encoders), others)
