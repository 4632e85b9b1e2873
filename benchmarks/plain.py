"""The same small JMVAE three times: as a Pyro model/guide pair, as Pyro's tutorials would write it, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot, softplus

from pyro_mm.batch import Batch

__all__ = ["Guide", "Model", "Plain", "Tutorial", "data", "floor", "mlp", "networks", "pixels"]

PIXELS, CLASSES, LATENT = 784, 10, 64


def networks(width: int, device: str = "cpu") -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """Encoder of pixels and label, decoder of the pixels, decoder of the label."""
    sizes = ((PIXELS + CLASSES, 2 * LATENT), (LATENT, PIXELS), (LATENT, CLASSES))
    encoder, image, label = (mlp(inputs, width, outputs).to(device) for inputs, outputs in sizes)
    return encoder, image, label


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
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT, device=batch.device), 1.0).to_event(1))
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


class Tutorial(nn.Module):
    """The pair in the manner of Pyro's VAE tutorial: parameters are told to Pyro's store by `pyro.module`."""

    def __init__(self, encoder: nn.Module, image: nn.Module, label: nn.Module) -> None:
        super().__init__()
        self.encoder, self.image, self.label = encoder, image, label

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("image", self.image)
        pyro.module("label", self.label)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], LATENT), x.new_ones(x.shape[0], LATENT)
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.image(z)).to_event(1), obs=x)
            pyro.sample("y", dist.Categorical(logits=self.label(z)), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.encoder(torch.cat([x, one_hot(y, CLASSES).to(x)], -1)).chunk(2, -1)
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

    def many(self, x: Tensor, y: Tensor, k: int) -> Tensor:
        """The same with K draws of z for every row."""
        loc, scale = self.posterior(x, y)
        z = loc + scale * torch.randn((k, *loc.shape), device=x.device)
        fit = binary_cross_entropy_with_logits(self.image(z), x.expand(k, -1, -1), reduction="none").sum(-1)
        logits = self.label(z)
        fit = fit + cross_entropy(logits.flatten(0, 1), y.repeat(k), reduction="none").view(k, -1)
        kl = 0.5 * (loc**2 + scale**2 - 1).sum(-1) - scale.log().sum(-1)
        return (fit.mean(0) + kl).mean()

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
        eps = torch.randn(k, LATENT, device=x.device)
        z = loc + scale * eps
        out = -binary_cross_entropy_with_logits(self.image(z), x.expand(k, -1), reduction="none").sum(-1)
        out = out - cross_entropy(self.label(z), y.expand(k), reduction="none")
        return out + 0.5 * (eps**2 - z**2).sum(-1) + scale.log().sum(-1)


def floor(nets: tuple[nn.Module, ...], rows: int) -> Callable[[], None]:
    """A step's matrix products, forwards and backwards, and nothing else: no step can undercut them."""
    linears = [m for net in nets for m in net.modules() if isinstance(m, nn.Linear)]
    # The gradient of an encoder's input is not wanted.
    first = {id(m) for m in linears if m.in_features == PIXELS + CLASSES}
    noise = partial(torch.randn, device=linears[0].weight.device)
    work = [(noise(rows, m.in_features), m.weight.detach(), noise(rows, m.out_features)) for m in linears]
    inner = [id(m) not in first for m in linears]

    def products() -> None:
        for (x, w, g), wanted in zip(work, inner, strict=True):
            x @ w.T
            g.T @ x
            if wanted:
                g @ w

    return products
