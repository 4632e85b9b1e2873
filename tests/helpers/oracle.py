"""A linear-Gaussian model written out by hand, whose likelihoods and posteriors are exact, and guides on it.

Independent of `pyro_mm.data.toy`, which is tested elsewhere, so that one cannot hide an error of the other.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyro_mm import likelihoods
from pyro_mm.batch import Batch
from pyro_mm.modality import Modality, decoders
from pyro_mm.models import Joint
from pyro_mm.networks import Linear

DIMS = {"a": 4, "b": 3, "c": 2}
SCALES = {"a": 0.5, "b": 0.7, "c": 0.6, "d": 0.9}
PATTERNS = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 1]], dtype=torch.bool)


class LG:
    """z ~ N(0, I); x_m ~ N(W_m z + b_m, s_m^2 I), in float64."""

    def __init__(self, dims: dict[str, int] = DIMS, latent: int = 2, seed: int = 0) -> None:
        noise = torch.Generator().manual_seed(seed)
        self.dims, self.latent = dims, latent
        self.w = {m: 0.8 * torch.randn(d, latent, generator=noise, dtype=torch.float64) for m, d in dims.items()}
        self.b = {m: torch.randn(d, generator=noise, dtype=torch.float64) for m, d in dims.items()}
        self.s = {m: SCALES[m] for m in dims}

    def modalities(self) -> list[Modality]:
        return [Modality(m, (d,), likelihoods.Normal(self.s[m]), Linear()) for m, d in self.dims.items()]

    def model(self) -> Joint:
        """The same model as a Pyro program of the library."""
        model = Joint(decoders(self.modalities(), self.latent), self.latent).double()
        with torch.no_grad():
            for m, decoder in model.decoders.items():
                decoder.net[0].weight.copy_(self.w[m])
                decoder.net[0].bias.copy_(self.b[m])
        return model

    def data(self, n: int, seed: int = 1, missing: bool = False) -> Batch:
        """Rows from the model; with `missing`, in all patterns of presence, the empty one included."""
        noise = torch.Generator().manual_seed(seed)
        z = torch.randn(n, self.latent, generator=noise, dtype=torch.float64)
        x = {}
        for m, d in self.dims.items():
            x[m] = z @ self.w[m].T + self.b[m] + self.s[m] * torch.randn(n, d, generator=noise, dtype=torch.float64)
        if not missing:
            return Batch(x)
        kept = PATTERNS.repeat(n // len(PATTERNS) + 1, 1)[:n]
        return Batch(x, {m: kept[:, i % 3] for i, m in enumerate(self.dims)})

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean `(N, D)` and covariance `(N, D, D)` of z given what is present; masks `(S, N)` put S in front."""
        n, eye = len(batch), torch.eye(self.latent, dtype=torch.float64)
        precision, moment = eye.repeat(n, 1, 1), torch.zeros(n, self.latent, dtype=torch.float64)
        for m in self.dims:
            seen = batch.mask[m].double()
            precision = precision + seen[..., None, None] * (self.w[m].T @ self.w[m]) / self.s[m] ** 2
            moment = moment + seen[..., None] * ((batch.x[m] - self.b[m]) @ self.w[m]) / self.s[m] ** 2
        covariance = precision.inverse()
        return (covariance @ moment.unsqueeze(-1)).squeeze(-1), covariance

    def log_marginal(self, batch: Batch) -> Tensor:
        """log p(x_S) per row, S what is present: a Gaussian over the present elements."""
        out = torch.zeros(len(batch), dtype=torch.float64)
        for i in range(len(batch)):
            seen = [m for m in self.dims if bool(batch.mask[m][i])]
            if seen:
                w = torch.cat([self.w[m] for m in seen])
                b = torch.cat([self.b[m] for m in seen])
                r = torch.cat([torch.full((self.dims[m],), self.s[m] ** 2, dtype=torch.float64) for m in seen])
                x = torch.cat([batch.x[m][i] for m in seen])
                out[i] = MultivariateNormal(b, w @ w.T + torch.diag(r)).log_prob(x)
        return out


def set_to_exact_experts(lg: LG, encoders: nn.ModuleDict) -> None:
    """Affine encoders set to N(W^+ (x - b), s^2 / diag(W'W)): with one latent their product with a N(0, 1) prior is the
    exact posterior, with more of them it is close.
    """
    with torch.no_grad():
        for m, encoder in encoders.items():
            w, layer = lg.w[m], encoder.net[-1]
            gain, precision = torch.linalg.pinv(w), (w**2).sum(0) / lg.s[m] ** 2
            raw = torch.special.expm1(precision**-0.5 - 1e-4).log()
            layer.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
            layer.bias.copy_(torch.cat([-gain @ lg.b[m], raw]))


class ExactGuide(nn.Module):
    """z ~ p(z | what is present), the exact posterior."""

    def __init__(self, lg: LG) -> None:
        super().__init__()
        self.lg = lg

    def forward(self, batch: Batch) -> None:
        mean, covariance = self.lg.posterior(batch)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(mean, covariance))


class MeanField(nn.Module):
    """z ~ N(A x + c, diag(s^2)) on all modalities together, with learnt A, c, s: near the exact posterior."""

    def __init__(self, lg: LG, spread: float = 1.0) -> None:
        super().__init__()
        n = sum(lg.dims.values())
        noise = torch.Generator().manual_seed(5)
        self.names = tuple(lg.dims)
        w = torch.cat([lg.w[m] / lg.s[m] ** 2 for m in lg.dims])
        raw = torch.cat([lg.w[m] for m in lg.dims])
        precision = torch.eye(lg.latent, dtype=torch.float64) + raw.T @ w
        b = torch.cat([lg.b[m] for m in lg.dims])
        exact = torch.linalg.solve(precision, w.T)
        shift = 0.02 * torch.randn(lg.latent, n, generator=noise, dtype=torch.float64)
        self.a = nn.Parameter(exact + shift)
        self.c = nn.Parameter(-exact @ b)
        self.log_s = nn.Parameter(-0.5 * precision.diagonal().log() + torch.tensor(spread).log())

    def moments(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x = torch.cat([batch.x[m] for m in self.names], -1)
        return x @ self.a.T + self.c, self.log_s.exp()

    def forward(self, batch: Batch) -> None:
        loc, scale = self.moments(batch)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def gradients(loss: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """Gradient of a scalar for every parameter, zeros where it does not reach."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor], **tolerance: float) -> None:
    """Every parameter's gradient agrees; tolerances of float64 unless given."""
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **({"rtol": 1e-9, "atol": 1e-11} | tolerance), msg=name)


def z_scores(draws: Tensor, truth: Tensor | float) -> Tensor:
    """How many standard errors the mean over the first dimension is from the truth."""
    return (draws.mean(0) - truth) / (draws.std(0) / len(draws) ** 0.5).clamp(min=1e-12)


def flat_gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """The gradient as one vector."""
    return torch.cat([g.flatten() for g in gradients(loss, module).values()])
