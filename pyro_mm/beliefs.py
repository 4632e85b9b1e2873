"""What one program is told by another: messages that take the place of a prior, or multiply it.

A message travels with its rows, as an entry of the `Batch` that the program itself does not generate; so minibatches,
shuffling and `fit` need no rule for it.  In rows where the entry is missing nothing was said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.handlers import Program, Verb

__all__ = ["ClassMessage", "Message", "NormalMessage", "believe", "informed", "tilted"]

Message = Callable[[Batch], dist.TorchDistribution]


class NormalMessage(nn.Module):
    """N(mu_i, s^2 I), mu `(N, D)` an entry of the batch; N(0, s^2 I) in rows without one.

    What SERKET's Gaussian mixture sends back to a VAE, s = 1 (Nakamura et al. 2018).
    """

    def __init__(self, entry: str, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"the scale must be positive, got {scale:g}")
        self.entry, self.scale = entry, scale

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        loc = said(batch, self.entry)
        return dist.Normal(loc, loc.new_full((), self.scale), validate_args=False).to_event(1)


class ClassMessage(nn.Module):
    """p(c_i = k) proportional to exp(l_ik), l `(N, C)` an entry of the batch; uniform in rows without one."""

    def __init__(self, entry: str) -> None:
        super().__init__()
        self.entry = entry

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        return dist.Categorical(logits=said(batch, self.entry), validate_args=False)


def said(batch: Batch, entry: str) -> Tensor:
    """The entry `(..., N, D)`, zeros where it is missing."""
    if entry not in batch.x:
        raise ValueError(f"the batch has no message '{entry}'; it has {list(batch.x)}")
    return torch.where(batch.mask[entry].unsqueeze(-1), batch.x[entry], 0.0)


class Believe(Verb):
    """See `believe`."""

    def __init__(self, program: Program, site: str, message: Message) -> None:
        super().__init__(program)
        self.site, self.message = site, message

    def forward(self, batch: Batch) -> Any:
        told = self.message(batch)
        return _changed(self.program, batch, self.site, lambda own: told)


def believe(program: Program, site: str, message: Message) -> Believe:
    """The program with `message(batch)` in the place of its own distribution at a latent site.

    `believe(model, "z", NormalMessage("mu"))` is prod_i N(z_i; mu_i, I) p(x_i | z_i): likelihoods, generation and
    objectives are those of that model.  A message has batch shape `(N,)`, or what broadcasts with the site's plates;
    its parameters, if it has any, are the new program's.  Stand it outside `given`, which would hide the entry.

    Raises:
        ValueError: when called, for a site that the program lacks or observes, or an event of another shape.
    """
    return Believe(program, site, message)


class Informed(Verb):
    """See `informed`."""

    def __init__(self, program: Program, site: str, entry: str) -> None:
        super().__init__(program)
        self.site, self.entry = site, entry

    def forward(self, batch: Batch) -> Any:
        log_message = said(batch, self.entry)

        def multiplied(own: Any) -> dist.TorchDistribution:
            if not hasattr(own, "logits"):
                raise ValueError(f"latent '{self.site}' ({type(own).__name__}) is no Categorical: it has no classes")
            if log_message.shape[-1] != own.logits.shape[-1]:
                raise ValueError(
                    f"latent '{self.site}' has {own.logits.shape[-1]} classes, the message '{self.entry}' "
                    f"has {log_message.shape[-1]}"
                )
            return Multiplied(own.logits + log_message)

        return _changed(self.program, batch, self.site, multiplied)


def informed(program: Program, site: str, entry: str) -> Informed:
    """The program with p(c_i = k) exp(l_ik) in the place of p(c_i = k) at a class, l `(N, C)` an entry of the batch.

    Not normalised: with l = log p(y | c) for what another program knows of y, its likelihoods are those of both
    together, sum_c p(c) p(y | c) p(x | c).

    Raises:
        ValueError: when called, for a site that the program lacks or observes, that is no Categorical, or that has
            another number of classes than the message.
    """
    return Informed(program, site, entry)


class Multiplied(dist.Categorical):  # type: ignore[misc]
    """exp(l_k), a mass over classes whose sum need not be 1; draws are in proportion to it."""

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.log_total = logits.logsumexp(-1)
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Multiplied:
        full = self.logits + self.log_total.unsqueeze(-1)
        return Multiplied(full.expand(*batch_shape, full.shape[-1]))

    def log_prob(self, value: Tensor) -> Tensor:
        out: Tensor = super().log_prob(value) + self.log_total
        return out


class Tilted(Verb):
    """See `tilted`."""

    def __init__(self, guide: Program, site: str, entry: str) -> None:
        super().__init__(guide)
        self.site, self.entry = site, entry

    def forward(self, batch: Batch) -> Any:
        mu = said(batch, self.entry)

        def moved(own: Any) -> dist.TorchDistribution:
            base = getattr(own, "base_dist", None)
            if not isinstance(base, torch.distributions.Normal):
                raise ValueError(f"latent '{self.site}' ({type(own).__name__}) is no diagonal Normal")
            return dist.Normal(base.loc + base.scale**2 * mu, base.scale, validate_args=False).to_event(1)

        return _changed(self.program, batch, self.site, moved)


def tilted(guide: Program, site: str, entry: str) -> Tilted:
    """q(z | x) exp(mu_i . z), normalised: N(m + s^2 mu_i, s^2) for a guide's N(m, s^2), mu `(N, D)` an entry.

    The guide's side of `believe(model, site, NormalMessage(entry))`, as N(z; mu, I) / N(z; 0, I) is proportional to
    exp(mu . z): where q is the posterior under N(0, I), this is the one under N(mu_i, I).

    Raises:
        ValueError: when called, for a site that the guide lacks, or that is no diagonal Normal.
    """
    return Tilted(guide, site, entry)


class _Change(Messenger):
    """One latent's distribution changed, its plates kept."""

    def __init__(self, site: str, change: Callable[[Any], dist.TorchDistribution]) -> None:
        super().__init__()
        self.site, self.change, self.met = site, change, False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.site:
            return
        if msg["is_observed"]:
            raise ValueError(f"site '{self.site}' is observed: a message is about a latent")
        own, new = msg["fn"], self.change(msg["fn"])
        if new.event_shape != own.event_shape:
            raise ValueError(
                f"latent '{self.site}' has event shape {tuple(own.event_shape)}, the message {tuple(new.event_shape)}"
            )
        msg["fn"] = new.expand(torch.broadcast_shapes(own.batch_shape, new.batch_shape))
        self.met = True


def _changed(program: Program, batch: Batch, site: str, change: Callable[[Any], dist.TorchDistribution]) -> Any:
    """Run the program with one latent's distribution changed."""
    with _Change(site, change) as handler:
        out = program(batch)
    if not handler.met:
        raise ValueError(f"{type(program).__name__} has no latent '{site}' to tell something about")
    return out
