"""The same small JMVAE twice: as an ordinary Pyro model/guide pair, and by hand in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot, softplus

from pyro_mm.batch import Batch

__all__ = ["Guide", "Model", "Plain", "data", "floor", "mlp", "networks", "pixels"]

PIXELS, CLASSES, LATENT = 784, 10, 64


def networks(width: int) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """Encoder of pixels and label, decoder of the pixels, decoder of the label."""
    return mlp(PIXELS + CLASSES, width, 2 * LATENT), mlp(LATENT, width, PIXELS), mlp(LATENT, width, CLASSES)


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    layers = (nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))
    return nn.Sequential(*layers)


def data(rows: int) -> Batch:
    """Random pixels and labels: the time of a step does not depend on what they show."""
    noise = torch.Generator().manual_seed(0)
    x = (torch.rand(rows, PIXELS, generator=noise) < 0.2).float()
    return Batch({"x": x, "label": torch.randint(CLASSES, (rows,), generator=noise)})


def pixels(sizes: dict[str, int], rows: int) -> dict[str, Tensor]:
    """Binary modalities of these sizes."""
    noise = torch.Generator().manual_seed(0)
    return {m: (torch.rand(rows, size, generator=noise) < 0.2).float() for m, size in sizes.items()}


class Model(nn.Module):
    """z ~ N(0, I);  x ~ Bernoulli(f(z));  label ~ Categorical(g(z)): a Pyro program that knows nothing of pyro_mm."""

    def __init__(self, image: nn.Module, label: nn.Module) -> None:
        super().__init__()
        self.image, self.label = image, label

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            with poutine.mask(mask=batch.mask["x"]):
                pyro.sample("x", dist.Bernoulli(logits=self.image(z)).to_event(1), obs=batch.x["x"])
            with poutine.mask(mask=batch.mask["label"]):
                pyro.sample("label", dist.Categorical(logits=self.label(z)), obs=batch.x["label"])


class Guide(nn.Module):
    """z ~ N(loc(x, label), scale(x, label)^2)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: Batch) -> None:
        label = one_hot(batch.x["label"], CLASSES).to(batch.x["x"])
        loc, raw = self.encoder(torch.cat([batch.x["x"], label], -1)).chunk(2, -1)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(loc, softplus(raw) + 1e-5).to_event(1))


class Plain(nn.Module):
    """The negative ELBO, mean over the data, with the KL in closed form."""

    def __init__(self, encoder: nn.Module, image: nn.Module, label: nn.Module) -> None:
        super().__init__()
        self.encoder, self.image, self.label = encoder, image, label

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loc, scale = self.posterior(x, y)
        z = loc + scale * torch.randn_like(loc)
        fit = binary_cross_entropy_with_logits(self.image(z), x, reduction="none").sum(-1)
        fit = fit + cross_entropy(self.label(z), y, reduction="none")
        kl = 0.5 * (loc**2 + scale**2 - 1).sum(-1) - scale.log().sum(-1)
        return (fit + kl).mean()

    def posterior(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of q(z|x, y)."""
        loc, raw = self.encoder(torch.cat([x, one_hot(y, CLASSES).to(x)], -1)).chunk(2, -1)
        return loc, softplus(raw) + 1e-5

    @torch.no_grad()
    def log_marginal(self, x: Tensor, y: Tensor, k: int) -> Tensor:
        """(N,) log mean_k p(x, y, z_k) / q(z_k|x, y), one datum after the other: its K draws fill a matrix product."""
        return torch.stack([self.log_weights(x[i : i + 1], y[i : i + 1], k).logsumexp(0) for i in range(len(x))])

    def log_weights(self, x: Tensor, y: Tensor, k: int) -> Tensor:
        """(K,) importance log-weights of one datum."""
        loc, scale = self.posterior(x, y)
        eps = torch.randn(k, LATENT)
        z = loc + scale * eps
        out = -binary_cross_entropy_with_logits(self.image(z), x.expand(k, -1), reduction="none").sum(-1)
        out = out - cross_entropy(self.label(z), y.expand(k), reduction="none")
        return out + 0.5 * (eps**2 - z**2).sum(-1) + scale.log().sum(-1)


def floor(nets: tuple[nn.Module, ...], rows: int) -> Callable[[], None]:
    """A step's matrix products, forwards and backwards, and nothing else: no step can undercut them."""
    linears = [m for net in nets for m in net.modules() if isinstance(m, nn.Linear)]
    # The gradient of an encoder's input is not wanted.
    first = {id(m) for m in linears if m.in_features == PIXELS + CLASSES}
    work = [(torch.randn(rows, m.in_features), m.weight.detach(), torch.randn(rows, m.out_features)) for m in linears]
    inner = [id(m) not in first for m in linears]

    def products() -> None:
        for (x, w, g), wanted in zip(work, inner, strict=True):
            x @ w.T
            g.T @ x
            if wanted:
                g @ w

    return products
