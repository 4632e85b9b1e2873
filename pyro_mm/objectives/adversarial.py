"""A discriminator on what one decoder makes: the terms that a GAN adds to any pair."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm

from pyro_mm.batch import Batch
from pyro_mm.handlers import Program, innermost
from pyro_mm.modality import Modality
from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.weights import replay, run

__all__ = ["Discriminator", "adversarial", "discrimination"]

WATCHED = 200  # steps in a row that must look bad before it is said
SURE, NARROW = 0.99, 0.1


class Discriminator(nn.Module):
    """x -> the logit of "real": the encoder network of the modality's blueprint with one output.

    Args:
        modality: what it looks at.
        spectral: every linear map, and every convolution's kernel as a matrix (Miyato et al. 2018), has its largest
            singular value divided out, which keeps D from running away from the generator.  Recurrent layers have not.
    """

    def __init__(self, modality: Modality, spectral: bool = True) -> None:
        super().__init__()
        self.modality = replace(modality, noise=None)  # which is about inference: rows are judged as they are
        self.net = modality.net.encoder(modality.likelihood.feature_shape(modality.shape), 1)
        for part in list(self.net.modules()) if spectral else ():
            if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
                spectral_norm(part)

    def forward(self, x: Tensor) -> Tensor:
        """`(N,)` of x `(N, *shape)`."""
        return self.modality.apply_net(self.net, x).squeeze(-1)


def adversarial(model: Program, guide: Program, name: str, discriminator: nn.Module) -> Objective:
    """-E log D(G(z)), z ~ p(z), and the same with z ~ q(z | x): what makes a decoder's means look real, as a loss.

    G(z) is the mean of p(x_m | z).  The non-saturating form (Goodfellow et al. 2014, section 3), with fakes from prior
    and posterior as in JMVAE-GAN and VAE/GAN (Larsen et al. 2016).  Sums over the rows that have the modality, divided
    by all rows, as every other term.

    No bound of any likelihood, and a decoder that was trained by it has none worth reporting: the model is told
    (`no_likelihood`), and `log_marginal` raises `NoLikelihood`.

    Args:
        model, guide: the pair; `name` an observation of the model with values that have a mean.
        discriminator: x `(N, *shape)` -> logit of "real" `(N,)`, held still by whoever trains this.
    """
    with suppress(AttributeError):  # a bound method can be told nothing
        innermost(
            model
        ).no_likelihood = f"the decoder of '{name}' was sharpened by a discriminator, which is no likelihood"
    return Objective([(1.0, Adversarial(model, guide, name, discriminator))])


def discrimination(model: Program, guide: Program, name: str, discriminator: nn.Module) -> Objective:
    """-log D(x) - log(1 - D(G(z_p))) - log(1 - D(G(z_q))),  z_p ~ p(z), z_q ~ q(z | x): the discriminator's own loss.

    Reports the means of D on real and made values, and `spread`, the standard deviation over rows of G(z_p), beside
    that of x: 1 where draws differ as data do.  When D has been sure for 200 steps (no gradient is left for the
    generator), or the spread below a tenth (all draws look alike), a `UserWarning` says so, once each.
    """
    return Objective([(1.0, Discrimination(model, guide, name, discriminator))])


class Adversarial(Term):
    """See `adversarial`."""

    label, sign = "adversarial", -1  # what is printed is maximised

    def __init__(self, model: Program, guide: Program, name: str, discriminator: nn.Module) -> None:
        super().__init__()
        self.model, self.guide, self.name, self.discriminator = model, guide, name, discriminator

    def forward(self, batch: Batch) -> Tensor:
        rows = batch.mask[self.name]
        loss = sum(softplus(-self.discriminator(x)) for x in self.made(batch))
        out: Tensor = torch.where(rows, loss, 0.0).sum() / len(batch)
        self.report = {"": out.detach()}
        return out

    def made(self, batch: Batch) -> Iterator[Tensor]:
        """G(z) of draws from the prior, and from the guide, `(N, *shape)`."""
        yield run(self.model, batch)[self.name].fn.mean
        drawn = {n: site.value for n, site in run(self.guide, batch).items()}
        yield replay(self.model, batch, drawn)[self.name].fn.mean

    def formula(self) -> str:
        return f"E log D(G_{self.name}(z))"

    def latex(self) -> str:
        return rf"\mathbb{{E}} \log D(G_{{\mathrm{{{self.name}}}}}(z))"


class Discrimination(Adversarial):
    """See `discrimination`."""

    label = "discrimination"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.bad = {"sure": 0, "alike": 0}

    def forward(self, batch: Batch) -> Tensor:
        rows, x = batch.mask[self.name], batch.x[self.name]
        with torch.no_grad():
            fakes = list(self.made(batch))
        real, *fake = (self.discriminator(v) for v in (x, *fakes))
        loss = softplus(-real) + sum(softplus(f) for f in fake)
        out: Tensor = torch.where(rows, loss, 0.0).sum() / len(batch)
        self.report = {"": out.detach(), **self._figures(rows, x, fakes[0], real.detach(), torch.stack(fake).detach())}
        if self.discriminator.training:  # the rest of a turn that moves D alone is in evaluation mode
            self._watch()
        return out

    def _figures(self, rows: Tensor, x: Tensor, made: Tensor, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        count = rows.sum().clamp(min=1)
        beliefs = {"real": real.sigmoid(), "fake": fake.sigmoid().mean(0)}
        means = {n: torch.where(rows, v, 0.0).sum() / count for n, v in beliefs.items()}
        seen = x[rows].to(made.dtype) if len(x) else made
        spreads = [v.flatten(1).std(0).mean() if len(v) > 1 else v.new_ones(()) for v in (made.detach(), seen)]
        return {**means, "spread": spreads[0] / spreads[1].clamp(min=1e-8)}

    def _watch(self) -> None:
        real, fake, spread = torch.stack([self.report[k] for k in ("real", "fake", "spread")]).tolist()
        signs = {"sure": real > SURE and fake < 1 - SURE, "alike": spread < NARROW}
        said = {
            "sure": f"the discriminator is certain of every '{self.name}', real or made: the generator learns no more",
            "alike": f"draws of '{self.name}' differ by {spread:.0%} of what data differ: the generator has collapsed",
        }
        for kind, bad in signs.items():
            self.bad[kind] = self.bad[kind] + 1 if bad else min(self.bad[kind], 0)
            if self.bad[kind] == WATCHED:
                self.bad[kind] = -(10**9)  # once
                warnings.warn(f"{said[kind]} (over {WATCHED} steps)", stacklevel=2)

    def formula(self) -> str:
        return f"(E log D({self.name}) + E log(1 - D(G_{self.name}(z))))"

    def latex(self) -> str:
        g = rf"G_{{\mathrm{{{self.name}}}}}(z)"
        return rf"(\mathbb{{E}} \log D(\mathrm{{{self.name}}}) + \mathbb{{E}} \log(1 - D({g})))"
