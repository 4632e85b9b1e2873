"""Scikit-learn's 1,797 real handwritten digits (8x8, 17 grey levels): no download, and trained on in seconds.

Each pixel counts how many of 16 points of the original 32x32 bitmap were ink, so its likelihood is Binomial(16).
The rows are split 70/10/20 within every class, the same way for every set here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.data.splits import Splits, stratified
from pyro_mm.likelihoods import Binomial, Categorical, Tokens
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP

__all__ = ["VOCABULARY", "caption_label", "caption_text", "digit_captions", "digit_halves", "digits"]

SHARES = (0.7, 0.1, 0.2)
NOTE = "scikit-learn's digits (UCI 80, CC BY 4.0), pixels Binomial(16), 70/10/20 within every class"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PIXELS = Binomial(16)
NET = MLP((256,))  # on 1,258 rows one hidden layer learns faster and better than two, convolutions or a GRU

VOCABULARY = "\0 abcdefghijklmnopqrstuvwxyz"
"""Captions are spelt in these 28 characters; a token is a place in this string, and token 0 ends and pads."""
LONGEST = len("bold seven")


def digits(seed: int = 0) -> Splits:
    """Real 8x8 digits with their labels: `image` (8, 8) counts 0..16, `label` 0..9.

    Args:
        seed: decides which rows are for training (1,258), validation (180) and testing (359).

    Raises:
        ImportError: scikit-learn is missing.
    """
    image, label = _load()
    return _splits("digits", {"image": image}, label, seed, (Modality("image", (8, 8), PIXELS, NET), _label()))


def digit_halves(seed: int = 0) -> Splits:
    """Real 8x8 digits cut in two, with their labels: `top` and `bottom` (4, 8) counts 0..16, `label` 0..9.

    Argument, splits and error as in `digits`.
    """
    image, label = _load()
    halves = {"top": image[:, :4], "bottom": image[:, 4:]}
    modalities = (*(Modality(m, (4, 8), PIXELS, NET) for m in halves), _label())
    return _splits("digit_halves", halves, label, seed, modalities)


def digit_captions(seed: int = 0) -> Splits:
    """Real 8x8 digits with a spelt caption: `image` (8, 8) counts 0..16, `caption` (10,) tokens, "bold seven".

    The first word is "bold" where the picture has more ink than the median training picture of its class, else
    "thin"; the second is the digit's name.  Characters become tokens by their place in `VOCABULARY`, and shorter
    captions are padded with 0.  `caption_text` and `caption_label` read them.  Argument and error as in `digits`.
    """
    image, label = _load()
    ink = image.sum((1, 2))
    train = stratified(label, SHARES, seed)[0]
    usual = torch.stack([ink[train][label[train] == c].median() for c in range(10)])
    bold = (ink > usual[label]).tolist()
    words = [f"{'bold' if b else 'thin'} {NAMES[c]}" for b, c in zip(bold, label.tolist(), strict=True)]
    x = {"image": image, "caption": torch.stack([_spelt(w) for w in words])}
    modalities = (
        Modality("image", (8, 8), PIXELS, NET),
        Modality("caption", (LONGEST,), Tokens(len(VOCABULARY)), NET),
    )
    return _splits("digit_captions", x, label, seed, modalities)


def caption_text(tokens: Tensor) -> list[str]:
    """Captions `(N, T)`, each cut at its first 0, as strings.

    Raises:
        ValueError: a token is outside `VOCABULARY`, or the shape is not `(N, T)`.
    """
    if tokens.dim() != 2 or bool(((tokens < 0) | (tokens >= len(VOCABULARY))).any()):
        raise ValueError(
            f"captions are (N, T) tokens from 0 to {len(VOCABULARY) - 1}; got shape {tuple(tokens.shape)}"
            + (f" from {tokens.min().item():g} to {tokens.max().item():g}" if tokens.numel() else "")
        )
    return ["".join(VOCABULARY[int(t)] for t in row).split("\0")[0] for row in tokens.tolist()]


def caption_label(tokens: Tensor) -> Tensor:
    """The digit each caption `(N, T)` names in its last word, `(N,)`; -1 where that is no digit's name."""
    last = [(text.split() or [""])[-1] for text in caption_text(tokens)]
    return torch.tensor([NAMES.index(w) if w in NAMES else -1 for w in last])


def _load() -> tuple[Tensor, Tensor]:
    """All images `(1797, 8, 8)` and labels `(1797,)`."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    return torch.as_tensor(raw.images, dtype=torch.get_default_dtype()), torch.as_tensor(raw.target).long()


def _label() -> Modality:
    return Modality("label", (), Categorical(10), NET)


def _spelt(words: str) -> Tensor:
    return torch.tensor([VOCABULARY.index(c) for c in words.ljust(LONGEST, "\0")])


def _splits(name: str, x: Mapping[str, Tensor], label: Tensor, seed: int, modalities: tuple[Modality, ...]) -> Splits:
    """The rows divided by class; labels are a modality only if `modalities` say so."""
    labelled = any(m.name == "label" for m in modalities)
    every = Batch.of({**x, "label": label} if labelled else x, modalities)
    train, validation, test = (every[rows] for rows in stratified(label, SHARES, seed))
    return Splits(name, modalities, train, validation, test, "label" if labelled else None, f"{NOTE}; seed {seed}")
