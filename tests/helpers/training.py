"""Small things to train: three modalities, a pair, data that draw noise, and callbacks that watch or interrupt."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.likelihoods import Binomial, Categorical, Normal
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.networks import MLP

MODALITIES = [
    Modality("image", (3,), Normal(), MLP((16,))),
    Modality("count", (2,), Binomial(16), MLP((16,))),
    Modality("label", (), Categorical(4), MLP((16,))),
]
NAMES = [m.name for m in MODALITIES]


def data(n: int = 22, seed: int = 1) -> Batch:
    """Rows of the three modalities, some of them missing."""
    g = torch.Generator().manual_seed(seed)
    x = {
        "image": torch.randn(n, 3, generator=g),
        "count": torch.randint(0, 17, (n, 2), generator=g).float(),
        "label": torch.randint(0, 4, (n,), generator=g),
    }
    return Batch(x, {"count": torch.rand(n, generator=g) < 0.8})


def pair(seed: int = 7, dim: int = 2) -> tuple[Joint, Experts]:
    """A model and a guide, with parameters that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Joint(decoders(MODALITIES, dim), dim), Experts(encoders(MODALITIES, dim), product_of_experts)


class Noisy(Dataset):
    """A data set that draws from torch's global stream whenever rows are read, as re-binarised images do."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    def __getitems__(self, rows: list[int]) -> Batch:
        some = self.batch[rows]
        return Batch({**some.x, "image": torch.bernoulli(torch.sigmoid(some.x["image"]))}, some.mask)

    def __getitem__(self, row: int) -> Batch:
        return self.__getitems__([row])


class Losses:
    """The loss of every step, by step number."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_step(self, state: Any) -> None:
        self.by_step[state.step] = state.loss


class At:
    """Do something once, after a given step."""

    def __init__(self, step: int, action: Callable[[Any], Any]) -> None:
        self.step, self.action = step, action

    def on_step(self, state: Any) -> None:
        if state.step == self.step:
            self.action(state)


def raising(error: BaseException) -> Callable[[Any], Any]:
    """An action that raises."""

    def action(state: Any) -> None:
        raise error

    return action


def values(*modules: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {f"{i}.{n}": t.clone() for i, m in enumerate(modules) for n, t in m.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def rows_of(history: Any) -> list[dict[str, Any]]:
    """A history's rows without the time they took."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]
