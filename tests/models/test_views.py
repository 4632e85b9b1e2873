"""Decoding only the views that see a modality: the same losses and gradients as decoding all, with less work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.distributions.lazy import Lazy, made
from pyro_mm.evaluation import classify, classify_plug_in, generate, log_conditional, log_marginal
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


def results(model: nn.Module, guide: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What evaluations make of rows of which the image, and more, is hidden."""
    options = {"seed": 3}
    one, two = batch.only("a"), batch.only("a", "b")
    made = generate(model, guide, one, 4, **options)
    return {
        "marginal": log_marginal(model, guide, one, 20, refine=False, **options).estimate,
        "refined": log_marginal(model, guide, two, 20, refine=True, **options).estimate,
        "conditional": log_conditional(model, guide, batch, "b", "a", 20, **options).estimate,
        "classes": classify(model, guide, batch, "b", "a", 20, **options),
        "plugged in": classify_plug_in(model, guide, batch, "b", ("a", "c"), 20, **options),
        "made": made["c"].mean,
        "density": made["c"].log_prob(batch.x["c"]),
    }


def test_evaluations_decode_what_is_hidden_only_where_they_show_it(batch, monkeypatch) -> None:
    """To the bit what decoding everything gives."""
    model, guide = pair()
    few = results(model, guide, batch)
    with monkeypatch.context() as patch:
        patch.setattr("pyro_mm.models.views.is_deferring", lambda: False)
        every = results(model, guide, batch)
    for name, value in few.items():
        assert torch.equal(value, every[name]), name
    for m, decode in list(model.decoders.items()):
        model.decoders[m] = Counted(decode)

    def decoded_rows(run) -> dict[str, int]:
        for decode in model.decoders.values():
            decode.rows = 0
        run()
        return {m: decode.rows for m, decode in model.decoders.items()}

    rows = decoded_rows(lambda: log_marginal(model, guide, batch.only("a"), 20, refine=True, seed=0))
    assert rows["a"] > 0 and rows["b"] == rows["c"] == 0
    rows = decoded_rows(lambda: classify(model, guide, batch, "b", "a", 20, seed=0))
    assert rows["a"] > 0 and rows["b"] > 0 and rows["c"] == 0
    assert decoded_rows(lambda: generate(model, guide, batch.only("a"), 4)) == {"a": 24, "b": 24, "c": 24}
    model.train()
    elbo(model, guide)(batch.only("a")).backward()  # training is as it was
    assert all(p.grad is not None for p in model.parameters())


def test_a_lazy_distribution_is_what_it_stands_for() -> None:
    made_once = []
    full = torch.distributions.Independent(torch.distributions.Normal(torch.randn(4, 3), 0.5), 1)

    def make():
        made_once.append(1)
        return full

    lazy = Lazy(make, (4,), (3,), torch.zeros(()))
    assert lazy.batch_shape == (4,) and lazy.event_shape == (3,) and lazy.event_dim == 1
    assert lazy.expand((4,)) is lazy and torch.equal(lazy.masked_log_prob(), torch.zeros(4)) and not made_once
    x = torch.randn(4, 3)
    assert torch.equal(lazy.log_prob(x), full.log_prob(x)) and torch.equal(lazy.mean, full.mean)
    assert torch.equal(lazy.variance, full.variance) and torch.equal(lazy.mode, full.mode)
    assert not lazy.has_rsample and str(lazy.support) == str(full.support)
    torch.manual_seed(0)
    drawn = lazy.rsample((2,))
    torch.manual_seed(0)
    assert torch.equal(drawn, full.rsample((2,))) and lazy.sample().shape == (4, 3)
    more = lazy.expand((5, 4))
    assert more.batch_shape == (5, 4) and torch.equal(more.log_prob(x), full.log_prob(x).expand(5, 4))
    assert len(made_once) == 1
    assert made(lazy) is full and made(full) is full
