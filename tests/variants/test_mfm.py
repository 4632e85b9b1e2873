"""MFM's label is predicted, and so no encoder may see it."""

from __future__ import annotations

import torch

from pyro_mm import likelihoods, variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import classify_plug_in
from pyro_mm.modality import Modality
from pyro_mm.networks import Linear
from pyro_mm.training import fit
from pyro_mm.weights import run

MODALITIES = [
    Modality("a", (3,), likelihoods.Normal(), Linear()),
    Modality("b", (2,), likelihoods.Normal(), Linear()),
    Modality("label", (), likelihoods.Categorical(4), Linear()),
]


def data(n: int, seed: int = 0) -> Batch:
    noise = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (n,), generator=noise)
    a = torch.randn(n, 3, generator=noise)
    return Batch({"a": a, "b": torch.randn(n, 2, generator=noise), "label": label})


def test_the_posterior_does_not_change_with_the_label() -> None:
    """Another label, or none: the same distributions of z and of w_m.  Other data, another one."""
    torch.manual_seed(0)
    recipe, batch = variants.mfm(MODALITIES, 2, width=8), data(6)
    other = Batch({**batch.x, "label": 3 - batch.x["label"]})
    found = [run(recipe.guide, b) for b in (batch, other, batch.only("a", "b"))]
    assert set(found[0]) == {"z", "w_a", "w_b"} and recipe.guide.names == ("a", "b")
    for site in found[0]:
        first, *rest = (sites[site].fn.base_dist for sites in found)
        for q in rest:
            assert torch.equal(first.loc, q.loc) and torch.equal(first.scale, q.scale)
    moved = run(recipe.guide, Batch({**batch.x, "a": batch.x["a"] + 1.0}))
    assert not torch.equal(moved["z"].fn.base_dist.loc, found[0]["z"].fn.base_dist.loc)


def test_a_label_that_is_noise_is_not_predicted() -> None:
    """Trained on labels that have nothing to do with a and b: a leak would make z tell them all the same."""
    torch.manual_seed(0)
    recipe, batch = variants.mfm(MODALITIES, 3, width=16), data(400)
    fit(recipe, batch, 20, batch_size=100, lr=1e-2, progress=False)
    test = data(400, seed=1)
    predicted = classify_plug_in(recipe.model, recipe.guide, test, "label", ("a", "b"), 20, seed=0).argmax(-1)
    assert (predicted == test.x["label"]).float().mean() < 0.4
    report = recipe.objective.report()
    assert report["reconstruction/label"] < -1.2  # log 1/4 is -1.39


def test_a_row_with_nothing_but_a_label_trains_no_decoder() -> None:
    torch.manual_seed(0)
    recipe, batch = variants.mfm(MODALITIES, 2, width=8), data(6).only("label")
    recipe.objective(batch).backward()
    assert all(p.grad is None or not p.grad.any() for p in recipe.model.decoders.parameters())
    alone = variants.mfm(MODALITIES[2:], 2, width=8)  # a label by itself is what there is to see
    assert alone.guide.names == ("label",)
