"""Pairs of `pairs.py` whose draws do not follow their densities, or whose densities are not what weights need."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture
from tests.helpers.pairs import Guide, Model, MoE


class OneExpert(Mixture):
    """All draws come from one component; the density is the mixture's."""

    def _component(self, shape: torch.Size, start: Tensor | None = None) -> Tensor:
        ends = self.weights.double().cumsum(-1)
        u = torch.rand((), dtype=torch.float64)
        return (u >= (ends / ends[..., -1:])[..., :-1]).sum(-1).expand(shape)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> OneExpert:
        wide = super().expand(batch_shape)
        return OneExpert(wide.loc, wide.scale, wide.weights)


class OneExpertForAll(MoE):
    """All particles from one expert, weighted by the mixture's density (MultiVae's MMVAE and MoPoE)."""

    def mixture(self, loc: Tensor, scale: Tensor, weights: Tensor) -> dist.TorchDistribution:
        return OneExpert(loc, scale, weights)


class _Own(dist.Normal):
    """A Normal whose `expand` keeps the class, and whose density is that of another scale."""

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> _Own:
        return type(self)(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class VarianceAsScale(_Own):
    """Draws have standard deviation `scale`, the density has variance `scale`."""

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Normal(self.loc, self.scale.sqrt()).log_prob(value)


class Wide(_Own):
    """Draws are 1.2 times as wide as the density."""

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.loc + 1.2 * (super().rsample(sample_shape) - self.loc)


class Unnormalised(_Own):
    """The density lacks its -log scale."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + self.scale.log()


class GuideVariance(Guide):
    """A standard deviation scored as a variance."""

    def family(self, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return VarianceAsScale(loc, scale).to_event(1)


class GuideWide(Guide):
    """Draws wider than the density."""

    def family(self, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return Wide(loc, scale).to_event(1)


class GuideUnnormalised(Guide):
    """A density that does not integrate to 1."""

    def family(self, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return Unnormalised(loc, scale).to_event(1)


class ModelVariance(Model):
    """The same mistake in an observation."""

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        return VarianceAsScale(self.nets[m](z), torch.tensor(0.5).double()).to_event(1)


class Upward(_Own):
    """loc + |noise| where scale < 1: no density below loc.  Where scale is 1, the prior."""

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        value = super().rsample(sample_shape)
        return torch.where(self.scale < 1, self.loc + (value - self.loc).abs(), value)

    def log_prob(self, value: Tensor) -> Tensor:
        half = torch.where(value >= self.loc, super().log_prob(value) + torch.tensor(2.0).log(), -torch.inf)
        return torch.where(self.scale < 1, half, super().log_prob(value))


class OneSided(Guide):
    """Given data, the guide covers half of the space."""

    def family(self, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return Upward(loc, scale).to_event(1)


class Flipped(dist.Bernoulli):
    """Draws are the opposite of what the density says (discrete, so that only bounds can tell)."""

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return 1 - super().sample(sample_shape)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Flipped:
        return Flipped(logits=self.logits.expand(batch_shape))


class WrongSampler(Model):
    """Binary observations whose sampler has the wrong sign."""

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        return Flipped(logits=5 * self.nets[m](z)).to_event(1)

    def observe(self, m: str, px: dist.TorchDistribution, batch: Batch) -> None:
        with poutine.mask(mask=batch.mask[m]):
            pyro.sample(m, px, obs=(batch.x[m] > 0).double())


class Leaking(Model):
    """Where b is missing, its decoder looks at a, hidden or not."""

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        leak = torch.where(batch.mask["b"].unsqueeze(-1), 0.0, batch.x["a"][..., :2])
        return dist.Normal(self.nets[m](z) + (leak if m == "b" else 0.0), 0.5).to_event(1)
