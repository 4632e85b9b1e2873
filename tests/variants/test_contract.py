"""What every variant must do on ordinary mixed data: images, labels and captions, with rows missing anything."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import generate
from pyro_mm.evaluation.proposals import Proposal, evaluating
from pyro_mm.modality import Modality
from pyro_mm.recipe import Recipe
from pyro_mm.weights import Run, replay, run, total_log_weight
from tests.helpers.layered import CLASSED

MODALITIES = [
    Modality("image", (1, 8, 8), likelihoods.Binomial(16), networks.Conv((4, 8), 16)),
    Modality("label", (), likelihoods.Categorical(5), networks.Embedding(8, (8,))),
    Modality("caption", (4,), likelihoods.Tokens(6), networks.Recurrent(8)),
]
SMALL: dict[str, dict[str, Any]] = {
    name: {"width": 16} for name in ("cvae", "jmvae", "jmvae_zero", "jmvae_kl", "jmvae_gan", "telbo", "vaevae")
} | {
    "mmvae_iwae": {"k": 2},
    "mmvae_dreg": {"k": 2},
    "nexus": {"width": 16, "codes": 3},
    "nexus_elbo": {"width": 16, "codes": 3},
    "hierarchical_mvae": {"codes": 3},
    "hierarchical_mmvae": {"codes": 3},
    "mhvae_2020": {"width": 16, "codes": 3},
    "mhvae_2023": {"width": 16, "levels": (3, 2)},
    "cmvae": {"clusters": 4},
    "mfm": {"width": 16},
    "jnf": {"width": 16, "hidden": (8,)},
    "meme": {"pseudo": 6, "samples": 3},
    "set_attention": {"width": 8, "heads": 2},
    "smvae": {"width": 8, "heads": 2},
    "global_workspace": {"width": 8, "heads": 2},
    "m2vae": {"width": 16},
    "mld": {"width": 16, "blocks": 1, "steps": 4},
    "sum_pooling": {"width": 16},
}
NAMES = list(variants.__all__)


def make(name: str) -> Recipe:
    torch.manual_seed(1)
    return getattr(variants, name)(MODALITIES, 3, **SMALL.get(name, {}))


def mixed(n: int = 12) -> Batch:
    """Rows with everything, something and nothing."""
    noise = torch.Generator().manual_seed(2)
    x = {
        "image": torch.randint(0, 17, (n, 1, 8, 8), generator=noise).float(),
        "label": torch.randint(0, 5, (n,), generator=noise),
        "caption": torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0], [5, 4, 3, 2], [2, 2, 2, 0]]).repeat(n // 4, 1),
    }
    patterns = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    mask = patterns.repeat(n // 6, 1)
    return Batch(x, {m: mask[:, i] for i, m in enumerate(x)})


def weight_at(recipe: Recipe, batch: Batch, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """log p(x, z) - log q(z) per row at given latents."""
    with evaluating(recipe.model, recipe.guide):
        model = replay(recipe.model, batch, values)
        guide = replay(recipe.guide, batch, values)
        return total_log_weight(Run(model, guide))[0]


def some_latents(recipe: Recipe, batch: Batch) -> dict[str, torch.Tensor]:
    with evaluating(recipe.guide, seed=3):
        values = {n: s.value for n, s in run(recipe.guide, batch).items()}
    # A class that the model enumerates is given as well: the label where there is one, so that nothing is impossible.
    return values | ({"c": batch.x["label"]} if recipe.name in CLASSED else {})


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    """At the latest in the second step: a last layer that starts at 0 hides the others in the first."""
    recipe = make(name)
    optimiser = torch.optim.SGD(recipe.objective.parameters(), 1e-4)
    recipe.objective(mixed()).backward()
    if name == "mld":
        optimiser.step()
        recipe.objective(mixed()).backward()
    moving = {n: p for n, p in recipe.objective.named_parameters() if p.requires_grad}
    dead = [n for n, p in moving.items() if p.grad is None or not bool((p.grad != 0).any())]
    assert dead == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in moving.values())


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_independent_and_exchangeable(name: str) -> None:
    recipe, batch = make(name), mixed()
    values = some_latents(recipe, batch)
    whole = weight_at(recipe, batch, values)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(4))
    shuffled = weight_at(recipe, batch[order], {n: v[order] for n, v in values.items()})
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-5, atol=1e-4)
    single = torch.cat([weight_at(recipe, batch[i], {n: v[i : i + 1] for n, v in values.items()}) for i in range(12)])
    torch.testing.assert_close(single, whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_modalities_in_the_batch_is_irrelevant(name: str) -> None:
    recipe, batch = make(name), mixed()
    turned = Batch({m: batch.x[m] for m in reversed(batch.names)}, {m: batch.mask[m] for m in reversed(batch.names)})
    values = some_latents(recipe, batch)
    assert torch.equal(weight_at(recipe, turned, values), weight_at(recipe, batch, values))


@pytest.mark.parametrize("name", NAMES)
def test_masked_values_change_nothing(name: str) -> None:
    """Other pixels, labels and tokens under the masks: the same loss and the same gradients, bit for bit."""
    batch = mixed()
    other = {
        "image": torch.where(batch.mask["image"][:, None, None, None], batch.x["image"], 16.0),
        "label": torch.where(batch.mask["label"], batch.x["label"], 4),
        "caption": torch.where(batch.mask["caption"][:, None], batch.x["caption"], 5),
    }
    found = []
    for x in (batch.x, other):
        recipe = make(name)
        torch.manual_seed(5)
        loss = recipe.objective(Batch._view(dict(x), dict(batch.mask)))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in recipe.objective.parameters() if p.requires_grad)])
    assert not torch.equal(other["image"], batch.x["image"])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_with_nothing_present_is_the_prior(name: str) -> None:
    recipe = make(name)
    batch = mixed()
    nothing = Batch(batch.x, {m: torch.zeros(len(batch), dtype=torch.bool) for m in batch.mask})
    torch.manual_seed(6)
    loss = recipe.objective(nothing)
    assert loss.abs().item() < 1e-6
    values = some_latents(recipe, nothing)
    found, model = replay(recipe.guide, nothing, values), replay(recipe.model, nothing, values)
    # What a missing modality masks is nowhere scored; the rest is there with nothing seen too.
    there = [n for n, site in found.items() if site.mask is None]
    assert there
    for n in there:
        torch.testing.assert_close(found[n].fn.log_prob(values[n]), model[n].fn.log_prob(values[n]))


@pytest.mark.parametrize("name", NAMES)
def test_the_callers_batch_is_untouched(name: str) -> None:
    recipe, batch = make(name), mixed()
    before = copy.deepcopy((batch.x, batch.mask))
    recipe.objective(batch).backward()
    generate(recipe.model, recipe.guide, batch, 2)
    assert list(batch.x) == list(before[0])
    for old, new in zip(before, (batch.x, batch.mask), strict=True):
        assert all(torch.equal(old[m], new[m]) for m in old)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("vae", "cvae")])
def test_the_defensive_proposal_scores_its_own_draws(name: str) -> None:
    """The mixture density of guide and prior at drawn points equals what the two programs say separately."""
    recipe, batch = make(name), mixed()
    with evaluating(recipe.model, recipe.guide, seed=7):
        proposal = Proposal(recipe.model, [(recipe.guide, batch)], [0.75, 0.25])
        draws = proposal.draw(batch, proposal.assign(8))
        for i in range(8):
            at = {n: v[i, 0] for n, v in draws.values.items()}
            q = sum(s.log_prob() for s in replay(recipe.guide, batch, at).values())
            at_model = replay(recipe.model, batch, at)
            p = sum(at_model[n].log_prob() for n in at)  # a class that the model enumerates is not drawn
            expected = torch.logaddexp(q + torch.tensor(0.75).log(), p + torch.tensor(0.25).log())
            torch.testing.assert_close(draws.log_q[i], expected, rtol=1e-5, atol=1e-5)
