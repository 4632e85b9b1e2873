"""SCAN trained on images of two factors: what it takes symbols to mean, and how concepts recombine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyro_mm import likelihoods, variants
from pyro_mm.batch import Batch
from pyro_mm.guides import conjunction, ignore, in_common
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP, Linear
from pyro_mm.recipe import Recipe
from pyro_mm.training import fit

WORDS = ("red", "blue", "big", "small")
# Orthogonal directions, one of each factor; of unlike lengths, so that a diagonal posterior has its axes along them.
COLOUR, SIZE = torch.tensor([1.0, 1.0, 0.0, 0.0]) * 1.5, torch.tensor([0.0, 0.0, 1.0, -1.0])
NOISE = 0.2
MODALITIES = [
    Modality("image", (4,), likelihoods.Normal(NOISE), Linear()),
    Modality("symbols", (4,), likelihoods.Bernoulli(), MLP((32,))),
]


def rows(count: int) -> Batch:
    """Images of a colour and a size, +1 or -1 and a little more or less; symbols name one of them, both or neither."""
    factors = torch.randint(0, 2, (count, 2)) * 2.0 - 1
    shown = factors + 0.1 * torch.randn(count, 2)
    image = shown[:, :1] * COLOUR + shown[:, 1:] * SIZE + NOISE * torch.randn(count, 4)
    named = torch.rand(count, 2) < 0.6
    bits = [named[:, i] & (factors[:, i] == value) for i in (0, 1) for value in (1, -1)]
    return Batch({"image": image, "symbols": torch.stack(bits, -1).float()})


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    torch.manual_seed(0)
    made = variants.scan(MODALITIES, 2, vision_beta=1.0)
    epochs = {"image": 80, "symbols": 60}
    stages = [replace(stage, epochs=epochs[stage.name]) for stage in made.stages]
    fit(stages, rows(1000), batch_size=100, lr=2e-2, progress=False, seed=0, accelerator="cpu")
    return made


def concept(recipe: Recipe, *words: str) -> torch.distributions.Distribution:
    """q(z | these symbols)."""
    bits = torch.tensor([[float(w in words) for w in WORDS]])
    with torch.no_grad():
        return recipe.guide.posterior(Batch({"symbols": bits}).only("symbols"))


def factors_of(recipe: Recipe, z: Tensor) -> Tensor:
    """Colour and size of the image that is made from z `(..., 2)`."""
    with torch.no_grad():
        image = recipe.model.decoders["image"](z).mean
    return torch.stack([(image @ f) / f.square().sum() for f in (COLOUR, SIZE)], -1)


def dims(recipe: Recipe) -> tuple[int, int]:
    """Which latent is the colour, and which the size."""
    moved = factors_of(recipe, torch.eye(2)) - factors_of(recipe, torch.zeros(1, 2))
    colour = int(moved[:, 0].abs().argmax())
    assert moved[colour, 1].abs() < 0.2 * moved[colour, 0].abs(), "the factors are disentangled"
    return colour, 1 - colour


def test_a_concept_is_narrow_in_what_it_names_and_the_prior_elsewhere(recipe: Recipe) -> None:
    colour, size = dims(recipe)
    for word, named, free in (("red", colour, size), ("small", size, colour)):
        q = concept(recipe, word).base_dist
        assert q.scale[0, named] < 0.4 and q.scale[0, free] > 0.8 and q.loc[0, free].abs() < 0.3
    nothing = concept(recipe).base_dist
    assert (nothing.scale > 0.8).all() and (nothing.loc.abs() < 0.3).all()


@pytest.mark.parametrize(
    ("made", "as_if"),
    [
        (lambda q: conjunction(q("red"), q("small")), ("red", "small")),
        (lambda q: conjunction(q("blue"), q("blue", "big")), ("blue", "big")),
        (lambda q: in_common(q("red", "small"), q("red", "big")), ("red",)),
        (lambda q: ignore(q("red", "small"), q("red")), ("small",)),
    ],
    ids=["red and small", "blue and (blue, big)", "in common", "ignore"],
)
def test_recombined_concepts_are_those_of_the_combined_symbols(recipe: Recipe, made: object, as_if: tuple[str, ...]):
    found = made(lambda *words: concept(recipe, *words)).base_dist  # type: ignore[operator]
    trained = concept(recipe, *as_if).base_dist
    torch.testing.assert_close(found.loc, trained.loc, rtol=0, atol=0.25)
    torch.testing.assert_close(found.scale, trained.scale, rtol=0, atol=0.25)
    signs = {"red": (0, 1), "blue": (0, -1), "big": (1, 1), "small": (1, -1)}
    shown = factors_of(recipe, torch.distributions.Normal(found.loc, found.scale).sample((200,)))[:, 0]
    for word in as_if:
        factor, sign = signs[word]
        assert ((shown[:, factor] * sign) > 0).float().mean() > 0.9, word
    for factor in {0, 1} - {signs[w][0] for w in as_if}:  # what is left open takes both values
        assert 0.2 < (shown[:, factor] > 0).float().mean() < 0.8
