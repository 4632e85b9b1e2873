"""Codes of all modalities side by side; a diffusion fills in those of what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import Diffused, Normal
from pyro_mm.modality import Modality, names_of
from pyro_mm.models.joint import presence
from pyro_mm.models.standardised import Scaler

RECENT = 5000

__all__ = ["Codes", "LatentDiffusion", "Learnt", "side_by_side"]


class Codes(nn.Module):
    """z = (z_1, ..., z_M),  z_m ~ N(e_m(x_m), noise^2 I) where x_m is present and N(0, I) where it is not.

    Args:
        modalities: what is coded.
        sizes: D_m of every z_m, in order.
        noise: in units of a code's standard deviation; it gives z a density.

    In training mode the scalers learn from the codes: those of about the last `RECENT` rows while encoders move.
    """

    moved: Tensor

    def __init__(self, modalities: Sequence[Modality], sizes: Mapping[str, int], noise: float = 0.05) -> None:
        super().__init__()
        self.sizes, self.noise, self.modalities = dict(sizes), noise, {m.name: m for m in modalities}
        shapes = {m.name: m.likelihood.feature_shape(m.shape) for m in modalities}
        self.encoders = nn.ModuleDict({m.name: m.net.encoder(shapes[m.name], sizes[m.name]) for m in modalities})
        self.scalers = nn.ModuleDict({m: Scaler(d) for m, d in self.sizes.items()})
        self.register_buffer("moved", torch.tensor(False))  # the encoders did, since the scalers began

    @property
    def names(self) -> tuple[str, ...]:
        """What it codes."""
        return tuple(self.sizes)

    def raw(self, batch: Batch) -> dict[str, Tensor]:
        """e_m(x_m) `(N, D_m)` of what the batch shows, as the encoders give them."""
        there = [m for m in self.sizes if m in batch.x and m not in batch.hidden]
        return {m: self.modalities[m].apply_net(self.encoders[m], batch.x[m]) for m in there}

    def learn(self, raw: Mapping[str, Tensor], batch: Batch, memory: float | Tensor) -> None:
        """Take codes into the scalers that are in training mode, which forget those more than `memory` rows ago."""
        for m, code in raw.items():
            if self.scalers[m].training:
                self.scalers[m].learn(code, batch.mask[m], memory)  # type: ignore[operator]

    def base(self, batch: Batch, raw: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (0: missing) and presence by coordinate `(..., N, D)`, and presence by modality `(..., N, M)`."""
        raw = self.raw(batch) if raw is None else raw
        parts = [
            self.scalers[m](raw[m]) if m in raw else self._blank(m, len(batch), size) for m, size in self.sizes.items()
        ]
        there = torch.stack(torch.broadcast_tensors(*(presence(batch, m) for m in self.sizes)), -1)
        wide = there.repeat_interleave(torch.tensor(list(self.sizes.values()), device=there.device), -1)
        return torch.where(wide, torch.cat(parts, -1), 0.0), wide, there

    def _blank(self, m: str, n: int, size: int) -> Tensor:
        like = next(self.encoders[m].parameters())
        return torch.zeros(n, size, dtype=like.dtype, device=like.device)

    def forward(self, batch: Batch) -> None:
        raw = self.raw(batch)
        if self.training:
            self.learn(raw, batch, RECENT)
            self.moved.fill_(True)
        loc, wide, _ = self.base(batch, raw)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.around(loc, wide))

    def around(self, loc: Tensor, wide: Tensor) -> Any:
        """N(loc, noise^2) where there is a code, N(0, 1) elsewhere."""
        scale = torch.where(wide, self.noise, 1.0).to(loc.dtype)
        return Normal(loc, scale, validate_args=False).to_event(1)


class Learnt(nn.Module):
    """Codes as they are, without noise, for `masked_denoising`.

    In training mode the scalers learn from all of them, anew where the encoders had moved.
    """

    def __init__(self, codes: Codes) -> None:
        super().__init__()
        self.codes = codes

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        codes = self.codes
        raw = codes.raw(batch)
        if codes.encoders.training:
            codes.learn(raw, batch, RECENT)
        elif codes.scalers.training:
            codes.learn(raw, batch, torch.where(codes.moved, 0.0, math.inf))
            codes.moved.fill_(False)
        loc, _, there = codes.base(batch, raw)
        return loc, there


class LatentDiffusion(nn.Module):
    """z_A = codes of what is present;  z_B | z_A by the diffusion with A held at angle 0 (Bounoua et al. 2024).

    q(z | x_A) = N(z_A; e_A(x_A), noise^2 I) q(z_B | z_A), the second by the probability flow of v(z, (0_A, phi_B)).
    With nothing present it is the diffusion's own p(z).

    Args:
        codes: encoders of all modalities.
        velocity: `(z (..., D), phi (..., M)) -> (..., D)`.
        options: `steps`, `sampler`, `probes` of `Diffused`.
    """

    def __init__(self, codes: Codes, velocity: nn.Module, **options: Any) -> None:
        super().__init__()
        self.codes, self.velocity, self.options = codes, velocity, options

    @property
    def names(self) -> tuple[str, ...]:
        """What it sees."""
        return self.codes.names

    def posterior(self, batch: Batch) -> Diffused:
        """q(z | the present modalities)."""
        loc, wide, there = self.codes.base(batch)

        def velocity(z: Tensor, angle: Tensor) -> Tensor:
            return self.velocity(z, torch.where(there, 0.0, angle))  # type: ignore[no-any-return]

        return Diffused(velocity, self.codes.around(loc, wide), ~wide, **self.options)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))


def side_by_side(modalities: Sequence[Modality], dim: int | Mapping[str, int]) -> dict[str, int]:
    """D_m of every modality."""
    names = names_of(modalities)
    return dict.fromkeys(names, dim) if isinstance(dim, int) else {m: dim[m] for m in names}
