"""p(label | image) against sums over every value of discrete latents."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_mm.batch import Batch
from pyro_mm.evaluation.classify import classify, classify_plug_in
from pyro_mm.evaluation.evidence import NoLikelihood
from pyro_mm.likelihoods import Categorical, Normal
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP
from pyro_mm.variants import cvae, mvae

PRIOR = torch.tensor([0.5, 0.2, 0.3])
PIXEL = torch.tensor([[0.9, 0.2], [0.3, 0.6], [0.4, 0.95]])  # p(pixel = 1 | z)
LABEL = torch.tensor([[0.7, 0.2, 0.05, 0.05], [0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.2, 0.6]])  # p(y | z)
GUIDE = torch.tensor([0.2, 0.5, 0.3])  # deliberately not the posterior
K = 20_000  # the largest standard error of a probability below is then 0.005


def model(batch):
    with pyro.plate("data", len(batch), dim=-1):
        z = pyro.sample("z", dist.Categorical(PRIOR))
        with poutine.mask(mask=batch.mask["image"]):
            pyro.sample("image", dist.Bernoulli(PIXEL[z]).to_event(1), obs=batch.x["image"])
        with poutine.mask(mask=batch.mask.get("label", torch.zeros(len(batch), dtype=torch.bool))):
            pyro.sample("label", dist.Categorical(LABEL[z]), obs=batch.x.get("label"))


def guide(batch):
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Categorical(GUIDE))


@pytest.fixture
def batch():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    present = torch.tensor([True, True, True, False])
    return Batch({"image": image, "label": torch.tensor([0, 1, 2, 3])}, {"image": present})


def exact(batch):
    """p(y | image) by the sum over z; the prior predictive where there is no image."""
    log_x = dist.Bernoulli(PIXEL).to_event(1).log_prob(batch.x["image"].unsqueeze(1))
    log_x = torch.where(batch.mask["image"].unsqueeze(-1), log_x, 0.0)
    return (PRIOR.log() + log_x).softmax(-1) @ LABEL


@pytest.mark.parametrize("chunk", [None, 700])
def test_it_is_the_bayes_classifier_for_any_guide(batch, chunk):
    found = classify(model, guide, batch, k=K, seed=1, chunk=chunk)
    assert found.shape == (4, 4)
    torch.testing.assert_close(found.sum(-1), torch.ones(4).double())
    torch.testing.assert_close(found.float(), exact(batch), atol=0.02, rtol=0)


def test_the_plug_in_is_another_quantity(batch):
    found = classify_plug_in(model, guide, batch, k=K, seed=1)
    torch.testing.assert_close(found.float(), (GUIDE @ LABEL).expand(4, 4), atol=0.02, rtol=0)
    assert (found - exact(batch)).abs().max() > 0.1


def test_the_label_cannot_leak(batch):
    """Same draws, other labels, hidden labels, no labels: the same probabilities to the last bit."""
    first = classify(model, guide, batch, k=50, seed=3)
    others = [
        Batch({**batch.x, "label": 3 - batch.x["label"]}, batch.mask),
        batch.only("image"),
        Batch({"image": batch.x["image"]}, {"image": batch.mask["image"]}),
    ]
    for other in others:
        assert torch.equal(classify(model, guide, other, k=50, seed=3), first)


def test_a_trained_pair_does_not_see_the_label(modalities):
    pair = mvae(modalities, 3)
    image = torch.randn(5, 4)
    found = [
        classify(pair.model, pair.guide, Batch({"image": image, "label": label}), k=30, seed=0)
        for label in (torch.zeros(5).long(), torch.full((5,), 2))
    ]
    assert torch.equal(*found)


def test_a_latent_of_the_hidden_modality_comes_from_the_model(batch):
    """w exists where a label is present; its guide is nonsense, and p(y | z, w) depends on it."""
    flip = torch.tensor([0.25, 0.75])

    def private(batch, probs, observe):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Categorical(PRIOR if observe else GUIDE))
            with poutine.mask(mask=batch.mask["label"]):
                w = pyro.sample("w_label", dist.Categorical(probs))
            if observe:
                with poutine.mask(mask=batch.mask["image"]):
                    pyro.sample("image", dist.Bernoulli(PIXEL[z]).to_event(1), obs=batch.x["image"])
                with poutine.mask(mask=batch.mask["label"]):
                    pyro.sample("label", dist.Categorical(LABEL[(z + w) % 3]), obs=batch.x["label"])

    pair = (lambda b: private(b, flip, True)), (lambda b: private(b, torch.tensor([0.99, 0.01]), False))
    turned = torch.stack([flip[0] * LABEL[z] + flip[1] * LABEL[(z + 1) % 3] for z in range(3)])
    expected = torch.linalg.lstsq(LABEL.T, exact(batch).T).solution.T @ turned
    torch.testing.assert_close(classify(*pair, batch, k=K, seed=0).float(), expected, atol=0.02, rtol=0)


@pytest.fixture
def modalities():
    return [
        Modality("image", (4,), Normal(1.0), MLP((8,))),
        Modality("label", (), Categorical(3), MLP((8,))),
    ]


def test_what_cannot_be_classified_says_so(batch, modalities):
    with pytest.raises(ValueError, match="from at least one other modality"):
        classify(model, guide, batch, of="label", given=("label",))
    with pytest.raises(ValueError, match="unknown modality"):
        classify(model, guide, batch, given="sound")
    with pytest.raises(NoLikelihood, match="no site 'sound'"):
        classify(model, guide, batch, of="sound", k=5)
    with pytest.raises(NoLikelihood, match=r"no site \['sound'\]"):
        classify(model, guide, Batch({**batch.x, "sound": torch.zeros(4)}, batch.mask), given=("image", "sound"), k=5)
    full = Batch({"image": torch.randn(2, 4), "label": torch.tensor([0, 1])})
    pair = mvae(modalities, 3)
    with pytest.raises(ValueError, match="cannot be listed"):
        classify(pair.model, pair.guide, full, of="image", given="label", k=5)
    conditional = cvae(modalities, 3)
    with pytest.raises(NoLikelihood):
        classify(conditional.model, conditional.guide, full, k=5)


def test_the_callers_randomness_is_left_alone_with_a_seed(batch):
    before = torch.get_rng_state()
    classify(model, guide, batch, k=5, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
