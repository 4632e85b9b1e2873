"""A diffusion as p(z): fitted to what a guide makes of the data, then a prior like any other."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mm.distributions import Diffused, DiffusedBound
from pyro_mm.models.priors import StandardNormal

__all__ = ["Averaged", "DiffusionPrior", "Together", "Velocity"]

FREQUENCIES = 8  # of the angle: cos(k phi), sin(k phi), k = 1..8


class Velocity(nn.Module):
    """v(z, phi) of a diffusion over vectors: a residual network whose last layer starts at 0, where v = 0 is N(0, I).

    Args:
        dim: D.
        width, blocks: of its hidden layers.
        angles: how many angles it is told: one, or one for every part of z (`guides.LatentDiffusion`).
    """

    harmonics: Tensor

    def __init__(self, dim: int, width: int = 256, blocks: int = 3, angles: int = 1) -> None:
        super().__init__()
        self.register_buffer("harmonics", torch.arange(1.0, FREQUENCIES + 1), persistent=False)
        self.enter = nn.Linear(dim, width)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES * angles, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList([
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks)
        ])  # fmt: skip
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, dim))
        last: Any = self.leave[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, z: Tensor, angle: Tensor) -> Tensor:
        """v `(..., D)` of z `(..., D)` at angles `(..., angles)`."""
        turns = angle.unsqueeze(-1) * self.harmonics
        time = self.time(torch.cat([turns.cos(), turns.sin()], -1).flatten(-2))
        h = self.enter(z)
        for block in self.blocks:
            h = h + block(h + time)
        out: Tensor = self.leave(h)
        return out


class Together(nn.Module):
    """A velocity that is told an angle for every modality, at one angle for all: the joint diffusion."""

    def __init__(self, velocity: nn.Module, count: int) -> None:
        super().__init__()
        self.velocity, self.count = velocity, count

    def forward(self, z: Tensor, angle: Tensor) -> Tensor:
        return self.velocity(z, angle.expand(*angle.shape[:-1], self.count))  # type: ignore[no-any-return]


class Averaged(nn.Module):
    """The running mean of a network's weights, which samples and densities are made with.

    Samples of a diffusion are much better with the mean of the last thousand or so steps' weights than with the last
    step's.  At first the mean is over about the last tenth of the steps so far, so that short training is averaged as
    well.  What trains it, `denoising`, calls `learning()`, once a step; every call counts as one.

    Args:
        decay: of the mean, once there were enough steps.
    """

    steps: Tensor

    def __init__(self, net: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        self.net, self.mean, self.decay = net, deepcopy(net).requires_grad_(False), decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, *args: Any) -> Any:
        return self.mean(*args)

    def learning(self) -> nn.Module:
        """In training mode the network, whose weights are taken into the mean; in evaluation mode the mean."""
        if not self.training:
            return self.mean
        self._update()
        return self.net

    @torch.no_grad()
    def _update(self) -> None:
        self.steps += 1
        kept = min(self.decay, float(self.steps) / (float(self.steps) + 10))
        torch._foreach_lerp_(list(self.mean.parameters()), list(self.net.parameters()), 1 - kept)


class DiffusionPrior(nn.Module):
    """p(z) by the probability flow of a diffusion, `Diffused`: an exact density for every network, if a dear one.

    It is not fitted by its density: `with_prior` takes `denoising`, the velocity's squared error, and an objective that
    trains everything at once may take `bound`, the evidence bound of the diffusion, in place of p(z): `elbo` only, and
    likelihoods are asked of a model with the prior itself.  Unfitted it is N(0, I).  Latents of about unit scale are
    learnt fastest.

        better = with_prior(recipe, DiffusionPrior(dim), epochs=100)
        fit(better, data)
        generate(better.model, better.guide, Batch.missing(recipe.modalities, 100))
        log_marginal(better.model, better.guide, batch, k=100)     # D x 4 x steps derivatives for every draw

    Args:
        dim: D of z.
        width, blocks: of `Velocity`.
        steps, sampler, probes: as in `Diffused`.  With another sampler than "flow" (for faster draws; set
            `options["sampler"]` at any time) likelihoods raise `NoLikelihood`.
        net: a velocity network of your own, (z `(..., D)`, phi `(..., 1)`) -> `(..., D)`.
    """

    def __init__(
        self,
        dim: int,
        width: int = 256,
        blocks: int = 3,
        steps: int = 24,
        sampler: str = "flow",
        probes: int | None = None,
        net: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.base = StandardNormal(dim)
        self.options: dict[str, Any] = {"steps": steps, "sampler": sampler, "probes": probes}
        self.velocity = Averaged(Velocity(dim, width, blocks)) if net is None else net
        self.forward()  # so that a bad option shows here

    def forward(self) -> Diffused:
        return Diffused(self.velocity, self.base(), **self.options)

    @torch.no_grad()
    def error(self, z: Tensor) -> Tensor:
        """log p(z) with these steps minus that with twice as many, nats, `(...)`: about the rule's error.

        It is small where draws lie, and can be nats far from them, where a sharp density makes the flow stiff: data
        that the prior finds very unlikely may get wrong likelihoods.  More `steps` mend it.
        """
        steps = self.options["steps"]
        coarse, fine = (Diffused(self.velocity, self.base(), steps=n).log_prob(z) for n in (steps, 2 * steps))
        return coarse - fine

    @property
    def no_likelihood(self) -> str | None:
        """Draws by another sampler do not follow the density of the probability flow: weights would be biased."""
        if self.options["sampler"] == "flow":
            return None
        return (
            f"its prior draws by '{self.options['sampler']}', and these draws do not follow the flow's density: set "
            "prior.options['sampler'] = 'flow'"
        )

    @property
    def density_note(self) -> str:
        """What results say of p(z)."""
        steps, probes = self.options["steps"], self.options["probes"]
        trace = "" if probes is None else f", trace by {probes} random directions, which biases weights"
        return f"p(z) by the probability flow, {steps} steps of Runge and Kutta{trace}"

    @property
    def bound(self) -> Bound:
        """The same p(z) with a draw of the lower bound in place of its log-density."""
        return Bound(self)


class Bound(nn.Module):
    """See `DiffusionPrior.bound`."""

    no_likelihood = (
        "its prior is DiffusionPrior.bound, one noisy draw of a lower bound of log p(z), whose exponential has another "
        "mean: ask a model with the prior itself"
    )

    def __init__(self, prior: DiffusionPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self) -> DiffusedBound:
        velocity: Any = self.prior.velocity
        learning = velocity.learning() if isinstance(velocity, Averaged) else velocity
        return DiffusedBound(learning, self.prior.base(), **self.prior.options)
