"""What a diffusion model makes of noise: a density by its probability flow, a bound, and three ways to draw.

Everything is told by an angle.  z_phi = cos(phi) x + sin(phi) eps goes from data at 0 to N(0, I) at pi/2, and a network
says the velocity v(z, phi) = E[cos(phi) eps - sin(phi) x | z_phi = z] (Salimans & Ho 2022).  The probability flow of
any variance-preserving diffusion is then  dz/dphi = v,  whatever its schedule of noise (Song et al. 2021): time enters
only by how fast the angle is run through.  v = 0 is N(0, I).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["END", "SAMPLERS", "Diffused", "DiffusedBound", "evenly", "noised"]

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(z `(..., D)`, angles `(..., 1)`) -> v `(..., D)`."""
SAMPLERS = ("flow", "ddim", "ancestral")
END = math.pi / 2
SHAPE = 1.5  # of the steps: angles (i / n)^1.5 pi/2, short where data have their detail
TOGETHER = 16  # directions whose derivatives are taken in one pass


class Diffused(TorchDistribution):
    """z at angle 0 of the probability flow dz/dphi = v that ends in `base`, N(0, I), at angle pi/2.

    log p(z_0) = log base(z_{pi/2}) + integral_0^{pi/2} tr dv/dz dphi  (Song et al. 2021, eq. 39), by Runge and Kutta's
    rule of fourth order: the density of the draws of `sampler="flow"` up to the rule's error.  Draws by "ddim" (the
    rotation z -> cos(h) z - sin(h) v, first order) and "ancestral" (the reversed diffusion, DDPM) follow this density
    only as far as v is the true velocity and steps are short.

    Coordinates that are not `free` keep still: z_A ~ base_A, then z_B | z_A by a flow that sees z_A.

    Args:
        velocity: v.
        base: Normals with event shape `(D,)`; N(0, 1) where coordinates are free.
        free: bool `(..., D)`; default all.
        steps: of the rule, and of a draw.
        sampler: one of `SAMPLERS`.
        probes: the trace by so many random directions (Hutchinson), without bias for log p but with noise, which
            importance weights turn into a bias; default exact, at D derivatives for every evaluation of v.

    Raises:
        ValueError: an unknown sampler, or fewer than one step or probe.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        velocity: Velocity,
        base: TorchDistribution,
        free: Tensor | None = None,
        steps: int = 24,
        sampler: str = "flow",
        probes: int | None = None,
    ) -> None:
        if sampler not in SAMPLERS:
            raise ValueError(f"samplers are {', '.join(SAMPLERS)}; got '{sampler}'")
        if min(steps, 1 if probes is None else probes) < 1:
            raise ValueError(f"steps and probes are at least 1; got {steps} and {probes}")
        self.velocity, self.base, self.free = velocity, base, free
        self.steps, self.sampler, self.probes = steps, sampler, probes
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Diffused:
        shape = torch.Size(batch_shape)
        free = None if self.free is None else self.free.expand(shape + self.event_shape)
        return type(self)(self.velocity, self.base.expand(shape), free, self.steps, self.sampler, self.probes)

    @property
    def dim(self) -> int:
        """D."""
        return self.event_shape[0]

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        z: Tensor = self.base.rsample(torch.Size(sample_shape))
        if self.still:
            return z
        step = {"flow": _runge_kutta, "ddim": _rotated, "ancestral": _ancestral}[self.sampler]
        angles = self.angles(z).flip(0)
        for here, there in pairwise(angles):
            moved = step(self._field, z, here, there)
            z = moved if self.free is None else torch.where(self.free, moved, z)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.expand(torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))
        if self.still:
            return self.base.log_prob(value)  # type: ignore[no-any-return]
        angles, directions = self.angles(value), self._directions(value)

        def along(state: Tensor, angle: Tensor) -> Tensor:
            return torch.cat(self._with_trace(state[..., :-1], angle, directions), -1)

        state = torch.cat([value, torch.zeros_like(value[..., :1])], -1)
        for here, there in pairwise(angles):
            state = _runge_kutta(along, state, here, there)
        return self.base.log_prob(state[..., :-1]) + state[..., -1]  # type: ignore[no-any-return]

    @property
    def still(self) -> bool:
        """No coordinate is free."""
        return self.free is not None and not bool(self.free.any())

    def angles(self, like: Tensor) -> Tensor:
        """The grid from 0 to pi/2, `(steps + 1,)`."""
        return END * torch.linspace(0, 1, self.steps + 1, dtype=like.dtype, device=like.device) ** SHAPE

    def _field(self, z: Tensor, angle: Tensor) -> Tensor:
        v = self.velocity(z, angle.expand(*z.shape[:-1], 1))
        return v if self.free is None else torch.where(self.free, v, 0.0)

    def _directions(self, z: Tensor) -> Tensor:
        """Unit vectors, or random signs whose mean square is the trace, `(P, ..., D)`; one choice for all angles."""
        if self.probes is None:
            units = torch.eye(self.dim, dtype=z.dtype, device=z.device)
            return units.view(self.dim, *[1] * (z.dim() - 1), self.dim)
        signs = torch.randint(0, 2, (self.probes, *z.shape), device=z.device).to(z.dtype) * 2 - 1
        return signs / math.sqrt(self.probes)

    def _with_trace(self, z: Tensor, angle: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """v `(..., D)` and tr dv/dz `(..., 1)`."""

        def along(direction: Tensor) -> Tensor:
            direction = direction.expand_as(z)
            slope: Tensor = torch.func.jvp(lambda at: self._field(at, angle), (z,), (direction,))[1]
            return (slope * direction).sum(-1)

        parts = torch.func.vmap(along, chunk_size=TOGETHER)(directions)
        return self._field(z, angle), parts.sum(0)[..., None]


class DiffusedBound(Diffused):
    """`Diffused` whose log_prob is one unbiased draw of a lower bound of log p: what a diffusion is trained by.

    log p(x) >= E log N(x; x^, sin^2(phi_0) I) - integral_{phi_0}^{pi/2} cot(phi) E |v_phi - v(z_phi, phi)|^2 dphi,
    x^ = cos(phi_0) z - sin(phi_0) v(z, phi_0), of the reversed diffusion with steps without end (Kingma et al. 2021,
    eq. 15: |x - x^|^2 = sin^2(phi) |v - v^|^2, and the signal-to-noise ratio is cot^2(phi)).  Angles are drawn even in
    log sin(phi), which is the weight cot(phi).  The last term of theirs, KL(q(z_1|x) || N(0, I)), is 0 here.

    Its mean is the bound; that of its exponential is not: importance weights, and bounds with several draws inside the
    logarithm, must not use it (`require_densities`).
    """

    first = 0.01
    """phi_0."""

    def log_prob(self, value: Tensor) -> Tensor:
        length = -math.log(math.sin(self.first))
        angle = torch.exp(-length * evenly(value[..., :1])).asin()
        z, v = noised(value, angle)
        loss = length * (v - self.velocity(z, angle)).square().sum(-1)
        first = torch.full_like(angle, self.first)
        z, _ = noised(value, first)
        mean = first.cos() * z - first.sin() * self.velocity(z, first)
        scale = math.sin(self.first)
        square = ((value - mean) / scale).square() + math.log(2 * math.pi * scale**2)
        return -0.5 * square.sum(-1) - loss


def evenly(like: Tensor) -> Tensor:
    """Numbers in [0, 1), uniform each, spread evenly over all places: less noise than independent ones, and no bias."""
    n = like.numel()
    even = (
        torch.rand((), dtype=like.dtype, device=like.device) + torch.arange(n, dtype=like.dtype, device=like.device) / n
    ) % 1.0
    return even[torch.randperm(n, device=like.device)].to(like.dtype).view(like.shape)


def noised(x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """A draw of z_phi, and its v = cos(phi) eps - sin(phi) x."""
    eps = torch.randn_like(x)
    return angle.cos() * x + angle.sin() * eps, angle.cos() * eps - angle.sin() * x


def _runge_kutta(f: Velocity, z: Tensor, here: Tensor, there: Tensor) -> Tensor:
    h, middle = there - here, 0.5 * (here + there)
    k1 = f(z, here)
    k2 = f(z + 0.5 * h * k1, middle)
    k3 = f(z + 0.5 * h * k2, middle)
    return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(z + h * k3, there))


def _rotated(f: Velocity, z: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """DDIM (Song, Meng & Ermon 2021)."""
    h = here - there
    return h.cos() * z - h.sin() * f(z, here)


def _ancestral(f: Velocity, z: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """q(z_t | z_s, x = x^) of the diffusion (Ho et al. 2020)."""
    v = f(z, here)
    x, eps = here.cos() * z - here.sin() * v, here.sin() * z + here.cos() * v
    # Of the noise at the lower angle so much is drawn anew as the reversed step adds, the rest is kept.
    fresh = (there.sin() / here.sin()) * (1 - (here.cos() / there.cos()).square()).clamp(min=0).sqrt()
    kept = (there.sin().square() - fresh.square()).clamp(min=0).sqrt()
    return there.cos() * x + kept * eps + fresh * torch.randn_like(z)
