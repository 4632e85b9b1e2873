"""The model card: one page of Markdown that says what a saved model is and what it is not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from pyro_mm.evaluation.evidence import why_none
from pyro_mm.modality import Modality
from pyro_mm.recipe import Recipe

__all__ = ["model_card"]


def model_card(recipe: Recipe, about: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Data, program, objective, settings and limits of a recipe.

    Args:
        about: what is known beyond the recipe: `data`, `seed`, `training` and so on, one line each.
        versions: of the libraries.
    """
    lines = [f"# {recipe.name}", ""]
    if recipe.paper is not None:
        lines += [str(recipe.paper), ""]
    lines += ["## Data", ""]
    lines += [f"{about['data']}", ""] if "data" in about else ["Not recorded.", ""]
    lines += _modalities(recipe)
    lines += ["", "## Program", "", *_story(recipe)]
    lines += [*_program("Model", recipe.model), *_program("Guide", recipe.guide)]
    lines += ["", "## Objective", "", *_objective(recipe), "", "## Settings", ""]
    lines += [f"- {k}: {_plain(v)}" for k, v in recipe.config.items()]
    rest = {k: v for k, v in about.items() if k != "data"}
    lines += [f"- {k}: {_plain(v)}" for k, v in ({"seed": "not recorded"} | rest).items()]
    lines += [f"- parameters: {_parameters(recipe):,}", "", "## Limits", "", *_limits(recipe)]
    lines += ["", "Saved with " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".", ""]
    return "\n".join(lines)


def _modalities(recipe: Recipe) -> list[str]:
    if not recipe.modalities:
        return ["The recipe does not say what its modalities are."]
    rows = [f"| {m.name} | {m.shape} | {m.likelihood!r} | {_networks(m)} |" for m in recipe.modalities]
    return ["| modality | shape | likelihood | network |", "|---|---|---|---|", *rows]


def _story(recipe: Recipe) -> list[str]:
    """The variant's own account of itself."""
    from pyro_mm import variants

    if recipe.name not in variants.__all__:
        return []
    return [inspect.getdoc(getattr(variants, recipe.name)) or "", ""]


def _program(role: str, program: Any) -> list[str]:
    names = ", ".join(getattr(program, "names", ()))
    story = inspect.getdoc(type(program) if isinstance(program, nn.Module) else program) or "no description"
    kind = type(program).__name__ if isinstance(program, nn.Module) else getattr(program, "__name__", "function")
    return [f"- {role} `{kind}`{f' of {names}' if names else ''}: {_first_paragraph(story)}"]


def _objective(recipe: Recipe) -> list[str]:
    if recipe.stages:
        return ["Trained in stages:", "", "```", *(repr(stage) for stage in recipe.stages), "```"]
    if recipe.objective is not None:
        return ["```", repr(recipe.objective), "```"]
    return ["None recorded."]


def _limits(recipe: Recipe) -> list[str]:
    out = []
    if reason := why_none(recipe.model):
        out.append(f"- It has no likelihood: {reason}.")
    if conditions := getattr(recipe.model, "conditioned_on", ()):
        out.append(f"- It is conditional on {', '.join(conditions)}: no joint density, no marginals of these.")
    if pseudo := [m.name for m in recipe.modalities if type(m.likelihood).__name__ == "PseudoBernoulli"]:
        out.append(f"- {', '.join(pseudo)}: cross-entropy on grey values is a pseudo-likelihood, not a density.")
    return [
        *out,
        "- Log-likelihoods are comparable only between models of the same data with the same observation model.",
        "- Importance-sampling estimates are to be believed where their k-hat is under its threshold; training weights "
        "(beta, likelihood weights) are no part of them.",
        "- What it generates reflects its training data only.",
    ]


def _parameters(recipe: Recipe) -> int:
    """Of all modules together, shared ones counted once."""
    unique = {id(p): p.numel() for module in recipe.modules.values() for p in module.parameters()}
    return sum(unique.values())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items()) or "none"
    return str(value)


def _networks(modality: Modality) -> str:
    both = _short(modality.net)
    both += "" if modality.decoder_net is None else f"; decoder {_short(modality.decoder_net)}"
    return both if modality.noise is None else f"{both}; {_short(modality.noise)} in training"


def _short(blueprint: Any) -> str:
    """`Conv(channels=(8, 16))`: what differs from the defaults."""
    if not is_dataclass(blueprint):
        return type(blueprint).__name__
    given = {f.name: getattr(blueprint, f.name) for f in fields(blueprint) if getattr(blueprint, f.name) != f.default}
    shown = (f"{k}={v.__name__ if isinstance(v, type) else repr(v)}" for k, v in given.items())
    return f"{type(blueprint).__name__}({', '.join(shown)})"


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())
