"""How one value of a modality is drawn in one cell: images, labels, tokens, signals, vectors and numbers.

The kind follows from event shape and likelihood, and for signals from the modality's name too; a `show=` hook replaces
the drawing of a modality by the user's own.
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
from pyro_mm.plots.contents import Content, classes_of
from pyro_mm.plots.signals import is_spectrogram, is_stroke, spectrogram, stroke
from pyro_mm.plots.style import GREY, INK, tint

__all__ = ["Hook", "Look", "draw", "kind_of", "looks", "written"]

Hook = Callable[[Any, Tensor], object]
WIDTH = {"label": 1.0, "number": 1.0, "tokens": 1.3, "vector": 1.3}  # of cells, in inches; of other kinds HEIGHT
STROKES, SPECTROGRAMS = {"trajectory"}, {"sound"}  # names that say what a shape alone does not
CHARACTERS, LINES = 16, 5  # of text that fit into a cell of 1.3 x 0.9 inches


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
    """`image`, `label`, `tokens`, `vector` or `number`; `stroke` or `spectrogram` for what is named so and fits."""
    shape, likelihood = modality.shape, modality.likelihood
    if classes_of(modality) is not None:
        return "label"
    if len(shape) == 1 and isinstance(likelihood, lik.Tokens | lik.Categorical):
        return "tokens"
    if modality.name in STROKES and is_stroke(shape):
        return "stroke"
    if modality.name in SPECTROGRAMS and is_spectrogram(shape):
        return "spectrogram"
    if len(shape) == 2 or (len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3))):
        return "image"
    return "vector" if shape else "number"


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
    return {m.name: _look(m, colours[m.name], contents.get(m.name, ()), hooks.get(m.name)) for m in modalities}


def _look(modality: Modality, colour: str, contents: Sequence[Content], hook: Hook | None) -> Look:
    """The library's own signals, given as hooks, are kinds: they share colour and range like any other."""
    own = "stroke" if hook is stroke else "spectrogram" if hook is spectrogram else None
    kind = own or kind_of(modality)
    return Look(modality, kind, colour, *_range(modality, kind, contents), None if own else hook)


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


def draw_stroke(ax: Any, content: Content, look: Look) -> None:
    """A pen's way over the paper."""
    stroke(ax, content.value, look.colour, look.low, look.high)


def draw_spectrogram(ax: Any, content: Content, look: Look) -> None:
    """Loudness by time and frequency."""
    spectrogram(ax, content.value, look.low, look.high)


DRAW: dict[str, Callable[[Any, Content, Look], None]] = {
    "image": draw_image,
    "label": draw_label,
    "tokens": draw_tokens,
    "stroke": draw_stroke,
    "spectrogram": draw_spectrogram,
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


def _range(modality: Modality, kind: str, contents: Sequence[Content]) -> tuple[float, float]:
    """The support where it is bounded, else what occurs among the contents."""
    spread = kind in ("vector", "number")  # others show no deviations
    likelihood = modality.likelihood
    if isinstance(likelihood, lik.Bernoulli | lik.ContinuousBernoulli):
        return 0.0, 1.0
    if isinstance(likelihood, lik.Binomial):
        return 0.0, float(likelihood.total)
    if isinstance(likelihood, lik.Categorical):
        return 0.0, float(likelihood.classes - 1)
    if isinstance(likelihood, lik.Normal) and likelihood.bounded and not spread:
        return 0.0, 1.0
    values = [v.double().flatten() for c in contents for v in _extent(c, spread) if v.numel()]
    low, high = (torch.cat(values).min().item(), torch.cat(values).max().item()) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _extent(content: Content, spread: bool) -> list[Tensor]:
    """The value, and what lies a standard deviation beside it where that is drawn."""
    if content.spread is None or not spread:
        return [content.value]
    return [content.value, content.value - content.spread, content.value + content.spread]
