"""The kind of a modality follows from its shape and likelihood, and every kind is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_mm import likelihoods, plots, variants
from pyro_mm.batch import Batch
from pyro_mm.modality import Modality
from pyro_mm.plots.show import kind_of


@pytest.mark.parametrize(
    ("shape", "likelihood", "kind"),
    [
        ((8, 8), likelihoods.Bernoulli(), "image"),
        ((3, 8, 6), likelihoods.ContinuousBernoulli(), "image"),
        ((4, 5), likelihoods.Categorical(3), "image"),
        ((), likelihoods.Categorical(3), "label"),
        ((4,), likelihoods.OneHotCategorical(), "label"),
        ((), likelihoods.Bernoulli(), "label"),
        ((6,), likelihoods.Tokens(9), "tokens"),
        ((6,), likelihoods.Categorical(9), "tokens"),
        ((6,), likelihoods.Poisson(), "vector"),
        ((2, 3, 4), likelihoods.Normal(), "vector"),
        ((), likelihoods.NegativeBinomial(), "number"),
    ],
)
def test_every_kind_is_drawn(shape: tuple[int, ...], likelihood: likelihoods.Likelihood, kind: str) -> None:
    modality = Modality("m", shape, likelihood)
    assert kind_of(modality) == kind
    recipe = variants.vae([modality], 2)
    x = likelihood.fill(shape).expand(2, *shape).clone()
    _, axes = plots.reconstructions(recipe, Batch({"m": x}))
    for ax in axes.values():
        assert {"image": ax.images, "label": ax.patches, "tokens": ax.texts}.get(kind, ax.lines)
    if kind == "label":
        made = [[bar.get_height() for bar in axes["reconstruction", "m", row].patches] for row in range(2)]
        assert np.sum(made, axis=1) == pytest.approx(1)
    if shape == (3, 8, 6):
        assert axes["data", "m", 0].images[0].get_array().shape == (8, 6, 3)
