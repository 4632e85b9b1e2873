"""How programs are written in printed objectives.

A program is `q(z | image, label)`, read off its `names`.  One that is about more says so itself, by what it has of:
`symbol`, what it is called; `latent_sites(names)`, its latents when it is shown these modalities; `parents_of(name)`,
what a model's observation depends on; `printed_members`, the components of its mixture; `printed_each`, one of several
latents that are inferred one by one; a verb by `printed_factors()`, latents and what each of them is inferred from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyro_mm.handlers import Given, InSubsets, innermost
from pyro_mm.objectives.schedules import Schedule, symbol_of

__all__ = [
    "beta_of",
    "divergences",
    "expected",
    "likelihood_of",
    "over_subsets",
    "prior_of",
    "q_of",
    "sites_of",
    "targets_of",
    "tex",
]

SHOWN = 8  # divergences of a sum over subsets in its formula

Weights = Mapping[str, float | Schedule]


def targets_of(model: Any, guide: Any = None) -> str:
    """The modalities a model scores: `image, label`; `x_S` where it sees what a guide in subsets sees."""
    if in_parts(model, guide):
        return "x_S"
    names = ", ".join(getattr(model, "names", ())) or "x"
    known = getattr(innermost(model), "conditioned_on", ())
    return f"{names} | {', '.join(known)}" if known else names


def sites_of(program: Any) -> tuple[str, ...]:
    """Its latents, `z` unless it says otherwise."""
    if (factors := getattr(program, "printed_factors", None)) is not None:
        return tuple(site for sites, _ in factors() for site in sites)
    found = getattr(innermost(program), "latent_sites", None)
    return ("z",) if found is None else tuple(found(getattr(program, "names", ())))


def q_of(guide: Any) -> str:
    """A guide as `q(z | image, label)`; a program without names is `q(z | x)`."""
    if getattr(innermost(guide), "unconditional", False):
        return "p(z)"
    if (factors := getattr(guide, "printed_factors", None)) is not None:
        return " ".join(written("q", sites, shown) for sites, shown in factors())
    kind = getattr(innermost(guide), "symbol", "q")
    shown = ("x_S",) if isinstance(guide, InSubsets) and not guide.whole else shown_to(guide)
    return written(kind, sites_of(guide), shown or ("x",))


def written(kind: str, sites: tuple[str, ...], shown: tuple[str, ...]) -> str:
    """`q(z, w | image)`."""
    return f"{kind}({', '.join(sites)}{' | ' if shown else ''}{', '.join(shown)})"


def shown_to(guide: Any) -> tuple[str, ...]:
    """The modalities it sees."""
    return guide.shown if isinstance(guide, Given) else tuple(getattr(guide, "names", ()))


def prior_of(model: Any, guide: Any) -> str:
    """p(z) of a model, over the guide's latents."""
    symbol = getattr(getattr(innermost(model), "prior", None), "symbol", "p")
    return f"{symbol}({', '.join(sites_of(guide))})"


def views_of(guide: Any) -> list[str]:
    """A guide, once for every subset that it is in: `q(z | image)`, `q(z | label)`."""
    if not isinstance(guide, InSubsets) or guide.whole or not hasattr(guide.subsets, "groups"):
        return [q_of(guide)]
    kind = getattr(innermost(guide), "symbol", "q")
    return [written(kind, sites_of(guide), tuple(group)) for group in guide.subsets.groups]


def divergences(q: Any, p: Any, by_parts: bool) -> str:
    """KL(q || p) of two guides, once for every subset they are in; `by_parts` the mean over components of a mixture."""
    one, other = (getattr(innermost(part), "printed_each", None) for part in (q, p))
    if one and other and len(sites_of(q)) > 1:
        return f"sum_m {_divergence(q, p, one, other, by_parts)}"
    left, right = views_of(q), views_of(p)
    n = max(len(left), len(right))
    pairs = zip(left * (n // len(left)), right * (n // len(right)), strict=True)
    shown = [_divergence(q, p, one, other, by_parts) for one, other in pairs]
    return shown[0] if n == 1 else f"({' + '.join(shown[:SHOWN])}{' + ...' if n > SHOWN else ''})"


def _divergence(q: Any, p: Any, left: str, right: str, by_parts: bool) -> str:
    if not by_parts:
        return f"KL({left} || {right})"
    for side in (q, p):
        if members := getattr(innermost(side), "printed_members", ()):
            left, right = ("r", right) if side is q else (left, "r")
            return f"mean_r KL({left} || {right}), r in {{{', '.join(members)}}}"
    return f"mean_j KL_j({left} || {right})"


def likelihood_of(model: Any, guide: Any, weights: Weights) -> str:
    """`log p(image | z) + 50 log p(label | z)`, by subset what is in it."""
    if in_parts(model, guide):
        z = ", ".join(sites_of(guide))
        return f"sum_(m in S) lambda_m log p(x_m | {z})" if weights else f"log p(x_S | {z})"
    parents, kind = getattr(innermost(model), "parents_of", None), getattr(innermost(model), "symbol", "p")
    out = []
    for m in getattr(model, "names", ()) or ("x",):
        w, above = weights.get(m, 1.0), ("z",) if parents is None else parents(m)
        out.append(("" if w == 1.0 else symbol_of(w, "lambda") + " ") + f"log {written(kind, (m,), above)}")
    return " + ".join(out)


def in_parts(model: Any, guide: Any) -> bool:
    """Is the guide in subsets, and the model scored by what is in each?"""
    return isinstance(guide, InSubsets) and not getattr(model, "whole", False)


def beta_of(beta: float | Schedule) -> str:
    """`2.5 ` before a divergence, nothing for 1."""
    return "" if beta == 1.0 else symbol_of(beta, "beta") + " "


def expected(q: str) -> str:
    """The expectation under `q`: `E_q(z | x)`."""
    return f"E_({q})" if ") " in q else f"E_{q}"


def over_subsets(body: str, guide: Any, model: Any = None, weights: Weights | None = None) -> str:
    """`sum_S body, S in {image}, {image, label}` where the guide is in subsets, and the weights in it."""
    if not isinstance(guide, InSubsets):
        return body
    said = f"sum_S {getattr(guide, 'share', '')}{body}, S in {guide.subsets.extra_repr()}"
    if not weights or not in_parts(model, guide):
        return said
    every = {**dict.fromkeys(getattr(model, "names", ()), 1.0), **weights}
    return said + "".join(f", lambda_{m} = {symbol_of(w, 'lambda')}" for m, w in every.items())


SYMBOLS = {
    "beta": r"\beta",
    "lambda": r"\lambda",
    "sum_S": r"\sum_S",
    "sum_m": r"\sum_m",
    "sum_": r"\sum_",
    "mean_j": r"\operatorname{mean}_j",
    "mean_m": r"\operatorname{mean}_m",
    "mean_r": r"\operatorname{mean}_r",
    "x_S": "x_S",
    "W2": "W_2",
    "log": r"\log",
    "exp": r"\exp",
    "in": r"\in",
}


def tex(text: str) -> str:
    """The same in LaTeX: words upright, greek letters, bars with space, `E_q(...)` as an expectation."""
    text = text.replace(" || ", r" \,\|\, ").replace(" | ", r" \mid ").replace("{", r"\{").replace("}", r"\}")
    text = text.replace(" ~ ", r" \sim ").replace(" != ", r" \ne ")

    text = re.sub(r"\bE_(\w+\([^()]*\))", r"\\mathbb{E}_{\1}", text)
    text = re.sub(r"\bE_\(((?:\w+\([^()]*\) ?)+)\)", r"\\mathbb{E}_{\1}", text)
    text = re.sub(r"\bsum_\(([^()]*)\)", r"sum_{\1}", text)

    def word(match: re.Match[str]) -> str:
        return of(match.group())

    def of(found: str) -> str:
        name, _, below = found.rpartition("_")
        if found in SYMBOLS:
            return SYMBOLS[found]
        if name and (below.isdigit() or len(name) == 1 or name in SYMBOLS):
            letter = name if len(name) == 1 and not below.isdigit() else of(name) if name in SYMBOLS else word_of(name)
            return letter + "_{" + (below if len(below) == 1 or below.isdigit() else of(below)) + "}"
        return word_of(found)

    def word_of(name: str) -> str:
        return r"\mathrm{" + name.replace("_", r"\_") + "}"

    return re.sub(r"(?<![\\\w])[A-Za-z]\w+", word, text)
