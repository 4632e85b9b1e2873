"""How one value of a modality is drawn in one cell: images, labels, tokens, vectors and numbers.

The kind follows from event shape and likelihood.  Content is taken from data (`of_data`) or from decoders
(`of_distribution`); a `show=` hook replaces the drawing of a modality by the user's own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mm import likelihoods as lik
from pyro_mm.modality import Modality
from pyro_mm.plots.style import GREY, INK, tint

__all__ = ["Content", "Hook", "Look", "draw", "kind_of", "looks", "of_data", "of_distribution", "written"]

Hook = Callable[[Any, Tensor], object]
SAMPLES = 100  # for the mean of a distribution that does not know its own
WIDTH = {"image": 0.9, "label": 1.0, "tokens": 1.3, "vector": 1.3, "number": 1.0}  # of cells, in inches
CHARACTERS, LINES = 16, 5  # of text that fit into a cell of 1.3 x 0.9 inches


@dataclass(frozen=True)
class Content:
    """What one cell shows.

    Attributes:
        value: of event shape: the datum, a distribution's mean, or its most probable value where a mean means nothing.
        probabilities: of a label's classes, `(C,)`; 0 and 1 for a datum.
        spread: standard deviation, of event shape, where known.
    """

    value: Tensor
    probabilities: Tensor | None = None
    spread: Tensor | None = None


@dataclass(frozen=True)
class Look:
    """How a modality is drawn throughout one figure: its kind, colour, range of values and the user's hook."""

    modality: Modality
    kind: str
    colour: str
    low: float
    high: float
    hook: Hook | None = None


def kind_of(modality: Modality) -> str:
    """`image`, `label`, `tokens`, `vector` or `number`."""
    shape, likelihood = modality.shape, modality.likelihood
    if classes_of(modality) is not None:
        return "label"
    if len(shape) == 1 and isinstance(likelihood, lik.Tokens | lik.Categorical):
        return "tokens"
    if len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3))):
        return "image"
    return "vector" if shape else "number"


def classes_of(modality: Modality) -> int | None:
    """How many classes a label has; None for what is no label."""
    shape, likelihood = modality.shape, modality.likelihood
    if isinstance(likelihood, lik.Categorical) and shape == ():
        return likelihood.classes
    if isinstance(likelihood, lik.OneHotCategorical):
        return shape[0]
    return 2 if isinstance(likelihood, lik.Bernoulli) and shape == () else None


def of_data(modality: Modality, x: Tensor) -> list[Content]:
    """One cell for every row of `x` `(N, *event)`."""
    x = _host(x)
    if (classes := classes_of(modality)) is None:
        return [Content(row) for row in x]
    hot = x.double() if x.dim() == 2 else torch.nn.functional.one_hot(x.long(), classes).double()
    return [Content(row, p) for row, p in zip(x, hot, strict=True)]


def of_distribution(modality: Modality, fn: Any, device: torch.device | str = "cpu") -> list[Content]:
    """One cell for every row of a distribution of batch shape `(k, N)`, averaged over k.

    Tokens have no average: they are the most probable ones at the first draw.  `device` is where its parameters are.
    """
    classes = classes_of(modality)
    if classes is not None:
        p = _host(_probabilities(modality, fn, classes, device))
        values = p.argmax(-1)
        if modality.shape:
            values = torch.nn.functional.one_hot(values, classes)
        return [Content(v, row) for v, row in zip(values, p, strict=True)]
    if isinstance(modality.likelihood, lik.Tokens | lik.Categorical):
        return [Content(row) for row in _host(fn.mode[0])]
    mean = _host(_mean(fn))
    spread = _spread(fn, mean)
    spreads: Sequence[Tensor | None] = [None] * mean.shape[1] if spread is None else list(spread)
    return [Content(row, spread=s) for row, s in zip(mean.mean(0), spreads, strict=True)]


def _host(x: Tensor) -> Tensor:
    """Values that numpy can hold: on the CPU, without a graph, in a precision it knows."""
    x = x.detach().cpu()
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def looks(
    modalities: Sequence[Modality],
    colours: Mapping[str, str],
    contents: Mapping[str, Sequence[Content]],
    show: Mapping[str, Hook] | None,
) -> dict[str, Look]:
    """A look for every modality, its range wide enough for all that will be drawn.

    Raises:
        ValueError: `show` names an unknown modality.
    """
    hooks = dict(show or {})
    if unknown := set(hooks) - {m.name for m in modalities}:
        raise ValueError(f"show= names {sorted(unknown)}, but the modalities are {[m.name for m in modalities]}")
    return {
        m.name: Look(m, kind_of(m), colours[m.name], *_range(m, contents.get(m.name, ())), hooks.get(m.name))
        for m in modalities
    }


def draw(ax: Any, content: Content, look: Look) -> None:
    """Draw one cell."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
    if look.hook is not None:
        look.hook(ax, content.value)
    else:
        DRAW[look.kind](ax, content, look)


def draw_image(ax: Any, content: Content, look: Look) -> None:
    """Grey levels for one channel, black to white over the range; colours for three."""
    value = content.value
    if value.dim() == 3:
        value = value.movedim(0, -1) if value.shape[0] in (1, 3) else value
        value = value[..., 0] if value.shape[-1] == 1 else (value - look.low) / (look.high - look.low)
    image = value.numpy() if value.dim() == 2 else value.clamp(0, 1).numpy()
    ax.imshow(image, cmap="gray", vmin=look.low, vmax=look.high, interpolation="nearest")


def draw_label(ax: Any, content: Content, look: Look) -> None:
    """A bar per class; the most probable one in full colour, with its number."""
    assert content.probabilities is not None
    p = content.probabilities.numpy()
    top = int(p.argmax())
    bars = ax.bar(np.arange(len(p)), p, width=0.82, color=tint(look.colour, 0.35))
    bars[top].set_color(look.colour)
    ax.set_xlim(-0.9, len(p) - 0.1)
    ax.set_ylim(0, 1.34)
    ax.text(top, p[top] + 0.03, str(top), ha="center", va="bottom", fontsize=9, fontweight="bold", color=look.colour)


def draw_tokens(ax: Any, content: Content, look: Look) -> None:
    """Token numbers up to the end of the sequence; `show=` with `written` gives words."""
    tokens = content.value.tolist()
    pad = getattr(look.modality.likelihood, "pad", None)
    if pad in tokens:
        tokens = tokens[: tokens.index(pad)]
    write(ax, " ".join(str(int(t)) for t in tokens), look.colour)


def draw_vector(ax: Any, content: Content, look: Look) -> None:
    """A line over the elements, with a band of one standard deviation where there is one."""
    value = content.value.flatten().double().numpy()
    index = np.arange(len(value))
    if content.spread is not None:
        s = content.spread.flatten().double().numpy()
        ax.fill_between(index, value - s, value + s, color=tint(look.colour, 0.22), linewidth=0)
    marker = "o" if len(value) <= 24 else ""
    ax.plot(index, value, color=look.colour, linewidth=1.2, marker=marker, markersize=2.6)
    ax.set_xlim(-0.5 - 0.02 * len(value), len(value) - 0.5 + 0.02 * len(value))
    ax.set_ylim(*_margin(look, 0.12))


def draw_number(ax: Any, content: Content, look: Look) -> None:
    """The number, and its place on a scale that all cells share."""
    value = content.value.item()
    text = f"{value:.3g}"
    if content.spread is not None:
        s = content.spread.item()
        text += f" ± {s:.2g}"
        ax.plot([value - s, value + s], [0.3, 0.3], color=tint(look.colour, 0.45), linewidth=3.5, solid_capstyle="butt")
    ax.plot(_margin(look, 0.0), [0.3, 0.3], color=GREY, linewidth=0.6, zorder=0)
    ax.plot([value], [0.3], marker="o", markersize=4.5, color=look.colour)
    ax.text(0.5, 0.7, text, transform=ax.transAxes, ha="center", va="center", fontsize=8, color=INK)
    ax.set_xlim(*_margin(look, 0.15))
    ax.set_ylim(0, 1)


DRAW: dict[str, Callable[[Any, Content, Look], None]] = {
    "image": draw_image,
    "label": draw_label,
    "tokens": draw_tokens,
    "vector": draw_vector,
    "number": draw_number,
}


def written(read: Callable[[Tensor], str]) -> Hook:
    """A hook that writes a value as text: `show={"caption": written(lambda t: vocabulary.decode(t))}`."""
    return lambda ax, value: write(ax, read(value))


def write(ax: Any, text: str, colour: str = INK) -> None:
    """Text in the middle of a cell, broken into lines that fit; what does not fit ends in dots."""
    ax.set_xticks([])
    ax.set_yticks([])
    lines = textwrap.wrap(text, CHARACTERS, max_lines=LINES, placeholder=" …") or ["(empty)"]
    style = {"color": colour} if text.strip() else {"color": GREY, "style": "italic"}
    ax.text(0.5, 0.5, "\n".join(lines), transform=ax.transAxes, ha="center", va="center", fontsize=8, **style)


def _margin(look: Look, share: float) -> tuple[float, float]:
    extra = share * (look.high - look.low)
    return look.low - extra, look.high + extra


def _range(modality: Modality, contents: Sequence[Content]) -> tuple[float, float]:
    """The support where it is bounded, else what occurs among the contents."""
    likelihood = modality.likelihood
    if isinstance(likelihood, lik.Bernoulli | lik.ContinuousBernoulli):
        return 0.0, 1.0
    if isinstance(likelihood, lik.Binomial):
        return 0.0, float(likelihood.total)
    if isinstance(likelihood, lik.Categorical):
        return 0.0, float(likelihood.classes - 1)
    values = [v.double().flatten() for c in contents for v in _extent(c) if v.numel()]
    low, high = (torch.cat(values).min().item(), torch.cat(values).max().item()) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _extent(content: Content) -> list[Tensor]:
    """The value, and what lies a standard deviation beside it."""
    if content.spread is None:
        return [content.value]
    return [content.value, content.value - content.spread, content.value + content.spread]


def _probabilities(modality: Modality, fn: Any, classes: int, device: torch.device | str) -> Tensor:
    """Mean over draws of the classes' probabilities, `(N, C)`: from densities, so that any distribution will do."""
    one_hot = bool(modality.shape)
    labels = torch.eye(classes) if one_hot else torch.arange(classes)
    if isinstance(modality.likelihood, lik.Bernoulli):
        labels = labels.to(torch.get_default_dtype())
    values = labels.reshape(classes, 1, 1, *labels.shape[1:]).to(device)
    return fn.log_prob(values).double().softmax(0).mean(1).T


def _mean(fn: Any) -> Tensor:
    """`(k, N, *event)`."""
    try:
        return fn.mean
    except NotImplementedError:
        return fn.sample((SAMPLES,)).mean(0)


def _spread(fn: Any, mean: Tensor) -> Tensor | None:
    """Standard deviation over draws and noise, `(N, *event)`."""
    try:
        noise = _host(fn.base.variance).reshape(mean.shape)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    between = mean.var(0, correction=0)
    return (noise.mean(0) + between).sqrt()
