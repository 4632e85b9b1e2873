"""What the library needs to know about one modality: its name, event shape, likelihood and networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.input_noise import InputNoise
from pyro_mm.likelihoods import Likelihood
from pyro_mm.networks import MLP, Net, Recurrent, event_flat
from pyro_mm.sharing import once

__all__ = ["Decoder", "Encoder", "Modality", "decoders", "encoders", "names_of"]

RESERVED = {"z", "data", "subset", "particles"}
Family = Callable[..., dist.TorchDistribution]
Scale = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Modality:
    """A named tensor of event shape `shape`, its observation model p(x | z) and its networks.

    Args:
        name: also the name of the observation's sample site.
        shape: event shape; `()` for one label or one number per row.
        likelihood: e.g. `likelihoods.Bernoulli()`.
        net: blueprint of the encoder network, and of the decoder's unless `decoder_net` is given.
        noise: on what networks that read it are shown in training (`input_noise`), or None.
    """

    name: str
    shape: tuple[int, ...]
    likelihood: Likelihood
    net: Net = field(default_factory=MLP)
    decoder_net: Net | None = None
    noise: InputNoise | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.name.isidentifier() or self.name in RESERVED or self.name[:2] in ("z_", "w_"):
            raise ValueError(
                f"'{self.name}' cannot name a modality: use an identifier other than {sorted(RESERVED)}, z_*, w_*"
            )
        if hasattr(nn.ModuleDict(), self.name):
            raise ValueError(f"'{self.name}' cannot name a modality: torch's ModuleDict uses that word")
        self.likelihood.raw_shape(self.shape)
        if self.noise is not None and isinstance(self.net, Recurrent):
            raise ValueError(
                f"'{self.name}': noise would hide where sequences end, which a recurrent network looks for"
            )

    def apply_net(self, net: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`net` on the features of x `(..., *shape)`, leading dimensions flattened and restored.

        In training mode the features carry the modality's `noise`; with a mask `(..., N)` they are zero where it is
        False.  Within one evaluation of an objective the same network is run once for the same tensors (`sharing`).
        """
        return once(net, x, mask, lambda: self._applied(net, x, mask))

    def _applied(self, net: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        expect_shape(self, x)
        shape = self.likelihood.feature_shape(self.shape)
        features = self.likelihood.features(x).reshape(*x.shape[: x.dim() - len(self.shape)], *shape)
        if self.noise is not None and net.training:
            features = self.noise(features, len(shape))
        if mask is not None:
            features = torch.where(mask.view(*mask.shape, *[1] * len(shape)), features, 0.0)
        weight = next(net.parameters(), None)
        return event_flat(net, features if weight is None else features.to(weight.dtype), len(shape))

    def encoder(self, dim: int, family: Family = dist.Normal, scale: Scale | None = None) -> Encoder:
        """A network x -> q(z | x) over `dim` latents; `family` is any location-scale distribution."""
        return Encoder(self, dim, family, scale)

    def decoder(self, dim: int) -> Decoder:
        """A network z -> p(x | z) from `dim` latents."""
        return Decoder(self, dim)


class Encoder(nn.Module):
    """x `(..., *shape)` -> independent location-scale distribution with event shape `(dim,)`."""

    modality: Modality

    def __init__(self, modality: Modality, dim: int, family: Family = dist.Normal, scale: Scale | None = None) -> None:
        super().__init__()
        self.modality, self.family, self.scale = modality, family, scale or positive
        self.net = modality.net.encoder(modality.likelihood.feature_shape(modality.shape), 2 * dim)

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        return self.distribution(self.modality.apply_net(self.net, x))

    def distribution(self, out: Tensor) -> dist.TorchDistribution:
        """q(z | x) from what the network gives, `(..., 2 dim)`."""
        loc, raw = out.chunk(2, -1)
        return self.family(loc, self.scale(raw), validate_args=False).to_event(1)


class Decoder(nn.Module):
    """z `(..., dim)` -> p(x | z) with event shape `shape`."""

    def __init__(self, modality: Modality, dim: int) -> None:
        super().__init__()
        self.modality = modality
        self.net = (modality.decoder_net or modality.net).decoder(dim, modality.likelihood.raw_shape(modality.shape))
        learnt = modality.likelihood.learnt(modality.shape)
        self.learnt = nn.ParameterDict({k: nn.Parameter(v) for k, v in learnt.items()})

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        raw = event_flat(self.net, z, 1)
        return self.modality.likelihood(raw, self.modality.shape, **dict(self.learnt.items()))


def positive(raw: Tensor) -> Tensor:
    """A scale from an unconstrained output, bounded away from 0 so that densities stay finite."""
    return torch.nn.functional.softplus(raw) + 1e-4


def in_shares(raw: Tensor) -> Tensor:
    """Scales whose mean over dimensions is 1, D softmax(raw): those of MMVAE's code (Shi et al. 2019)."""
    return torch.softmax(raw, -1) * raw.shape[-1] + 1e-6


def expect_shape(modality: Modality, x: Tensor) -> None:
    """Raise a ValueError naming the modality and both shapes when `x` does not end in its event shape."""
    shape = modality.shape
    if tuple(x.shape[x.dim() - len(shape) :]) != shape:
        raise ValueError(f"modality '{modality.name}': got a tensor of shape {tuple(x.shape)}, expected (..., {shape})")


def encoders(
    modalities: Sequence[Modality],
    dim: int | Mapping[str, int],
    family: Family = dist.Normal,
    scale: Scale | None = None,
) -> dict[str, Encoder]:
    """One encoder per modality, by name; latents of one size, or of a size for each.

    Args:
        scale: of the distribution, from what the network gives (default: softplus).
    """
    return {m.name: m.encoder(dim if isinstance(dim, int) else dim[m.name], family, scale) for m in modalities}


def decoders(modalities: Sequence[Modality], dim: int | Mapping[str, int]) -> dict[str, Decoder]:
    """One decoder per modality, by name; from latents of one size, or of a size for each."""
    return {m.name: m.decoder(dim if isinstance(dim, int) else dim[m.name]) for m in modalities}


def names_of(modalities: Sequence[Modality]) -> tuple[str, ...]:
    """Their names in order, checked to be distinct."""
    names = tuple(m.name for m in modalities)
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"modalities need distinct names, and at least one; got {list(names)}")
    return names
