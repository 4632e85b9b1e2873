"""Decoding only the views that see a modality: the same losses and gradients as decoding all, with less work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import RandomSubsets, in_subsets
from pyro_mm.modality import Modality
from pyro_mm.models.views import Viewwise, decoded
from pyro_mm.objectives import elbo, iwae
from pyro_mm.weights import log_weights

MODALITIES = [
    Modality("a", (3,), likelihoods.Normal(), networks.MLP((8,))),
    Modality("b", (), likelihoods.Categorical(4), networks.Embedding(6, (6,))),
    Modality("c", (1, 8, 8), likelihoods.Bernoulli(), networks.Conv((4, 8), 16)),
]
GROUPS = [("a", "b", "c"), ("a",), ("b", "c"), ("b",)]


@pytest.fixture
def batch() -> Batch:
    noise = torch.Generator().manual_seed(0)
    x = {
        "a": torch.randn(6, 3, generator=noise),
        "b": torch.randint(0, 4, (6,), generator=noise),
        "c": torch.randint(0, 2, (6, 1, 8, 8), generator=noise).float(),
    }
    return Batch(x, {"a": torch.tensor([1, 1, 0, 1, 1, 0]).bool(), "c": torch.tensor([0, 1, 1, 1, 1, 0]).bool()})


class Counted(nn.Module):
    """Remembers how many codes it decoded."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, z: Tensor) -> object:
        self.rows += z.shape[:-1].numel()
        return self.inner(z)


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    recipe = variants.mvae(MODALITIES, 2)
    return recipe.model, recipe.guide


@pytest.mark.parametrize("groups", [GROUPS, RandomSubsets(("a", "b", "c"), 2, [("a",), ("c",)])])
@pytest.mark.parametrize("make", [elbo, lambda m, q: elbo(m, q, particles=3), lambda m, q: iwae(m, q, 3)])
def test_losses_and_gradients_are_those_of_full_decoding(make, groups, batch, monkeypatch) -> None:
    found = []
    for full in (False, True):
        if full:
            monkeypatch.setattr("pyro_mm.models.joint.decoded", lambda m, decode, z, batch: decode(z))
        model, guide = pair()
        torch.manual_seed(2)
        loss = make(in_subsets(model, groups), in_subsets(guide, groups))(batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for n, p in [*model.named_parameters(), *guide.named_parameters()])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_log_weights_keep_their_shape_and_values(batch, monkeypatch) -> None:
    model, guide = pair()
    found = []
    for full in (False, True):
        if full:
            monkeypatch.setattr("pyro_mm.models.joint.decoded", lambda m, decode, z, batch: decode(z))
        with evaluating(model, guide, seed=3):
            found.append(log_weights(in_subsets(model, GROUPS), in_subsets(guide, GROUPS), batch, 5))
    assert found[0].shape == (5, 4, 6)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_only_the_views_that_see_it_are_decoded(batch) -> None:
    model, guide = pair()
    for m, decode in list(model.decoders.items()):
        model.decoders[m] = Counted(decode)
    elbo(in_subsets(model, GROUPS), in_subsets(guide, GROUPS))(batch)
    assert {m: decode.rows for m, decode in model.decoders.items()} == {"a": 2 * 6, "b": 3 * 6, "c": 2 * 6}


def test_where_all_views_may_see_it_all_are_decoded(batch) -> None:
    """With `whole`, outside views, and for a modality that no view sees."""
    model, guide = pair()
    for m, decode in list(model.decoders.items()):
        model.decoders[m] = Counted(decode)
    elbo(in_subsets(model, GROUPS, whole=True), in_subsets(guide, GROUPS))(batch)
    assert {decode.rows for decode in model.decoders.values()} == {4 * 6}
    z = torch.zeros(4, 6, 2)
    for view in (batch, batch.visible({m: torch.tensor([False] * 4) for m in batch.names})):
        assert not isinstance(decoded("a", model.decoders["a"], z, view), Viewwise)


def test_draws_and_moments_are_those_of_every_view(batch) -> None:
    model, _ = pair()
    z = torch.randn(4, 6, 2)
    for m in ("a", "c"):
        full = model.decoders[m](z)
        partial = decoded(m, model.decoders[m], z, batch.subsets(GROUPS))
        assert isinstance(partial, Viewwise)
        assert partial.batch_shape == full.batch_shape and partial.event_shape == full.event_shape
        torch.testing.assert_close(partial.mean, full.mean)
        torch.testing.assert_close(partial.variance, full.variance)
        torch.manual_seed(0)
        drawn = partial.sample()
        torch.manual_seed(0)
        assert torch.equal(drawn, full.sample())
        seen = torch.tensor([m in g for g in GROUPS])
        # A value of every view's own, and one value for all views.
        for value in (drawn, drawn[1]):
            log_p = partial.log_prob(value)
            torch.testing.assert_close(log_p[seen], full.log_prob(value)[seen])
            assert bool((log_p[~seen] == 0).all())
