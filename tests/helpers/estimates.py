"""A linear-Gaussian model with known answers, its guides, and what an estimate with error bars has to satisfy."""

from __future__ import annotations

from functools import cache
from math import log

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.guides import (
    Experts,
    JointEncoder,
    Surrogate,
    mixture_of_experts,
    mixture_of_products,
    product_of_experts,
    product_of_posteriors,
)
from pyro_mm.handlers import Program, particles
from pyro_mm.weights import Run, replay, total_log_weight

GUIDES = ("mean-field", "surrogate", "poe", "posteriors", "moe", "mopoe")
SCALES = {"a": 0.5, "b": 0.7, "c": 0.6}


@cache
def truth(dims: tuple[int, ...] = (6, 5, 4), latent: int = 2, seed: int = 0) -> LinearGaussian:
    """Modalities a, b, c over a latent of 2 dimensions; (12, 8, 5) over 4 is the model of the reference figures."""
    return LinearGaussian.random(
        dict(zip("abc", dims, strict=False)), latent, seed, {m: SCALES[m] for m in "abc"[: len(dims)]}
    )


def guide(kind: str, oracle: LinearGaussian) -> nn.Module:
    """A guide of the library at its exact (mean-field) parameters."""
    experts, d = oracle.unimodal_posteriors(), oracle.latent
    joint = JointEncoder(oracle.joint_posterior_net(), d).to(oracle.dtype)
    made: dict[str, nn.Module] = {
        "exact": oracle.exact_guide(),
        "mean-field": joint,
        "surrogate": Surrogate(joint, experts),
        "poe": Experts(experts, product_of_experts),
        "posteriors": Experts(experts, product_of_posteriors),
        "moe": Experts(experts, mixture_of_experts),
        "mopoe": Experts(experts, mixture_of_products),
    }
    return made[kind]


class Prior(nn.Module):
    """z ~ N(0, I), whatever the data."""

    def __init__(self, oracle: LinearGaussian) -> None:
        super().__init__()
        self.dim = oracle.latent

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(self.dim).double(), 1.0).to_event(1))


class Stretched(nn.Module):
    """The mean-field posterior with its standard deviations times `factor` and its mean moved by `shift` of them."""

    def __init__(self, oracle: LinearGaussian, factor: float, shift: float = 0.0) -> None:
        super().__init__()
        self.net, self.factor, self.shift = oracle.joint_posterior_net(), factor, shift

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        q = self.net(batch).base_dist
        return dist.Normal(q.loc + self.shift * q.scale, q.scale * self.factor).to_event(1)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))


class Folded(nn.Module):
    """z ~ N(0, 8^2);  x ~ N(|z|, 1): the posterior has a mode on either side of 0, alike by symmetry."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 8.0))
            pyro.sample("x", dist.Normal(z.abs(), 1.0), obs=batch.x["x"])

    @staticmethod
    def exact(x: Tensor) -> Tensor:
        """log p(x) = log 2 N(x; 0, 65) Phi(sqrt(64/65) x)."""
        normal = dist.Normal(torch.zeros(()).double(), 1.0)
        return dist.Normal(0.0, 65**0.5).log_prob(x) + (2 * normal.cdf((64 / 65) ** 0.5 * x)).log()


class OneMode(nn.Module):
    """A little wider than the posterior if z were positive."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(batch.x["x"] * 64 / 65, 1.1))


def hidden(batch: Batch, share: float = 0.35, seed: int = 2) -> Batch:
    """Every modality missing at random in this share of the rows: 0 to all of them in a row."""
    noise = torch.Generator().manual_seed(seed)
    return Batch(batch.x, {m: torch.rand(len(batch), generator=noise) >= share for m in batch.mask})


def lme(log_w: Tensor) -> Tensor:
    """log of the mean weight over particles."""
    return torch.logsumexp(log_w, 0) - log(len(log_w))


def scored_by(oracle: LinearGaussian, q: Program, values: Tensor, data: Batch) -> Tensor:
    """log p(x, z) - log q(z) at given draws `(K, N, D)`, whoever drew them."""
    z, k = {"z": values.unsqueeze(1)}, len(values)
    with torch.no_grad():
        pair = Run(replay(particles(oracle.model(), k), data, z), replay(particles(q, k), data, z))
        return total_log_weight(pair)


def judge(
    estimate: Tensor,
    se: Tensor,
    exact: Tensor,
    mean: float = 0.02,
    rms: tuple[float, float] = (0.8, 1.2),
    under_4: float = 0.99,
) -> None:
    """Mean error, rms of the standardised errors, at least 99 % of them under 4; rows of no error are exact."""
    error, moves = estimate - exact, se > 1e-6
    assert bool((error[~moves].abs() < 1e-6).all())
    z = error[moves] / se[moves]
    assert abs(error.mean().item()) < mean, f"mean error {error.mean().item():.4f}"
    size = z.square().mean().sqrt().item()
    assert rms[0] <= size <= rms[1], f"rms of standardised errors {size:.3f}"
    assert (z.abs() < 4).double().mean().item() >= under_4


def above(values: Tensor, bound: float = 0.0, errors: float = 3.0) -> bool:
    """Is the mean of independent values at least `bound`, within so many standard errors?"""
    return values.mean().item() >= bound - errors * values.std().item() / len(values) ** 0.5
