"""What a class says about one modality, p(x_m | c): networks from a class to a distribution, with an exact M-step."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["Counts", "Gaussians", "Part", "UnitGaussians"]


class Part(nn.Module):
    """Base: c `(...)` whole numbers -> p(x | c), and how it learns from weighted rows."""

    def forward(self, c: Tensor) -> dist.TorchDistribution:
        raise NotImplementedError(f"{type(self).__name__} gives no distribution")

    def maximise(self, x: Tensor, r: Tensor) -> None:
        """Set the parameters to the maximum of sum_i sum_k r_ik log p(x_i | k) + `log_prior`; r `(N, C)`."""
        raise NotImplementedError(f"{type(self).__name__} has no M-step: train it by `fit`")

    def log_prior(self) -> Tensor:
        """Log-density of the parameters, up to a constant."""
        raise NotImplementedError(f"{type(self).__name__} has no prior of its parameters")


class UnitGaussians(Part):
    """x ~ N(m_c, I): only the means are learnt, with a flat prior.

    With p(z | c) of this form the mean of a datum's class is all that a VAE needs to be told: averaged over q(c),
    log p(z | c) is log N(z; sum_k r_k m_k, I) up to a constant.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(classes, dim))

    def forward(self, c: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.loc[c], 1.0, validate_args=False).to_event(1)

    @torch.no_grad()
    def maximise(self, x: Tensor, r: Tensor) -> None:
        n = r.sum(0).unsqueeze(-1)
        # A class that has no row keeps its mean.
        self.loc.copy_(torch.where(n > 0, r.T @ x / n.clamp(min=1e-30), self.loc))

    def log_prior(self) -> Tensor:
        return self.loc.new_zeros(())


class Gaussians(Part):
    """x ~ N(m_c, S_c), full covariances, with SERKET's normal-inverse-Wishart prior, at its mode.

        m_c | S_c ~ N(m_0, S_c / kappa),   S_c ~ IW(nu, scale I),   kappa = 1, nu = D + 2, scale = .1

    m_0 is the mean of the data of the last M-step.  The paper integrates m and S out and samples c; here both are at
    their maximum and c is summed over.
    """

    center: Tensor

    def __init__(self, dim: int, classes: int, scale: float = 0.1) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"the scale of the covariances' prior must be positive, got {scale:g}")
        self.loc = nn.Parameter(torch.randn(classes, dim))
        self.raw = nn.Parameter(torch.zeros(classes, dim, dim))
        self.scale = scale
        self.register_buffer("center", torch.zeros(dim))

    def tril(self) -> Tensor:
        """Cholesky factors of the covariances `(C, D, D)`."""
        return self.raw.tril(-1) + self.raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def forward(self, c: Tensor) -> dist.TorchDistribution:
        return dist.MultivariateNormal(self.loc[c], scale_tril=self.tril()[c], validate_args=False)

    @torch.no_grad()
    def maximise(self, x: Tensor, r: Tensor) -> None:
        rows, dim = r.sum(-1), x.shape[-1]
        if not bool(rows.sum() > 0):  # no row, no news
            return
        self.center.copy_((rows @ x) / rows.sum())
        n = r.sum(0).unsqueeze(-1)
        self.loc.copy_((self.center + r.T @ x) / (1 + n))
        off = x - self.loc.unsqueeze(1)  # (C, N, D)
        scatter = torch.einsum("nc,cnd,cne->cde", r, off, off)
        pull = self.loc - self.center
        total = scatter + pull.unsqueeze(-1) * pull.unsqueeze(-2) + self.scale * torch.eye(dim).to(x)
        tril = torch.linalg.cholesky(total / (n.unsqueeze(-1) + self.degrees + dim + 2))
        self.raw.copy_(tril.tril(-1) + tril.diagonal(dim1=-2, dim2=-1).log().diag_embed())

    @property
    def degrees(self) -> int:
        """nu."""
        return self.loc.shape[-1] + 2

    def log_prior(self) -> Tensor:
        inverse = torch.cholesky_inverse(self.tril())
        log_det = 2 * self.raw.diagonal(dim1=-2, dim2=-1).sum(-1)
        pull = self.loc - self.center
        trace = self.scale * inverse.diagonal(dim1=-2, dim2=-1).sum(-1)
        square = torch.einsum("cd,cde,ce->c", pull, inverse, pull)
        return -0.5 * ((self.degrees + self.loc.shape[-1] + 2) * log_det + trace + square).sum()


class Counts(Part):
    """x ~ Multinomial(total of x, theta_c), theta_c ~ Dirichlet(1 + pseudo): words, or a histogram of features.

    A histogram may hold fractions.  MLDA of SERKET's papers draws a class for every word; here every datum has one.

    Args:
        size: how many words or bins.
        classes: how many.
        pseudo: count added to every bin; positive, so that no word is impossible.
        total: how many words a row has when rows are generated.
    """

    def __init__(self, size: int, classes: int, pseudo: float = 0.1, total: int = 1) -> None:
        super().__init__()
        if not pseudo > 0:
            raise ValueError(f"the pseudo-count must be positive, got {pseudo:g}")
        self.logits = nn.Parameter(torch.zeros(classes, size))
        self.pseudo, self.total = pseudo, total

    def forward(self, c: Tensor) -> dist.TorchDistribution:
        return dist.Multinomial(self.total, logits=self.logits[c], validate_args=False)

    @torch.no_grad()
    def maximise(self, x: Tensor, r: Tensor) -> None:
        self.logits.copy_((r.T @ x + self.pseudo).log().log_softmax(-1))

    def log_prior(self) -> Tensor:
        return self.pseudo * self.logits.log_softmax(-1).sum()
