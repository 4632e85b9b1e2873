"""`pyro-mm generate`."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_mm.cli.common import add_run, opened, set_threads
from pyro_mm.cli.errors import UserError, choose
from pyro_mm.cli.parser import Parser, command, count

if TYPE_CHECKING:
    import numpy as np

    from pyro_mm.batch import Batch
    from pyro_mm.runs import Run

EXAMPLES = """\
  pyro-mm generate runs/mvae --given label
  pyro-mm generate runs/mvae --given image --rows 0 7 12 -k 20 --out from_image.npz
  pyro-mm generate runs/mvae --given none          samples of the prior
"""
STORY = """\
Test rows are shown to the guide with only the given modalities; every modality is then drawn
from the model.  Writes a figure, and a .npz file beside it with, for every modality m,
draws.m (K, N, ...), mean.m or for labels probabilities.m, the data as truth.m, and rows."""


def add(commands: Any) -> None:
    """Add the command."""
    command(commands, "generate", run, _fill, "generate every modality from given ones", EXAMPLES, STORY)


def _fill(p: Parser) -> None:
    add_run(p)
    p.add_argument("--given", metavar="NAME,...", help="modalities that are seen, or none (default: the first)")
    p.add_argument("--rows", type=int, nargs="+", metavar="I", help="test rows (default: one of every class)")
    p.add_argument("-k", type=count, default=10, metavar="K", help="draws per row (default: 10)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    p.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file, .npz, with a .png beside it (default: figures/from_NAMES.npz of the run)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Generate, write arrays and figure."""
    set_threads(arguments)
    import numpy as np

    from pyro_mm.cli.figures import generated
    from pyro_mm.files import write_atomic

    run = opened(arguments)
    given = _given(arguments.given, run)
    rows = _rows(arguments.rows, run)
    path = arguments.out or run.figures / f"from_{'_'.join(given) or 'prior'}.npz"
    if path.suffix != ".npz":
        path = path.with_suffix(".npz") if path.suffix == ".png" else path.with_name(f"{path.name}.npz")
    batch = run.splits.test[rows]
    arrays = {"rows": np.asarray(rows), **_arrays(run, batch, given, arguments.k, arguments.seed)}
    raw = io.BytesIO()
    np.savez_compressed(raw, **arrays)  # type: ignore[arg-type]  # numpy's stub reads every name as allow_pickle
    write_atomic(path, raw.getvalue())
    print(f"{path}: {', '.join(f'{name} {a.shape}' for name, a in arrays.items())}")
    generated(run, batch, given, arguments.k, arguments.seed, path.with_suffix(".png"))
    return 0


def _given(text: str | None, run: Run) -> tuple[str, ...]:
    """Names of modalities that are seen.

    Raises:
        UserError: an unknown name, or a conditional model without what it is conditioned on.
    """
    names, conditions = run.splits.names, tuple(getattr(run.recipe.model, "conditioned_on", ()))
    if text is None:
        given: tuple[str, ...] = conditions or names[:1]
    elif text.strip().lower() == "none":
        given = ()
    else:
        given = tuple(choose(part, names, "modality") for part in text.split(","))
    if missing := [m for m in conditions if m not in given]:
        raise UserError(f"{run.settings.variant} generates nothing without {', '.join(missing)}: --given it")
    return given


def _rows(wanted: list[int] | None, run: Run) -> list[int]:
    """Test rows; by default one of every class, or the first eight.

    Raises:
        UserError: a number outside the test rows.
    """
    from pyro_mm.cli.figures import examples

    test = run.splits.test
    if wanted is not None:
        if outside := [i for i in wanted if not 0 <= i < len(test)]:
            raise UserError(f"there are test rows 0 to {len(test) - 1}, not {', '.join(map(str, outside))}")
        return wanted
    return examples(run.splits)


def _arrays(run: Run, batch: Batch, given: tuple[str, ...], k: int, seed: int) -> dict[str, np.ndarray]:
    """What the .npz file holds beside `rows`."""
    import torch

    from pyro_mm.evaluation.generation import generate
    from pyro_mm.likelihoods import Categorical, OneHotCategorical, Tokens

    seen = batch.only(*given)
    likelihoods = {m.name: m.likelihood for m in run.splits.modalities}
    found = {f"truth.{m}": v for m, v in batch.x.items()}
    recipe = run.recipe
    for m, fn in generate(recipe.model, recipe.drawing, seen, k, means=recipe.means, seed=seed).items():
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            found[f"draws.{m}"] = fn.sample()
        if isinstance(likelihoods[m], Categorical | OneHotCategorical):
            found[f"probabilities.{m}"] = fn.probs.mean(0)
        elif not isinstance(likelihoods[m], Tokens):
            found[f"mean.{m}"] = fn.mean.mean(0)
    return {name: v.detach().cpu().numpy() for name, v in found.items()}
