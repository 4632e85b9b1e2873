"""`pyro-mm list`."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from torch import nn

from pyro_mm.cli.parser import Parser, command

EXAMPLES = """\
  pyro-mm list
  pyro-mm list | grep mmvae
  pyro-mm list --markdown
"""
STORY = """\
Of every variant: its guide q (over S: a mixture over subsets; w_m, z_m: latents of each modality
beside z, or below it); the kinds of terms in its objective (rec: a reconstruction without a KL;
by parts: of a mixture, component by component; over S: summed over subsets, all or drawn; of z_m:
of a model whose data are the latents z_m); what a row must have to train it, of an image, a text
and a label; in how many stages; and its paper."""
WIDTH = 120
HEAD = ("variant", "guide", "objective", "rows with", "stages", "paper")
WIDTHS = (18, 25, 22, 13, 6, 24)
SHORT = {"reconstruction": "rec", "velocity": "diffusion", "looser": "looser iwae", "adversarial": "gan"}
ROWS = {"any": "anything", "complete rows only": "everything"}


def add(commands: Any) -> None:
    """Add the command."""
    command(
        commands, "list", run, _fill, "show the variants by family, and the data sets, one line each", EXAMPLES, STORY
    )


def _fill(p: Parser) -> None:
    p.add_argument("--markdown", action="store_true", help="the whole catalogue: formulas, programs, checked numbers")


def run(arguments: argparse.Namespace) -> int:
    """Print both lists, or the catalogue."""
    from pyro_mm import catalogue
    from pyro_mm.data import available

    if arguments.markdown:
        print(catalogue.markdown(catalogue.entries()), end="")
        return 0
    print("variants (pyro-mm describe NAME says more, pyro-mm list --help what the columns are)")
    print("\n  " + _row(HEAD))
    for family, names in catalogue.in_families():
        print(f"\n {family}")
        for name in names:
            print("  " + _row(columns(name)))
    print("\ndata sets")
    for name, make in available().items():
        print(_line(name, first_line(make)))
    return 0


def columns(name: str) -> tuple[str, ...]:
    """Name, guide, objective, rows that train, stages and paper of a variant."""
    from pyro_mm import catalogue

    recipe = catalogue.small(name)
    parts = [s.objective for s in recipe.stages or ()] or [recipe.objective]
    paper = _short(recipe.paper) if recipe.paper else ""
    return name.replace("_", "-"), guide_kind(recipe.guide), terms_of(parts), rows_of(name), str(len(parts)), paper


def rows_of(name: str) -> str:
    """What a row must have to train it."""
    from pyro_mm.catalogue import NEEDS

    needs = NEEDS.get(name, "any")
    return "by stage" if needs.startswith("stage") else ROWS.get(needs) or needs.partition(";")[0].partition(" ")[2]


def terms_of(parts: Sequence[Any]) -> str:
    """The kinds of terms, each once: `rec + kl, by parts`; of systems of two floors those above too."""
    terms = [term for part in parts for term in _terms(part)]
    above = [inner for term in terms if isinstance(inner := getattr(term, "objective", None), nn.Module)]
    here = _kinds([t for t in terms if not hasattr(t, "objective")])
    return here + (f", {_kinds([t for o in above for t in _terms(o)], ' of z_m')}" if above else "")


def _kinds(terms: Sequence[Any], of: str = "") -> str:
    from pyro_mm.handlers import InSubsets, RandomSubsets
    from pyro_mm.objectives.formula import sites_of

    kinds = [SHORT.get(t.label, t.label) if not hasattr(t, "kl_kind") or sites_of(t.model) else "log q" for t in terms]
    said = " + ".join(k for k in dict.fromkeys(kinds) if k != "discrimination") + of
    said += ", by parts" * any(getattr(t, "kl_kind", "") == "components" for t in terms)
    over = [q.subsets for t in terms if isinstance(q := getattr(t, "guide", None), InSubsets) and len(q.subsets) > 1]
    drawn = any(isinstance(subsets, RandomSubsets) for subsets in over)
    return said + (f" over{' drawn' * drawn} S" if over else "")


def _terms(objective: Any) -> Iterator[Any]:
    """Of an objective, or of several that take turns."""
    for part in getattr(objective, "objectives", None) or [objective]:
        yield from part


def guide_kind(guide: Any) -> str:
    """How it infers its latents, in a few words."""
    from pyro_mm.handlers import innermost

    q = innermost(guide)
    if (rule := getattr(q, "fuse", None)) is not None:
        over = getattr(rule, "rule", None)
        fused = words(rule) if over is None else f"{words(over)} over S"
        return "one encoder" if len(q.encoders) == 1 else fused
    if (shared := getattr(q, "shared", None)) is not None:
        return f"{guide_kind(shared)}, {q.letter}_m"
    if (top := getattr(q, "top", None)) is not None:
        return f"{guide_kind(top)}, z_m"
    inside = getattr(q, "combine", None) or getattr(q, "net", None)
    return words(q) if inside is None or type(inside).__name__ == "Concatenation" else words(inside)


def words(thing: Any) -> str:
    """The name of a function or of an object's class: `product of experts`."""
    thing = getattr(thing, "func", thing)
    name = getattr(thing, "__name__", type(thing).__name__)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower()


def first_line(thing: Callable[..., Any]) -> str:
    """Of its docstring."""
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _short(paper: Any) -> str:
    """`Wu & Goodman 2018`, `Shi et al. 2019`."""
    names = paper.authors.split(", ")
    both = f"{' & '.join(names)} {paper.year}"
    return both if len(names) < 3 and len(both) <= WIDTHS[-1] else f"{names[0]} et al. {paper.year}"


def _row(cells: Sequence[str]) -> str:
    """Cells in columns; a long one pushes the others."""
    line = ""
    for end, cell in zip(accumulate(WIDTHS, lambda a, b: a + 2 + b), cells, strict=True):
        line += cell + " " * max(end + 2 - len(line) - len(cell), 1)
    return line.rstrip()


def _line(name: str, text: str) -> str:
    room = WIDTH - 24
    return f"  {name:<22}" + (text if len(text) <= room else text[: room - 4].rsplit(" ", 1)[0] + " ...")
