"""Network blueprints: small, comparable descriptions from which encoders and decoders are built.

A blueprint is a frozen dataclass (so that a saved model can be rebuilt from JSON) with two methods:
`encoder(shape, out)` gives a module `(B, *shape) -> (B, out)`, `decoder(dim, shape)` one `(B, dim) -> (B, *shape)`.
Modules only ever see one batch dimension: heads flatten particle, subset and data dimensions first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

__all__ = ["MLP", "Conv", "Custom", "Embedding", "Linear", "Net", "Recurrent", "Spectrogram", "event_flat", "flat"]


@dataclass(frozen=True)
class Net:
    """What every blueprint offers."""

    def encoder(self, shape: Sequence[int], out: int) -> nn.Module:
        """`(B, *shape) -> (B, out)`."""
        raise NotImplementedError(f"{type(self).__name__} builds no encoder")

    def decoder(self, dim: int, shape: Sequence[int]) -> nn.Module:
        """`(B, dim) -> (B, *shape)`."""
        raise NotImplementedError(f"{type(self).__name__} builds no decoder")


@dataclass(frozen=True)
class Linear(Net):
    """One affine map; with Normal likelihoods this is the linear-Gaussian model with exact answers."""

    def encoder(self, shape: Sequence[int], out: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), out))

    def decoder(self, dim: int, shape: Sequence[int]) -> nn.Module:
        return nn.Sequential(nn.Linear(dim, prod(shape)), Reshape(shape))


@dataclass(frozen=True)
class MLP(Net):
    """Fully connected layers; `widths` are the hidden sizes, `norm` (`nn.BatchNorm1d`) stands before activations."""

    widths: tuple[int, ...] = (256, 256)
    activation: type[nn.Module] = nn.ReLU
    norm: Callable[[int], nn.Module] | None = None

    def _hidden(self, size: int) -> tuple[list[nn.Module], int]:
        layers: list[nn.Module] = []
        for width in self.widths:
            layers += [nn.Linear(size, width), *([self.norm(width)] if self.norm else []), self.activation()]
            size = width
        return layers, size

    def encoder(self, shape: Sequence[int], out: int) -> nn.Module:
        layers, size = self._hidden(prod(shape))
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(size, out))

    def decoder(self, dim: int, shape: Sequence[int]) -> nn.Module:
        layers, size = self._hidden(dim)
        return nn.Sequential(*layers, nn.Linear(size, prod(shape)), Reshape(shape))


@dataclass(frozen=True)
class Embedding(Net):
    """For labels seen one-hot: a bias-free linear map is an embedding table; then hidden layers."""

    width: int = 256
    widths: tuple[int, ...] = (256,)
    activation: type[nn.Module] = nn.ReLU

    def encoder(self, shape: Sequence[int], out: int) -> nn.Module:
        table = nn.Linear(prod(shape), self.width, bias=False)
        nn.init.normal_(table.weight, std=1.0)
        rest = MLP(self.widths, self.activation).encoder((self.width,), out)
        return nn.Sequential(nn.Flatten(), table, self.activation(), *list(rest.children())[1:])

    def decoder(self, dim: int, shape: Sequence[int]) -> nn.Module:
        return MLP((*self.widths, self.width), self.activation).decoder(dim, shape)


@dataclass(frozen=True)
class Conv(Net):
    """Strided convolutions for images `(C, H, W)` or `(H, W)`; H and W divisible by `2 ** len(channels)`.

    Two layers suit 8x8 and 28x28.  `width` is the size of the hidden layer behind them, or the sizes of several.
    """

    channels: tuple[int, ...] = (32, 64)
    width: int | tuple[int, ...] = 256
    activation: type[nn.Module] = nn.ReLU
    bias: bool = True

    def _image(self, shape: Sequence[int]) -> tuple[int, int, int]:
        c, h, w = (1, *shape) if len(shape) == 2 else tuple(shape) if len(shape) == 3 else (0, 0, 0)
        step = 2 ** len(self.channels)
        if c == 0 or h % step or w % step:
            raise ValueError(
                f"Conv{self.channels} needs an image (C, H, W) or (H, W) with sides divisible by {step}; "
                f"got {tuple(shape)}"
            )
        return c, h, w

    def encoder(self, shape: Sequence[int], out: int) -> nn.Module:
        c, h, w = self._image(shape)
        layers: list[nn.Module] = [Reshape((c, h, w))]
        for width in self.channels:
            layers += [nn.Conv2d(c, width, 4, stride=2, padding=1, bias=self.bias), self.activation()]
            c = width
        size = c * (h >> len(self.channels)) * (w >> len(self.channels))
        hidden, last = MLP(self._widths(), self.activation)._hidden(size)
        return nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(last, out))

    def _widths(self) -> tuple[int, ...]:
        return (self.width,) if isinstance(self.width, int) else tuple(self.width)

    def decoder(self, dim: int, shape: Sequence[int]) -> nn.Module:
        c, h, w = self._image(shape)
        deep = (self.channels[-1], h >> len(self.channels), w >> len(self.channels))
        layers, last = MLP(self._widths()[::-1], self.activation)._hidden(dim)
        layers += [nn.Linear(last, prod(deep)), self.activation(), Reshape(deep, torch.channels_last)]
        sizes = [*reversed(self.channels), c]
        for i, (a, b) in enumerate(pairwise(sizes)):
            layers += [self.activation()] if i else []
            layers += [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=self.bias)]
        return nn.Sequential(*layers, Reshape(shape))


@dataclass(frozen=True)
class Spectrogram(Net):
    """For log-mel spectrograms `(1, T, F)`, T divisible by 4: one convolution over all F bands, two strided in time.

    The sound network of NEXUS (Vasco et al. 2022): (1, F) -> 128, (4, 1) by 2 -> 128, (4, 1) by 2 -> 256, dense 2048.
    """

    channels: tuple[int, int, int] = (128, 128, 256)
    width: int = 2048
    activation: type[nn.Module] = nn.ReLU

    def _sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        if len(shape) != 3 or shape[0] != 1 or shape[1] % 4:
            raise ValueError(f"Spectrogram needs (1, T, F) with T divisible by 4; got {tuple(shape)}")
        return shape[1] // 4, shape[2]

    def encoder(self, shape: Sequence[int], out: int) -> nn.Module:
        (time, bands), (a, b, c) = self._sizes(shape), self.channels
        # (4, 1) convolutions over a width of 1 are those of a sequence, which take half the time on a CPU.
        layers: list[nn.Module] = [nn.Conv2d(1, a, (1, bands)), Reshape((a, time * 4))]
        layers += [nn.BatchNorm1d(a), self.activation()]
        for i, o in ((a, b), (b, c)):
            layers += [nn.Conv1d(i, o, 4, 2, 1), nn.BatchNorm1d(o), self.activation()]
        hidden, last = MLP((self.width,), self.activation)._hidden(c * time)
        return nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(last, out))

    def decoder(self, dim: int, shape: Sequence[int]) -> nn.Module:
        (time, bands), (a, b, c) = self._sizes(shape), self.channels
        layers, last = MLP((self.width,), self.activation)._hidden(dim)
        layers += [nn.Linear(last, c * time), self.activation(), Reshape((c, time))]
        for i, o in ((c, b), (b, a)):
            layers += [nn.ConvTranspose1d(i, o, 4, 2, 1), nn.BatchNorm1d(o), self.activation()]
        return nn.Sequential(*layers, Reshape((a, time * 4, 1)), nn.ConvTranspose2d(a, 1, (1, bands)))


@dataclass(frozen=True)
class Recurrent(Net):
    """A bidirectional GRU for sequences `(T, F)`; steps of nothing but zeros at the end are padding and are skipped."""

    width: int = 64

    def encoder(self, shape: Sequence[int], out: int) -> nn.Module:
        return _SequenceEncoder(*_steps(shape), self.width, out)

    def decoder(self, dim: int, shape: Sequence[int]) -> nn.Module:
        return _SequenceDecoder(dim, *_steps(shape), self.width)


@dataclass(frozen=True)
class Custom(Net):
    """The user's own builders: `encode(shape, out) -> Module` and `decode(dim, shape) -> Module`."""

    encode: Callable[[Sequence[int], int], nn.Module] | None = None
    decode: Callable[[int, Sequence[int]], nn.Module] | None = None

    def encoder(self, shape: Sequence[int], out: int) -> nn.Module:
        return super().encoder(shape, out) if self.encode is None else self.encode(shape, out)

    def decoder(self, dim: int, shape: Sequence[int]) -> nn.Module:
        return super().decoder(dim, shape) if self.decode is None else self.decode(dim, shape)


class Reshape(nn.Module):
    """`(B, ...) -> (B, *shape)`, in a memory format if one is given (transposed convolutions like channels last)."""

    def __init__(self, shape: Sequence[int], memory_format: torch.memory_format = torch.preserve_format) -> None:
        super().__init__()
        self.shape, self.memory_format = tuple(shape), memory_format

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), *self.shape)
        return x if self.memory_format == torch.preserve_format else x.contiguous(memory_format=self.memory_format)

    def extra_repr(self) -> str:
        return str(self.shape)


def _steps(shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"Recurrent needs a sequence (T, F); got {tuple(shape)}")
    return shape[0], shape[1]


class _SequenceEncoder(nn.Module):
    """One GRU over the steps, one over the steps reversed; each is read at its last real step.

    Rows of different lengths share no packed layout, so a row's result never depends on its neighbours.
    """

    def __init__(self, steps: int, features: int, width: int, out: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width, bias=False)
        self.onward = nn.GRU(width, width, batch_first=True)
        self.backward_ = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(2 * width, out)

    def forward(self, x: Tensor) -> Tensor:
        step = torch.arange(x.shape[1], device=x.device)
        last = ((x != 0).any(-1) * step).amax(-1, keepdim=True)
        h = self.embed(x)
        turned = h.gather(1, (last - step).clamp(min=0).unsqueeze(-1).expand_as(h))
        index = last.unsqueeze(-1).expand(-1, 1, h.shape[-1])
        ends = [rnn(s)[0].gather(1, index).squeeze(1) for rnn, s in ((self.onward, h), (self.backward_, turned))]
        return self.head(torch.cat(ends, -1))


class _SequenceDecoder(nn.Module):
    def __init__(self, dim: int, steps: int, features: int, width: int) -> None:
        super().__init__()
        self.start = nn.Linear(dim, width)
        self.place = nn.Parameter(torch.randn(steps, width) * 0.1)
        self.rnn = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, features)

    def forward(self, z: Tensor) -> Tensor:
        steps = self.start(z).unsqueeze(-2) + self.place
        return self.head(self.rnn(steps)[0])


def event_flat(net: Callable[[Tensor], Tensor], x: Tensor, event_dim: int) -> Tensor:
    """`net` on `x` with every leading dimension flattened into one, and put back on the result."""
    lead = x.shape[: x.dim() - event_dim]
    if len(lead) == 1:
        return net(x)
    out = net(x.reshape(-1, *x.shape[len(lead) :]))
    return out.reshape(*lead, *out.shape[1:])


class flat(nn.Module):
    """Wrap a network that expects `(B, *event)` so that a program may call it on `(K, S, N, *event)`."""

    def __init__(self, net: nn.Module, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.event_dim = net, event_dim

    def forward(self, x: Tensor) -> Tensor:
        return event_flat(self.net, x, self.event_dim)
