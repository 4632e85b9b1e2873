"""A diffusion as the decoder of one image modality: sharp pictures given z, and no density."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_mm.distributions import Diffused, Normal
from pyro_mm.modality import Modality
from pyro_mm.models.diffusion_prior import Averaged

__all__ = ["DiffusionDecoder", "Rendered", "UNet"]

STEPS = 1000.0  # the U-Net's own unit of time


class UNet(nn.Module):
    """v(x, phi, z) of images: a U-Net of `diffusers`, told z beside the angle.

    Args:
        shape: `(C, H, W)` or `(H, W)`.
        dim: of z.
        widths: channels at every resolution, the first one's being that of the image; each must halve H and W evenly.

    Raises:
        ImportError: the package diffusers is not there.
        ValueError: a shape that cannot be halved so often, or widths that are no multiples of 8.
    """

    def __init__(self, shape: Sequence[int], dim: int, widths: Sequence[int] = (32, 64)) -> None:
        super().__init__()
        self.shape = shape = (1, *shape) if len(shape) == 2 else tuple(shape)
        if len(shape) != 3 or any(s % 2 ** (len(widths) - 1) for s in shape[1:]):
            raise ValueError(f"images (C, H, W) that halve {len(widths) - 1} times are needed, got {shape}")
        if any(w % 8 for w in widths):
            raise ValueError(f"widths are multiples of 8, got {tuple(widths)}")
        n = len(widths)
        self.net = _diffusers().UNet2DModel(
            sample_size=tuple(shape[1:]),
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=tuple(widths),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * n,
            up_block_types=("UpBlock2D",) * n,
            attention_head_dim=8,
            norm_num_groups=8,
            class_embed_type="identity",
        )
        self.told = nn.Sequential(nn.Linear(dim, 4 * widths[0]), nn.SiLU(), nn.Linear(4 * widths[0], 4 * widths[0]))

    def forward(self, x: Tensor, angle: Tensor, z: Tensor) -> Tensor:
        """Of the shape of x `(B, *shape)`; angles `(B,)`, z `(B, D)`."""
        image = x.reshape(len(x), *self.shape)
        out: Tensor = self.net(image, angle * (STEPS * 2 / pi), class_labels=self.told(z)).sample
        return out.reshape(x.shape)


class DiffusionDecoder(nn.Module):
    """x_m ~ the diffusion of images given z, whose draws are sharp where a decoder's mean is blurred.

    It is fitted after everything else, with `with_decoder`.  It has no density of x that could be had at a bearable
    price: `log_prob` raises `NotImplementedError`, and `log_marginal` of the model `NoLikelihood`.

    Args:
        modality: an image with values in [0, high].
        dim: of z.
        widths: of the U-Net.
        steps, sampler: of draws, as in `Diffused`.
        high: the largest value; by default 1, or the number of trials of a `Binomial`.
    """

    def __init__(
        self,
        modality: Modality,
        dim: int,
        widths: Sequence[int] = (32, 64),
        steps: int = 30,
        sampler: str = "ddim",
        high: float | None = None,
    ) -> None:
        super().__init__()
        self.modality, self.options = modality, {"steps": steps, "sampler": sampler}
        self.velocity = Averaged(UNet(modality.shape, dim, widths))
        self.high = float(getattr(modality.likelihood, "total", 1.0)) if high is None else high

    def forward(self, z: Tensor) -> Rendered:
        return Rendered(self, z)

    def scaled(self, x: Tensor) -> Tensor:
        """Images with values in [-1, 1]."""
        return 2 * x / self.high - 1

    def image(self, scaled: Tensor) -> Tensor:
        """The other way; what lies outside is brought to the ends."""
        return (scaled.clamp(-1, 1) + 1) * (self.high / 2)


class Rendered(TorchDistribution):
    """Images given z `(..., D)`, drawn by a diffusion."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real
    has_rsample = False

    def __init__(self, decoder: DiffusionDecoder, z: Tensor) -> None:
        self.decoder, self.z = decoder, z
        super().__init__(z.shape[:-1], torch.Size(decoder.modality.shape), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Rendered:
        return Rendered(self.decoder, self.z.expand(*batch_shape, self.z.shape[-1]))

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        z = self.z.expand(*shape, self.z.shape[-1]).flatten(0, -2)
        event, size = self.event_shape, self.event_shape.numel()
        base = Normal(z.new_zeros(len(z), size), z.new_ones(()), validate_args=False).to_event(1)

        def velocity(x: Tensor, angle: Tensor) -> Tensor:
            v: Tensor = self.decoder.velocity(x.view(-1, *event), angle.squeeze(-1), z)
            return v.flatten(1)

        options: dict[str, Any] = self.decoder.options
        drawn = Diffused(velocity, base, **options).sample()
        return self.decoder.image(drawn).reshape(shape + event)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError(
            f"the decoder of '{self.decoder.modality.name}' is a diffusion, which draws images only"
        )


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("diffusion decoders need the package diffusers: pip install diffusers") from error
    return diffusers
