"""What a pair of programs is: its sites, how p and q factorise, its parameters; in text and as a drawn graph.

Everything is read off one execution.  What a site depends on is found by provenance: latents and data are marked, and
the marks that its distribution carries are its parents.  No class of this library is needed, nor graphviz.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation.modules import modules_of
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import Given, Program
from pyro_mm.modality import Modality
from pyro_mm.recipe import Recipe
from pyro_mm.weights import Site, run

__all__ = ["Node", "describe", "factorisation", "graph", "nodes_of"]

WRAPPERS = (dist.Independent, ExpandedDistribution, dist.MaskedDistribution)


@dataclass(frozen=True)
class Node:
    """One sample site.

    Attributes:
        name, family: the site's name, and that of its distribution's class.
        observed: it is scored at data.
        batch_shape, event_shape: of its distribution.
        plates: name -> size, outermost first.
        parents: latents and modalities that its distribution was computed from, in order of execution.
    """

    name: str
    family: str
    observed: bool
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    plates: dict[str, int]
    parents: tuple[str, ...]


def describe(what: Recipe | tuple[Program, Program], batch: Batch) -> str:
    """The program in text: modalities, sites with plates and shapes, factorisations, objective, parameters.

    Args:
        what: a recipe, or (model, guide).
        batch: a few rows to run the programs on; caller's random state and modules' modes are left alone.

    Raises:
        TypeError: `what` is neither.
    """
    model, guide, recipe = _pair(what)
    p, q = nodes_of(model, batch), nodes_of(guide, batch)
    modalities = recipe.modalities if recipe is not None else ()
    parts = [_heading(recipe)] if recipe is not None else []
    parts += [f"modalities\n{_modalities(modalities, batch)}"]
    parts += [f"model  {kind_of(model)}\n{_program('p', p)}", f"guide  {kind_of(guide)}\n{_program('q', q)}"]
    if recipe is not None and (objective := _objective(recipe)):
        parts += [f"objective\n{objective}"]
    modules: Mapping[str, Any] = recipe.modules if recipe is not None else {"model": model, "guide": guide}
    parts += [f"parameters\n{_parameters(modules)}"]
    return "\n\n".join(parts)


def graph(
    model: Program, guide: Program | None, batch: Batch, path: str | os.PathLike[str] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Draw the graphical model of the pair: figure, and the axes of the panels `model` and `guide`.

    Latents are white, observations grey, modalities that are only conditioned on grey squares, plates rounded boxes;
    the guide's edges are dashed, its nodes where the model's are.

    Args:
        guide: None leaves its panel out.
        path: save there as well; the suffix says in which format.

    Raises:
        ValueError: the model has no sample sites, or matplotlib writes no such format.
    """
    from pyro_mm.plots.graph import draw_pair

    programs = {"model": model} if guide is None else {"model": model, "guide": guide}
    return draw_pair({k: nodes_of(program, batch) for k, program in programs.items()}, batch.names, path)


def nodes_of(program: Program, batch: Batch) -> tuple[Node, ...]:
    """The program's sample sites on this batch, in order of execution, and what each depends on.

    Where a program does something that provenance cannot follow (leaving torch, say), a site counts as depending on
    every latent before it, and in a guide on every modality.
    """
    with evaluating(program, seed=0):
        sites = run(program, batch)
        latents = {n: s.value for n, s in sites.items() if not s.observed}
        sources = [*latents, *batch.names]
        try:
            with _Provenance(latents) as seen:
                program(_marked(batch))
            parents = seen.parents
        except Exception:  # whatever a user's program raises when its tensors are of a subclass
            parents = _assumed(sites, batch)
    shown = _shown(program, batch)
    found = {n: [s for s in sources if s in parents[n] and s != n and (s in latents or s in shown)] for n in sites}
    return tuple(_node(site, found[n]) for n, site in sites.items())


def factorisation(symbol: str, nodes: Sequence[Node]) -> str:
    """`p(z) p(image | z) p(label | z)`."""
    return " ".join(f"{symbol}({node.name}{' | ' if node.parents else ''}{', '.join(node.parents)})" for node in nodes)


def kind_of(program: Any) -> str:
    """The program's class or name, and the fusion rules inside: `Experts, fused by product_of_experts`."""
    name = type(program).__name__ if isinstance(program, nn.Module) else getattr(program, "__name__", repr(program))
    inner = program
    while isinstance(inner := getattr(inner, "program", None), nn.Module):
        name += f" of {type(inner).__name__}"
    parts = [part for module in modules_of(program) for part in module.modules()]
    rules = dict.fromkeys(_name_of(part.fuse) for part in parts if callable(getattr(part, "fuse", None)))
    return name + (f", fused by {', '.join(rules)}" if rules else "")


class _Provenance(Messenger):
    """Give latents their values again, marked with their names, and read the marks of every distribution.

    The values come from a run before: torch cannot draw from every distribution whose parameters are marked.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.parents: dict[str, frozenset[str]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not site_is_subsample(msg):
            msg["value"], msg["done"] = track_provenance(self.values[msg["name"]], frozenset({msg["name"]})), True

    def _pyro_post_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and not msg["infer"].get("_deterministic"):
            self.parents[msg["name"]] = get_provenance(msg["fn"].log_prob(detach_provenance(msg["value"])))


def _marked(batch: Batch) -> Batch:
    """The batch with every modality's values marked by its name; masks are not: `given` fills hidden ones' too."""
    x = {m: track_provenance(v, frozenset({m})) for m, v in batch.x.items()}
    return Batch._view(x, dict(batch.mask), batch.hidden)


def _assumed(sites: Mapping[str, Site], batch: Batch) -> dict[str, frozenset[str]]:
    data = [] if any(s.observed for s in sites.values()) else list(batch.names)
    latents = [n for n, s in sites.items() if not s.observed]
    order = list(sites)
    return {n: frozenset([*data, *(u for u in latents if order.index(u) < order.index(n))]) for n in sites}


def _shown(program: Any, batch: Batch) -> set[str]:
    """Modalities that the verbs round a program let through."""
    shown = set(batch.names) - batch.hidden
    while program is not None:
        if isinstance(program, Given):
            shown &= set(program.shown)
        program = getattr(program, "program", None)
    return shown


def _node(site: Site, parents: list[str]) -> Node:
    fn = site.fn
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    plates = {f.name: int(f.size) for f in site.frames}
    shapes = tuple(site.fn.batch_shape), tuple(site.fn.event_shape)
    return Node(site.name, type(fn).__name__, site.observed, *shapes, plates, tuple(parents))


def _pair(what: Any) -> tuple[Program, Program, Recipe | None]:
    if isinstance(what, Recipe):
        return what.model, what.guide, what
    if isinstance(what, tuple) and len(what) == 2 and all(callable(part) for part in what):
        return what[0], what[1], None
    raise TypeError(f"describe takes a Recipe or (model, guide), got {type(what).__name__}")


def _heading(recipe: Recipe) -> str:
    return recipe.name if recipe.paper is None else f"{recipe.name}\n{recipe.paper}"


def _modalities(modalities: Sequence[Modality], batch: Batch) -> str:
    likelihoods = {m.name: (m.shape, repr(m.likelihood)) for m in modalities}
    rows = [["modality", "shape", "likelihood", "present"]]
    for m in dict.fromkeys([*likelihoods, *batch.names]):
        present = f"{batch.mask[m].float().mean():.0%}" if m in batch.x else "not in the batch"
        shape, likelihood = likelihoods.get(m) or (tuple(batch.x[m].shape[1:]), "the model's own")
        rows.append([m, str(shape), likelihood, present])
    return _table(rows)


def _program(symbol: str, nodes: Sequence[Node]) -> str:
    if not nodes:
        return "  no sites"
    rows = [["site", "distribution", "batch shape", "event shape", "plates", ""]]
    for n in nodes:
        plates = ", ".join(f"{p} ({size})" for p, size in n.plates.items()) or "none"
        role = "observed" if n.observed else "latent"
        rows.append([n.name, n.family, str(n.batch_shape), str(n.event_shape), plates, role])
    return f"{_wrapped(factorisation(symbol, nodes))}\n{_table(rows)}"


def _objective(recipe: Recipe) -> str:
    parts = list(recipe.stages or [o for o in (recipe.objective,) if o is not None])
    return "\n".join(_wrapped(repr(part)) for part in parts)


def _wrapped(text: str) -> str:
    """Text in indented lines."""
    first, *rest = folded(text, 114)
    return "\n".join([f"  {first}", *(f"    {line}" for line in rest)])


def folded(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, none broken within parentheses."""
    held = re.sub(r"\([^()]*\)", lambda found: found.group().replace(" ", "\xa0"), text)
    lines = textwrap.wrap(held, width, break_long_words=False)
    return [line.replace("\xa0", " ") for line in lines]


def _parameters(modules: Mapping[str, Any]) -> str:
    """Numbers of parameters by module and by what it consists of; the total counts shared ones once."""
    rows: list[list[str]] = []
    every: dict[int, int] = {}
    for name, program in modules.items():
        for module in modules_of(program):
            mine = {id(p): p.numel() for p in module.parameters()}
            every |= mine
            rows.append([name, f"{sum(mine.values()):,}"])
            for part, child in _children(module):
                if count := sum(p.numel() for p in child.parameters()):
                    rows.append([f"  {part}", f"{count:,}"])
    rows.append(["total", f"{sum(every.values()):,}"])
    return _table(rows, right=1)


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Parts by name, those of a ModuleDict or ModuleList one by one."""
    out: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        inner = child.named_children() if isinstance(child, nn.ModuleDict | nn.ModuleList) else None
        out += [(name, child)] if inner is None else [(f"{name}.{key}", part) for key, part in inner]
    return out


def _name_of(function: Any) -> str:
    """A function's name, a partial's with what it fixes."""
    if hasattr(function, "func"):
        fixed = ", ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in function.keywords.items())
        return f"{_name_of(function.func)}({fixed})"
    return getattr(function, "__name__", type(function).__name__)


def _table(rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """Rows aligned in columns and indented; column `right` is aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append("  ".join(c.rjust(w) if i == right else c.ljust(w) for i, (c, w) in enumerate(cells)))
    return "\n".join(f"  {line}".rstrip() for line in lines)
