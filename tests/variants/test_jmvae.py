"""What JMVAE makes of rows that lack something: zeros in training too, or, by its -zero form, in inference alone."""

from __future__ import annotations

import torch

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.recipe import Recipe
from tests.helpers.hierarchies import modalities
from tests.helpers.oracle import flat_gradient

SIZES = {"a": 3, "b": 2}


def made(name: str) -> Recipe:
    torch.manual_seed(0)
    return getattr(variants, name)(modalities(SIZES), 2, width=8)


def rows(a: list[bool], b: list[bool]) -> Batch:
    noise = torch.Generator().manual_seed(1)
    x = {m: torch.randn(len(a), d, generator=noise) for m, d in SIZES.items()}
    return Batch(x, {"a": torch.tensor(a), "b": torch.tensor(b)})


def scores(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Differences of means over the first dimension, in standard errors."""
    return abs(a.mean(0) - b.mean(0)) / (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()


def test_complete_rows_alone_train_jmvae_zero() -> None:
    """What other rows hold changes neither value nor gradient, but that the mean is over all rows; JMVAE has both."""
    mixed, complete = rows([True] * 4, [True, False, True, False]), rows([True] * 4, [True] * 4)[[0, 2]]
    found = []
    for name, batch in (("jmvae_zero", mixed), ("jmvae_zero", complete), ("jmvae", mixed), ("jmvae", complete)):
        recipe = made(name)
        values = []
        for _ in range(300):
            loss = recipe.objective(batch) * len(batch)
            values.append(torch.cat([loss.detach().view(1), flat_gradient(loss, recipe.objective)]))
        found.append(torch.stack(values))
    zero, apart = (scores(found[i], found[i + 1]) for i in (0, 2))
    assert zero[zero.isfinite()].max() < 5 and apart[0] > 20


def test_partial_rows_alone_teach_jmvae_zero_nothing() -> None:
    partial = rows([True, False], [False, True])
    recipe, plain = made("jmvae_zero"), made("jmvae")
    loss = recipe.objective(partial)
    assert loss.item() == 0.0 and not flat_gradient(loss, recipe.objective).any()
    assert plain.objective(partial).item() != 0.0


def test_both_infer_alike() -> None:
    one, two = made("jmvae_zero"), made("jmvae")
    partial = rows([True, True], [False, True])
    torch.testing.assert_close(one.guide.posterior(partial).mean, two.guide.posterior(partial).mean)
    assert one.name == "jmvae_zero"
