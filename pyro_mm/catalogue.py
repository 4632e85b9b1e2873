"""The catalogue of published systems, read off their pages and programs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any

import torch
from torch import nn

from pyro_mm import likelihoods, variants
from pyro_mm.batch import Batch
from pyro_mm.data.digits import digits
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.describe import factorisation, nodes_of
from pyro_mm.evaluation import NoLikelihood, log_marginal, sandwich
from pyro_mm.mermaid import flowchart
from pyro_mm.modality import Modality
from pyro_mm.models import Joint
from pyro_mm.networks import Linear
from pyro_mm.objectives.algebra import Objective
from pyro_mm.recipe import Paper, Recipe
from pyro_mm.training.stages import Stage

__all__ = [
    "NEEDS",
    "Entry",
    "entries",
    "family_of",
    "in_families",
    "markdown",
    "number_of",
    "rows_that_train",
    "small",
]

# The survey's order: coordinated models, then joint ones; what it has no name for stands last.
FAMILIES = (
    "baseline",
    "coordinated",
    "joint, surrogate unimodal inference",
    "joint, aggregated inference",
    "joint, modality-specific latents",
    "joint, weak supervision",
    "integration of modules",
)
Page = Callable[..., Recipe]
ROWS = 50
TOY = LinearGaussian.random(dict.fromkeys("abc", 3), 2, seed=0)
SMALL = [
    Modality("image", (2,), likelihoods.Normal(), Linear()),
    Modality("text", (2,), likelihoods.Normal(), Linear()),
    Modality("label", (), likelihoods.Categorical(2), Linear()),
]
# What `rows_that_train` finds, for whoever cannot wait; what is not here trains on any row.  A test compares.
NEEDS = {
    **dict.fromkeys(("cvae", "jmvae_zero", "jnf"), "complete rows only"),
    **dict.fromkeys(("m2", "mfm", "mvae_cross"), "needs image or text; label may be missing"),
    **dict.fromkeys(("vae", "vcca", "vcca_private"), "needs image"),
    "scan": "stage 1: needs image; stage 2: needs text or label",
}


@dataclass(frozen=True)
class Entry:
    """What one page says and does.

    Attributes:
        name: as `pyro-mm train` takes it.
        family: in the taxonomy of Suzuki & Matsuo (2022).
        model, guide: how p and q factorise, as their programs ran on three modalities.
        graph: the same as a Mermaid flowchart.
        objective: what is maximised; of trainings in parts, every part.
        stages: how many parts.
        rows: which of them train.
        number: something checked about its likelihood, in nats.
    """

    name: str
    paper: Paper | None
    family: str
    story: str
    model: str
    guide: str
    graph: str
    objective: tuple[str, ...]
    stages: int
    rows: str
    number: str


def in_families() -> list[tuple[str, list[str]]]:
    """The variants by family, in the survey's order."""
    known = sorted(variants.__all__, key=lambda n: (_rank(family_of(n)), family_of(n), n))
    return [(family, list(names)) for family, names in groupby(known, family_of)]


def family_of(name: str) -> str:
    """The family its page's paper is in."""
    paper: Paper | None = getattr(getattr(variants, name), "paper", None)
    return (paper.family if paper is not None else "") or "other"


def entries(numbers: bool = True) -> list[Entry]:
    """Every page, by family, built on the linear-Gaussian toy and run once.

    Args:
        numbers: check a likelihood of each as well, which takes a second per page and more for hierarchies.
    """
    return [_entry(name, numbers) for _, names in in_families() for name in names]


def _entry(name: str, numbers: bool) -> Entry:
    page: Page = getattr(variants, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        recipe, data = _on_data(page)
        few, parts = data[:4], _parts(recipe)
        p, q = (nodes_of(program, few) for program in (recipe.model, recipe.guide))
        return Entry(
            name,
            recipe.paper,
            family_of(name),
            inspect.getdoc(page) or "",
            factorisation("p", p),
            factorisation("q", q),
            flowchart(p, q),
            tuple(repr(part).removeprefix("maximise  ") for part in parts),
            len(parts),
            rows_that_train(name),
            number_of(recipe, data) if numbers else "",
        )


def _on_data(page: Page) -> tuple[Recipe, Batch]:
    """The system on the linear-Gaussian toy, or, if it needs a label, on digits; and data of that kind."""
    try:
        recipe = page(TOY.modalities, 2)
    except ValueError:
        splits = digits()
        return page(splits.modalities, 2), splits.test[:ROWS]
    for module in recipe.modules.values():
        module.double()
    return recipe, TOY.sample(ROWS, seed=2)


def _parts(recipe: Recipe) -> list[nn.Module]:
    target = recipe.target
    return [target] if isinstance(target, Objective) else [stage.objective for stage in target]


def small(name: str) -> Recipe:
    """The system on three tiny modalities, one of them a label: quick to build and to run."""
    page: Page = getattr(variants, name)
    options = {"width": 8} if "width" in inspect.signature(page).parameters else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return page(SMALL, 2, **options)


def rows_that_train(name: str) -> str:
    """Which rows the system learns from, by trying every pattern of presence: `any`, `complete rows only`, ...

    Rows do where their loss has a gradient.  Of stages that differ it says each one's own.
    """
    recipe = small(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stages = recipe.stages or [Stage(part, 1) for part in _parts(recipe)]
        found = [_rule(_patterns(stage)) for stage in stages]
    if len(set(found)) == 1:
        return found[0]
    return "; ".join(f"stage {i}: {rule}" for i, rule in enumerate(found, 1))


def _patterns(stage: Stage) -> set[frozenset[str]]:
    """Sets of modalities that teach something when a row has them and no others."""
    names, x = [m.name for m in SMALL], {"image": torch.randn(2, 2), "text": torch.randn(2, 2)}
    x["label"] = torch.arange(2)
    every = [frozenset(s) for r in range(1, len(names) + 1) for s in combinations(names, r)]
    return {s for s in every if _trains(stage, Batch(x, {m: torch.full((2,), m in s) for m in names}))}


def _trains(stage: Stage, batch: Batch) -> bool:
    moving = stage.moving()
    loss = stage.objective(batch)
    grads = torch.autograd.grad(loss, moving, allow_unused=True) if loss.requires_grad else ()
    return any(g is not None and bool((g != 0).any()) for g in grads)


def _rule(trains: set[frozenset[str]]) -> str:
    """What such a row has at the least, in words."""
    names = [m.name for m in SMALL]
    least = [s for s in trains if not any(t < s for t in trains)]
    if all(len(s) == 1 for s in least):
        enough = [m for m in names if {m} in least]
        rest = [m for m in names if m not in enough]
        if not rest:
            return "any"
        return f"needs {' or '.join(enough)}" + ("; label may be missing" if rest == ["label"] else "")
    if least == [frozenset(names)]:
        return "complete rows only"
    return "needs " + " or ".join(sorted(" with ".join(m for m in names if m in s) for s in least))


def number_of(recipe: Recipe, data: Batch, k: int = 1000) -> str:
    """The estimate of log p(X) at the toy's parameters beside the exact value; of other systems both ends, or why not.

    Args:
        data: rows of the toy, or of whatever else the system is about.
    """
    model = recipe.model
    if not isinstance(model, Joint) or set(model.decoders) != set(TOY.names) or not _standard(model):
        return _own_number(recipe, data, k)
    exact = TOY.model()
    for m, decoder in model.decoders.items():
        decoder.load_state_dict(exact.decoders[m].state_dict())
    try:
        found = log_marginal(model, recipe.guide, data, k, refine=True, seed=0)
    except NoLikelihood as reason:
        return f"no likelihood: {reason}"
    truth = TOY.log_marginal(data)
    error = (found.estimate - truth).abs().max().item()
    return (
        f"log p(X) {found.mean:.3f}, exact {truth.mean().item():.3f} "
        f"(largest error of {len(data)} rows {error:.3f}; K = {k:,}, untrained guide, refined)"
    )


def _standard(model: Joint) -> bool:
    """Is its prior N(0, I), of the toy's dimensions?"""
    prior = model.prior()
    if prior.event_shape != (2,):
        return False
    z = torch.linspace(-2, 2, 2, dtype=torch.float64)
    return bool(torch.allclose(prior.log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()))


def _own_number(recipe: Recipe, data: Batch, k: int) -> str:
    """Both ends of log p(X) on data drawn from the untrained model itself."""
    try:
        ends: Any = sandwich(recipe.model, recipe.guide, data, k, seed=0)
    except NoLikelihood as reason:
        return f"no likelihood: {reason}"
    return (
        f"log p(X) of {len(data)} data of the untrained model lies between {ends.mean_lower:.3f} and "
        f"{ends.mean_upper:.3f} (sandwich, K = {k:,})"
    )


def markdown(found: Sequence[Entry]) -> str:
    """`docs/catalogue.md`."""
    lines = [HEAD]
    for family, group in groupby(found, lambda e: e.family):
        lines.append(f"## {family[0].upper()}{family[1:]}\n")
        lines += [_shown(entry) for entry in group]
    return "\n".join(lines)


HEAD = """\
# The catalogue

Written by `pyro-mm list --markdown`, from the pages in `pyro_mm/variants/` and from running them on a linear-Gaussian
toy of three modalities (those that need a label, on digits).  Families are those of Suzuki & Matsuo (2022); p and q are
read off the programs, and an objective is the object that `fit` minimises, printed as what is maximised.  Which rows
train was found by trying every pattern of presence of an image, a text and a label, in this order.

In the graphs, which are drawn from the same runs, latents are white, data grey, data that are only conditioned on grey
boxes; edges of q are dashed.  All of it is inside the plate of rows.
"""


def _shown(e: Entry) -> str:
    lines = [f"### {e.name.replace('_', '-')}\n"]
    if e.paper is not None:
        lines.append(f"{e.paper}\n")
    lines += ["```", e.story, "```", ""]
    lines += ["```mermaid", e.graph, "```", "", f"* model: `{e.model}`", f"* guide: `{e.guide}`"]
    for i, objective in enumerate(e.objective, 1):
        label = "objective" if e.stages == 1 else f"stage {i} of {e.stages}"
        lines.append(f"* {label}: `{objective}`")
    lines.append(f"* rows that train: {e.rows}")
    lines.append(f"* checked: {e.number}\n" if e.number else "")
    return "\n".join(lines)


def _rank(family: str) -> int:
    """Its place among the families."""
    return next((i for i, f in enumerate(FAMILIES) if family.startswith(f)), len(FAMILIES))
