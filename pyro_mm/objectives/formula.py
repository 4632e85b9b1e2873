"""How programs are written in printed objectives."""

from __future__ import annotations

import re
from typing import Any

from pyro_mm.handlers import Given, InSubsets, innermost

__all__ = ["over_subsets", "q_of", "targets_of", "tex", "views_of"]


def targets_of(model: Any) -> str:
    """The modalities a model scores: `image, label`."""
    return ", ".join(getattr(model, "names", ())) or "x"


def q_of(guide: Any) -> str:
    """A guide as `q(z | image, label)`; a program without names is `q(z | x)`."""
    if getattr(innermost(guide), "unconditional", False):
        return "p(z)"
    kind = getattr(innermost(guide), "symbol", "q")
    if isinstance(guide, InSubsets) and not guide.whole:
        return f"{kind}(z | x_S)"
    shown = guide.shown if isinstance(guide, Given) else getattr(guide, "names", ())
    return f"{kind}(z | {', '.join(shown) or 'x'})"


def views_of(guide: Any) -> list[str]:
    """A guide, once for every subset that it is in: `q(z | image)`, `q(z | label)`."""
    if not isinstance(guide, InSubsets) or guide.whole or not hasattr(guide.subsets, "groups"):
        return [q_of(guide)]
    kind = getattr(innermost(guide), "symbol", "q")
    return [f"{kind}(z | {', '.join(group)})" if group else f"{kind}(z)" for group in guide.subsets.groups]


def over_subsets(body: str, guide: Any) -> str:
    """`sum_S body, S in {image}, {image, label}` where the guide is in subsets."""
    if not isinstance(guide, InSubsets):
        return body
    return f"sum_S {getattr(guide, 'share', '')}{body}, S in {guide.subsets.extra_repr()}"


SYMBOLS = {
    "beta": r"\beta",
    "lambda": r"\lambda",
    "sum_S": r"\sum_S",
    "mean_j": r"\operatorname{mean}_j",
    "x_S": "x_S",
    "W2": "W_2",
    "log": r"\log",
    "in": r"\in",
}


def tex(text: str) -> str:
    """The same in LaTeX: words upright, greek letters, bars with space, `E_q(...)` as an expectation."""
    text = text.replace(" || ", r" \,\|\, ").replace(" | ", r" \mid ").replace("{", r"\{").replace("}", r"\}")

    text = re.sub(r"\bE_(\w+\([^()]*\))", r"\\mathbb{E}_{\1}", text)

    def word(match: re.Match[str]) -> str:
        found = match.group()
        name, _, number = found.rpartition("_")
        if name and number.isdigit():
            return word_of(name) + "_{" + number + "}"
        return SYMBOLS.get(found, word_of(found))

    def word_of(name: str) -> str:
        return r"\mathrm{" + name.replace("_", r"\_") + "}"

    return re.sub(r"(?<![\\\w])[A-Za-z]\w+", word, text)
