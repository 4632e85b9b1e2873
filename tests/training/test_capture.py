"""A captured step is the eager step: loss, gradients, report with the same noise; what it would freeze is refused."""

from __future__ import annotations

import random
import warnings

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.likelihoods import Bernoulli, Categorical
from pyro_mm.modality import Modality
from pyro_mm.networks import MLP, Embedding
from pyro_mm.objectives import Warmup
from pyro_mm.subsets import RandomSubsets
from pyro_mm.training import fit
from pyro_mm.training.capture import CannotCapture, can_compile, capture
from pyro_mm.training.graphs import wanted
from tests.variants.test_contract import make, mixed

GRAPHS = ("vae", "jmvae_kl", "mvae", "mmvae_dreg", "mopoe", "nexus")


def complete() -> Batch:
    return Batch(mixed().x)


def eager(objective: nn.Module, batch: Batch) -> list[Tensor | None]:
    objective.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    loss = objective(batch)
    loss.backward()
    return [loss.detach(), *(None if p.grad is None else p.grad.clone() for p in objective.parameters())]


def by_graph(step, batch: Batch) -> list[Tensor | None]:
    torch.manual_seed(3)
    loss, _ = step(batch)
    return [loss, *(p.grad for p in step.objective.parameters())]


def assert_same(found: list[Tensor | None], wanted: list[Tensor | None]) -> None:
    assert [a is None for a in found] == [b is None for b in wanted]
    for a, b in zip(found, wanted, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graph_is_the_eager_step(name: str) -> None:
    """Captured on complete rows, and right for rows that lack anything: masks are inputs."""
    recipe = make(name)
    before = {n: b.clone() for n, b in recipe.objective.state_dict().items()}
    noise = torch.get_rng_state()
    step = capture(recipe.objective, complete(), compiled=False)
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(b, before[n]) for n, b in recipe.objective.state_dict().items())
    for batch in (complete(), mixed()):
        twin = make(name)  # batch normalisation moves its buffers at every step, in a graph as well
        twin.objective.load_state_dict(recipe.objective.state_dict())
        assert_same(by_graph(step, batch), eager(twin.objective, batch))
        theirs = twin.objective.report()
        assert recipe.objective.report() == pytest.approx(theirs, rel=1e-4, abs=1e-4)
        assert_same(list(recipe.objective.buffers()), list(twin.objective.buffers()))


def test_noise_is_drawn_anew_and_schedules_move() -> None:
    recipe = variants.vae(MODALITIES[:1], 3, beta=Warmup(10))
    batch = Batch({"x": DATA.x["x"]})
    recipe.objective.set_progress(0.0)
    step = capture(recipe.objective, batch, compiled=False)
    torch.manual_seed(0)
    assert not torch.equal(step(batch)[0], step(batch)[0])
    for progress in (0.0, 5.0, 20.0):
        recipe.objective.set_progress(progress)
        assert_same(by_graph(step, batch), eager(recipe.objective, batch))


MODALITIES = [
    Modality("x", (20,), Bernoulli(), MLP((16,))),
    Modality("label", (), Categorical(4), Embedding(8, (8,))),
]
DATA = Batch(
    {
        "x": torch.randint(0, 2, (64, 20), generator=torch.Generator().manual_seed(0)).float(),
        "label": torch.arange(64) % 4,
    }
)


class Loss(nn.Module):
    """A loss with something in it that a graph would freeze."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer, self.what, self.calls = nn.Linear(20, 1), what, 0

    def forward(self, batch: Batch) -> Tensor:
        out = self.layer(batch.x["x"]).square().mean()
        if self.what == "branch" and bool(out > 1e9):
            out = out * 2
        if self.what == "random":
            out = out * random.random()
        if self.what == "count":
            self.calls += 1
        if self.what == "hidden count":
            self._calls = getattr(self, "_calls", 0) + 1
        if self.what == "item":
            out = out * out.item()
        if self.what == "global":
            out = out * pyro.param("scale", torch.tensor(1.0))
        return out


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("branch", "looks at values in Python"),
        ("item", "looks at values in Python"),
        ("random", "draws random numbers from Python or NumPy"),
        ("count", r"keeps state in Python \(calls\)"),
        ("hidden count", r"keeps state in Python \(_calls\)"),
    ],
)
def test_what_would_be_frozen_is_refused(what: str, reason: str) -> None:
    with pytest.raises(CannotCapture, match=reason):
        capture(Loss(what), DATA, compiled=False)


def test_global_parameters_are_refused_by_name() -> None:
    try:
        with pytest.raises((CannotCapture, ValueError), match="scale"):
            capture(Loss("global"), DATA, compiled=False)
    finally:
        pyro.clear_param_store()


def test_random_subsets_are_drawn_in_the_graph() -> None:
    """As many different ones as in eager steps, the same for the same noise."""
    modalities = [Modality(m, (4,), Bernoulli(), MLP((6,))) for m in "abcd"]
    batch = Batch({m: (torch.rand(12, 4) < 0.5).float() for m in "abcd"})
    recipe = variants.mvae_sampled(modalities, 2, k=2)
    subsets = next(m for m in recipe.objective.modules() if isinstance(m, RandomSubsets))
    before = subsets.groups
    step = capture(recipe.objective, batch, compiled=False)
    assert subsets.groups == before
    groups = set()
    for seed in range(12):
        torch.manual_seed(seed)
        wanted = recipe.objective(batch)
        groups.add(subsets.groups)
        torch.manual_seed(seed)
        torch.testing.assert_close(step(batch)[0], wanted.detach())
    assert len(groups) > 6


def test_random_subsets_are_refused_where_statistics_would_depend_on_what_is_decoded() -> None:
    modalities = [Modality(m, (4,), Bernoulli(), MLP((6,), norm=nn.BatchNorm1d)) for m in "abc"]
    recipe = variants.mvae_sampled(modalities, 2)
    with pytest.raises(CannotCapture, match="batch normalisation"):
        capture(recipe.objective, Batch({m: torch.ones(3, 4) for m in "abc"}), compiled=False)


def test_what_is_refused_is_trained_eagerly_with_a_word() -> None:
    with pytest.warns(UserWarning, match="trained eagerly, not compiled: it looks at values"):
        fit(Loss("branch"), DATA, 1, batch_size=32, compile=True, progress=False)


def test_another_shape_is_not_the_graphs() -> None:
    recipe = variants.mvae(MODALITIES, 2)
    step = capture(recipe.objective, DATA, compiled=False)
    assert step.fits(DATA) and not step.fits(DATA[:10]) and not step.fits(DATA.only("x"))


def test_auto_is_for_long_runs() -> None:
    here = torch.device("cpu")
    assert not wanted("auto", 100, here) and not wanted("auto", None, here)
    assert not wanted(False, 10**9, here) and wanted(True, 1, here)
    assert wanted("auto", 10**9, here) == can_compile(here)


def test_an_unknown_wish_is_refused() -> None:
    with pytest.raises(ValueError, match="compile must be True, False or 'auto', got 'yes'"):
        fit(variants.mvae(MODALITIES, 2).objective, DATA, 1, compile="yes")


@pytest.mark.slow
def test_compiled_training_is_eager_training() -> None:
    """The last, smaller minibatch runs eagerly; parameters agree after 3 epochs."""
    found = []
    for how in (False, True):
        torch.manual_seed(0)
        recipe = variants.mvae(MODALITIES, 2, beta=Warmup(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            history = fit(recipe.objective, DATA, 3, batch_size=24, compile=how, progress=False, clip_norm=5.0)
        found.append(([p.detach().clone() for p in recipe.objective.parameters()], [r["loss"] for r in history.rows]))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
