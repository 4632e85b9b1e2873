"""Systems without a density of x say so, and why, wherever a likelihood is asked for."""

from __future__ import annotations

import re

import pytest
import torch

from pyro_mm import likelihoods, variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, ais, log_marginal, sandwich
from pyro_mm.modality import Modality
from pyro_mm.networks import Linear
from tests.helpers.layered import NO_DENSITY

REASONS = {
    "cada_vae": "CADA-VAE is trained by distances",
    "cvae": "a model of a given b, label",
    "jmvae_gan": "the decoder of 'a' was sharpened by a discriminator",
    "meme": "MEME models each modality given another",
    "mfm": "MFM is trained to match latents in distribution only",
    "mld": "MLD's autoencoders are trained to rebuild x",
    "mmvm": "MMVM's prior is a mixture of its own posteriors",
    "mmvm_pairwise": "MMVM's prior is a mixture of its own posteriors",
}
SMALL = {"cvae": {"width": 8}, "jmvae_gan": {"width": 8}, "mfm": {"width": 8}, "mld": {"width": 8, "blocks": 1}}
MODALITIES = [
    Modality("a", (3,), likelihoods.Normal(), Linear()),
    Modality("b", (2,), likelihoods.Normal(), Linear()),
    Modality("label", (), likelihoods.Categorical(3), Linear()),
]


def test_all_of_them_are_here() -> None:
    assert set(REASONS) == NO_DENSITY | {"cvae", "mfm"}


@pytest.mark.parametrize("ask", [log_marginal, sandwich, ais])
@pytest.mark.parametrize("name", REASONS)
def test_no_likelihood_and_why(name: str, ask) -> None:
    """Of everything and of a part, before and after a step of training."""
    torch.manual_seed(0)
    recipe = getattr(variants, name)(MODALITIES, 2, **SMALL.get(name, {}))
    batch = Batch({"a": torch.randn(4, 3), "b": torch.randn(4, 2), "label": torch.tensor([0, 1, 2, 0])})
    with pytest.raises(NoLikelihood, match=re.escape(REASONS[name])):
        ask(recipe.model, recipe.guide, batch, 5)
    recipe.objective(batch).backward()
    with pytest.raises(NoLikelihood, match=re.escape(REASONS[name])):
        ask(recipe.model, recipe.guide, batch.only("a"), 5)
