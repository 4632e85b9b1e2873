"""Programs whose reparameterised sites use given noise, so that two ways of computing one number can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_mm.batch import Batch


class _Noise(Messenger):
    def __init__(self, noise: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.noise and msg["value"] is None:
            base = msg["fn"].base_dist
            msg["value"], msg["done"] = base.loc + base.scale * self.noise[msg["name"]], True


class WithNoise(nn.Module):
    """The program, its location-scale sites drawn as `loc + scale * noise[site]`."""

    def __init__(self, program: nn.Module, **noise: Tensor) -> None:
        super().__init__()
        self.program, self.noise = program, noise

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(getattr(self.program, "names", ()))

    def forward(self, batch: Batch) -> Any:
        with _Noise(self.noise):
            return self.program(batch)
