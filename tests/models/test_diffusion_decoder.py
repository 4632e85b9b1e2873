"""A diffusion as an image decoder: what it learns, what it draws, and what it refuses."""

from __future__ import annotations

import builtins

import pytest
import torch

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, generate, log_marginal
from pyro_mm.modality import Modality
from pyro_mm.models import DiffusionDecoder
from pyro_mm.post_hoc import with_decoder
from pyro_mm.training import fit

IMAGE = Modality("image", (1, 4, 4), likelihoods.Binomial(16), networks.MLP((32,)))
LABEL = Modality("label", (), likelihoods.Categorical(2), networks.Embedding(8, (8,)))


def bars(n: int) -> Batch:
    """Class 0: the left half is bright; class 1: the upper half; and a checkerboard pixel that is random."""
    torch.manual_seed(5)
    label = torch.randint(0, 2, (n,))
    image = torch.zeros(n, 1, 4, 4)
    image[label == 0, :, :, :2] = 16
    image[label == 1, :, :2] = 16
    image[:, :, 3, 3] = 16.0 * torch.randint(0, 2, (n, 1))
    return Batch({"image": image, "label": label})


@pytest.fixture(scope="module")
def fitted():
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    batch = bars(512)
    recipe = variants.mvae([IMAGE, LABEL], 2, weights={"label": 10.0})
    fit(recipe, batch, 30, batch_size=64, lr=3e-3, progress=False)
    before = {n: p.clone() for m in recipe.modules.values() for n, p in m.named_parameters()}
    new = with_decoder(recipe, DiffusionDecoder(IMAGE, 2, widths=(16, 32), steps=20), epochs=60)
    fit(new, batch, batch_size=32, lr=3e-3, progress=False)
    return recipe, new, before


def test_it_draws_sharp_images_of_the_class_that_is_given(fitted) -> None:
    old, new, _ = fitted
    batch = bars(200)
    drawn = generate(new.model, new.guide, batch.only("label"), 1, seed=0)["image"].sample()[0]
    assert drawn.shape == (200, 1, 4, 4) and drawn.min() >= 0 and drawn.max() <= 16
    halves = torch.stack([drawn[:, 0, 3, 0], drawn[:, 0, 0, 3]], -1)  # bright in class 0 and class 1 alone
    assert (halves.argmax(-1) == batch.x["label"]).float().mean() > 0.95
    free = drawn[:, 0, 3, 3] / 16
    grey = generate(old.model, old.guide, batch.only("label"), 1, seed=0)["image"].mean[0, :, 0, 3, 3] / 16
    extreme = [((v < 0.25) | (v > 0.75)).float().mean() for v in (free, grey)]
    assert extreme[0] > 0.6 and extreme[1] < 0.1  # black or white; the mean of p(image | z) is grey
    assert 0.25 < (free > 0.5).float().mean() < 0.75


def test_nothing_else_moves_and_the_old_recipe_keeps_its_likelihood(fitted) -> None:
    recipe, new, before = fitted
    after = {n: p for m in recipe.modules.values() for n, p in m.named_parameters()}
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert torch.isfinite(log_marginal(recipe.model, recipe.guide, bars(5), 50).estimate).all()
    with pytest.raises(NoLikelihood, match="the decoder of 'image' is a diffusion, which draws images only"):
        log_marginal(new.model, new.guide, bars(5), 50)
    with pytest.raises(NotImplementedError, match="draws images only"):
        new.model.decoders["image"](torch.zeros(3, 2)).log_prob(torch.zeros(3, 1, 4, 4))


def test_what_cannot_be_done_is_said(monkeypatch) -> None:
    recipe = variants.mvae([IMAGE, LABEL], 2)
    pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match=r"halve 3 times are needed, got \(1, 4, 4\)"):
        DiffusionDecoder(IMAGE, 2, widths=(8, 8, 8, 8))
    with pytest.raises(ValueError, match=r"widths are multiples of 8, got \(12, 16\)"):
        DiffusionDecoder(IMAGE, 2, widths=(12, 16))
    other = Modality("picture", (1, 4, 4), likelihoods.Bernoulli())
    with pytest.raises(ValueError, match="there is no decoder of 'picture' to replace"):
        with_decoder(recipe, DiffusionDecoder(other, 2, widths=(8, 8)))
    with pytest.raises(TypeError, match="reads the z of a Joint, not the latents of Hierarchical"):
        with_decoder(variants.nexus_elbo([IMAGE, LABEL], 2), DiffusionDecoder(IMAGE, 2, widths=(8, 8)))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "diffusers":
            raise ImportError("No module named 'diffusers'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install diffusers"):
        DiffusionDecoder(IMAGE, 2)
