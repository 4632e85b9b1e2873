"""`pyro-mm describe`."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_mm.cli.common import drawn, opened, set_threads
from pyro_mm.cli.errors import choose
from pyro_mm.cli.parser import Parser, command, count

if TYPE_CHECKING:
    from pyro_mm.data import Splits
    from pyro_mm.recipe import Recipe

EXAMPLES = """\
  pyro-mm describe jmvae-kl
  pyro-mm describe mopoe --data digit_halves --figure mopoe.pdf
  pyro-mm describe runs/mvae
"""
STORY = """\
The paper, the sites of model and guide with plates and shapes, how p and q factorise, the
objective as a formula, and the number of parameters; and a drawing of both graphs."""
ROWS = 8  # the programs are run on: only shapes are shown


def add(commands: Any) -> None:
    """Add the command."""
    command(
        commands, "describe", run, _fill, "show what a variant or a run is, as text and as a graph", EXAMPLES, STORY
    )


def _fill(p: Parser) -> None:
    p.add_argument("what", metavar="VARIANT|RUN", help="a variant's name, or the folder of a trained run")
    p.add_argument("--data", default="digits", metavar="NAME", help="for a variant: on which data (default: digits)")
    p.add_argument("--root", metavar="DIR", help="the data's folder, for sets that are read from files")
    p.add_argument("--dim", type=count, default=16, metavar="N", help="for a variant: latent dimensions (default: 16)")
    figure = p.add_mutually_exclusive_group()
    place = "default: figures/graph.png of a run, runs/graphs/ for a variant"
    figure.add_argument("--figure", type=Path, metavar="FILE", help=f"where to draw the graph ({place})")
    figure.add_argument("--no-figure", action="store_true", help="text only")


def run(arguments: argparse.Namespace) -> int:
    """Print the description and draw the graph."""
    set_threads(arguments)
    from pyro_mm import describe, variants

    recipe, splits, place = _found(arguments)
    batch = splits.test[:ROWS]
    print(describe.describe(recipe, batch))
    if recipe.name in variants.__all__:
        story = inspect.getdoc(getattr(variants, recipe.name)) or ""
        print(f"\nnotes\n{textwrap.indent(story, '  ')}")
    if not arguments.no_figure:
        drawn(lambda path: describe.graph(recipe.model, recipe.guide, batch, path=path), arguments.figure or place)
    return 0


def _found(arguments: argparse.Namespace) -> tuple[Recipe, Splits, Path]:
    """The recipe, its data, and where its graph goes."""
    from pyro_mm import variants
    from pyro_mm.data import available
    from pyro_mm.settings import Settings, build_recipe, load_data

    folder = Path(arguments.what)
    if folder.is_dir() and arguments.what not in variants.__all__:
        arguments.folder = folder
        run = opened(arguments)
        return run.recipe, run.splits, run.figures / "graph.png"
    if len(folder.parts) > 1:
        raise FileNotFoundError(f"there is no folder {folder}")
    name, data = choose(arguments.what, variants.__all__, "variant"), choose(arguments.data, available(), "data set")
    settings = Settings(name, data, arguments.root, dim=arguments.dim)
    splits = load_data(settings)
    return build_recipe(settings, splits), splits, Path("runs") / "graphs" / f"{name}-{data}.png"
