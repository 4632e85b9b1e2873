"""The pairs of `pairs.py` with one mistake each: every class is the good one but for what its docstring says."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from tests.helpers.pairs import SIZES, Guide, GuideOfPrivate, Model


class IndexSite(Guide):
    """The expert's index is a sample site."""

    def forward(self, batch: Batch) -> None:
        super().forward(batch)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("index", dist.Categorical(logits=torch.zeros(2)))


class ThreeLatents(Guide):
    """One latent dimension too many."""

    def family(self, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return dist.Normal(loc[..., [0, 1, 1]], scale[..., [0, 1, 1]]).to_event(1)


class OutsidePlate(Model):
    """A latent that all rows share."""

    def forward(self, batch: Batch) -> None:
        pyro.sample("shared", dist.Normal(0.0, 1.0))
        super().forward(batch)


class OtherPlate(Guide):
    """The plate has another name."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("rows", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))


class ObsMask(Model):
    """obs_mask= makes latents of missing values."""

    def observe(self, m: str, px: dist.TorchDistribution, batch: Batch) -> None:
        pyro.sample(m, px, obs=batch.x[m], obs_mask=batch.mask[m])


class NotObserved(Model):
    """obs= is forgotten."""

    def observe(self, m: str, px: dist.TorchDistribution, batch: Batch) -> None:
        with poutine.mask(mask=batch.mask[m]):
            pyro.sample(m, px)


class GuideFactor(Guide):
    """A factor in the guide."""

    def forward(self, batch: Batch) -> None:
        super().forward(batch)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.factor("penalty", torch.zeros(len(batch)), has_rsample=True)


class WrongEvent(Model):
    """Observations have one element too few."""

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        return dist.Normal(self.nets[m](z)[..., :1], 0.5).to_event(1)


class UnmaskedPrivate(GuideOfPrivate):
    """The private latent is masked in the model only."""

    def forward(self, batch: Batch) -> None:
        Guide.forward(self, batch)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("w_a", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))


class GlobalParam(Guide):
    """pyro.param."""

    def family(self, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return super().family(loc, scale * pyro.param("global_scale", torch.ones(2).double()) ** 0)


class Popping(Guide):
    """The guide takes a modality out of the batch (MultiVae's MMVAE+ did)."""

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        q = super().posterior(batch)
        batch.x.popitem()
        return q


class Centring(Guide):
    """The guide centres the data in place."""

    def expert(self, m: str, batch: Batch) -> Tensor:
        batch.x[m] -= 0.5
        return super().expert(m, batch)


class Counting(Guide):
    """A buffer counts the calls, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        self.calls += 1
        return super().posterior(batch)


class Remembering(Counting):
    """The buffer is replaced by a new one."""

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        self.calls = self.calls + 1
        return Guide.posterior(self, batch)


class Drifting(Guide):
    """An attribute remembers the last call."""

    drift = 0.0

    def expert(self, m: str, batch: Batch) -> Tensor:
        self.drift += 1e-3
        return super().expert(m, batch) + self.drift


class Dropping(Guide):
    """Modality drop-out drawn with plain torch: the trace does not know of it."""

    def seen(self, m: str, batch: Batch) -> Tensor:
        return super().seen(m, batch) & (torch.rand(()) < 0.5)


class Transposed(Model):
    """Particles laid out (K, N), read as (N, K)."""

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        return super().observation(m, z if z.dim() < 4 else z.transpose(0, 2).reshape(z.shape), batch)


class TwoDimensional(Model):
    """A network that takes one batch dimension and no more."""

    def observation(self, m: str, z: Tensor, batch: Batch) -> dist.TorchDistribution:
        if z.dim() > 2:
            raise RuntimeError(f"expected 2 dimensions, got {tuple(z.shape)}")
        return super().observation(m, z, batch)


class FirstSubset(Guide):
    """Of masks (S, N) only the first row is used."""

    def seen(self, m: str, batch: Batch) -> Tensor:
        return batch.mask[m].reshape(-1, len(batch))[0].unsqueeze(-1)


class FirstModality(Guide):
    """What comes first in the batch is treated differently."""

    def expert(self, m: str, batch: Batch) -> Tensor:
        return super().expert(m, batch) * (2 if m == next(iter(batch.x)) else 1)


class BatchNorm(Guide):
    """Statistics of the batch, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2, affine=False, track_running_stats=False)

    def expert(self, m: str, batch: Batch) -> Tensor:
        return self.norm(torch.where(batch.mask[m].unsqueeze(-1), super().expert(m, batch), 0.0))


class HiddenBatchNorm(Guide):
    """Batch normalisation in a list, where eval() does not find it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.BatchNorm1d(2, affine=False, momentum=0.0).double()]

    def expert(self, m: str, batch: Batch) -> Tensor:
        return self.hidden[0](torch.where(batch.mask[m].unsqueeze(-1), super().expert(m, batch), 0.0))


class Positional(Guide):
    """A row's place in the batch shifts its posterior."""

    def expert(self, m: str, batch: Batch) -> Tensor:
        return super().expert(m, batch) + 0.1 * torch.arange(len(batch)).unsqueeze(-1)


class Sized(Guide):
    """The number of rows shifts the posterior."""

    def expert(self, m: str, batch: Batch) -> Tensor:
        return super().expert(m, batch) + 0.01 * len(batch)


class Peeking(Guide):
    """The guide looks at what is hidden."""

    def seen(self, m: str, batch: Batch) -> Tensor:
        return torch.ones_like(super().seen(m, batch))


class Multiplying(Guide):
    """mask * f(x) instead of where(mask, f(x), 0): NaN under a mask stays NaN."""

    def expert(self, m: str, batch: Batch) -> Tensor:
        return self.seen(m, batch) * super().expert(m, batch)

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        moment = sum(self.expert(m, batch) for m in SIZES)
        precision = 1 + sum(self.seen(m, batch).double() for m in SIZES)
        return self.family(moment / precision, (self.log_scale.mean().exp() / precision).sqrt())


class ScoringAll(Model):
    """Observations are scored whether present or not."""

    def observe(self, m: str, px: dist.TorchDistribution, batch: Batch) -> None:
        pyro.sample(m, px, obs=batch.x[m])


class StraightThrough(Guide):
    """Forward the hidden values cancel, backward they do not."""

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        q = super().posterior(batch).base_dist
        x = torch.nan_to_num(batch.x["a"][..., :2])
        return dist.Normal(q.loc + (x - x.detach()), q.scale).to_event(1)


class LearntEmpty(Guide):
    """Where nothing is present the guide has an opinion of its own."""

    def family(self, loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return super().family(loc + 0.3 * (scale == 1), scale)


class TracedFactor(Model):
    """A factor made of a trace's log-density, which carries whatever scale is round the program."""

    def observe(self, m: str, px: dist.TorchDistribution, batch: Batch) -> None:
        with poutine.trace() as inner:
            super().observe(m, px, batch)
        inner.trace.compute_log_prob()
        pyro.factor(f"again_{m}", 0.01 * inner.trace.nodes[m]["log_prob"])


class Unused(Guide):
    """A layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Detached(Guide):
    """The experts' outputs are detached."""

    def expert(self, m: str, batch: Batch) -> Tensor:
        return super().expert(m, batch).detach()
