"""Mixtures of Gaussians whose diffusion is known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

D = torch.float64


class KnownDiffusion:
    """p(x) = sum_c w_c N(mu_c, diag(s_c^2)) and the velocity of its diffusion, exact."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        noise = torch.Generator().manual_seed(seed)
        self.mu = 1.5 * torch.randn(3, dim, generator=noise, dtype=D)
        self.s = 0.15 + 0.35 * torch.rand(3, dim, generator=noise, dtype=D)
        self.w = torch.tensor([0.2, 0.3, 0.5], dtype=D)

    def log_prob(self, x: Tensor) -> Tensor:
        parts = torch.distributions.Normal(self.mu, self.s).log_prob(x.unsqueeze(-2)).sum(-1)
        return (parts + self.w.log()).logsumexp(-1)

    def sample(self, n: int, seed: int = 1) -> Tensor:
        noise = torch.Generator().manual_seed(seed)
        c = torch.multinomial(self.w, n, replacement=True, generator=noise)
        return self.mu[c] + self.s[c] * torch.randn(n, self.mu.shape[1], generator=noise, dtype=D)

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        mean = self.w @ self.mu
        return mean, self.w @ (self.s.square() + self.mu.square()) - mean.square()

    def velocity(self, z: Tensor, phi: Tensor) -> Tensor:
        """E[cos(phi) eps - sin(phi) x | z], given the part c a Gaussian's, averaged over p(c | z)."""
        cos, sin = phi.cos().unsqueeze(-2), phi.sin().unsqueeze(-2)
        variance = cos.square() * self.s.square() + sin.square()
        away = z.unsqueeze(-2) - cos * self.mu
        fit = -0.5 * (away.square() / variance + variance.log() + math.log(2 * math.pi)).sum(-1)
        share = (fit + self.w.log()).softmax(-1).unsqueeze(-1)
        x = (share * (self.mu + cos * self.s.square() / variance * away)).sum(-2)
        eps = (share * sin / variance * away).sum(-2)
        return phi.cos() * eps - phi.sin() * x
