"""The Frechet Inception Distance itself, for figures that are to stand beside published ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["inception_fid"]


def inception_fid(real: Tensor, made: Tensor, batch_size: int = 64) -> float:
    """FID (Heusel et al. 2017) between images `(N, C, H, W)` in [0, 1], by the package torch-fidelity.

    In features of the Inception network of TensorFlow, whose weights torch-fidelity fetches at its first use; grey
    images are given three equal channels.  That network knows photographs: of digits or spectra a distance in features
    of a network of their own (`judges`, `frechet`) says more.  Biased upwards, as `frechet` is: compare equal N only,
    and published figures only where N is theirs (50,000 mostly).

    Raises:
        ImportError: torch-fidelity is not installed; the message says how.
        ValueError: not images of one or three channels in [0, 1].
    """
    try:
        from torch_fidelity import calculate_metrics
    except ImportError as error:
        raise ImportError("inception_fid needs torch-fidelity: pip install 'pyro_mm[fid]'") from error
    parts = [_Images(images, what) for images, what in ((made, "made"), (real, "real"))]
    found = calculate_metrics(
        input1=parts[0], input2=parts[1], fid=True, cuda=real.is_cuda, batch_size=batch_size, verbose=False
    )
    return float(found["frechet_inception_distance"])


class _Images(Dataset[Any]):
    """Bytes `(3, H, W)`, as torch-fidelity wants them."""

    def __init__(self, images: Tensor, what: str) -> None:
        if images.dim() != 4 or images.shape[1] not in (1, 3) or not len(images):
            raise ValueError(f"{what} images must be (N, 1 or 3, H, W), got {tuple(images.shape)}")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{what} images must lie in [0, 1], got {low:g} to {high:g}")
        self.images = images.detach().cpu()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return (255 * self.images[index]).round().to(torch.uint8).expand(3, -1, -1)
