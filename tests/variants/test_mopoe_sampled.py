"""MoPoE by one subset for every row and step: the published bound and its gradient, at a cost that grows with M."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_mm import likelihoods, networks
from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, mixture_of_products, product_of_a_subset, product_of_experts
from pyro_mm.guides.experts import opinions
from pyro_mm.modality import Modality
from pyro_mm.objectives import componentwise_elbo
from pyro_mm.recipe import Recipe
from pyro_mm.storage import load, save
from pyro_mm.training import fit
from pyro_mm.training.capture import capture
from pyro_mm.variants import mopoe
from tests.helpers.oracle import LG, flat_gradient, set_to_exact_experts, z_scores

FOUR = {"a": 2, "b": 2, "c": 2, "d": 2}


def recipe(count: int, **options: object) -> Recipe:
    modalities = [Modality(f"x{i}", (3,), likelihoods.Normal(), networks.MLP((8,))) for i in range(count)]
    return mopoe(modalities, 2, **options)


def data(count: int, rows: int = 16) -> Batch:
    noise = torch.Generator().manual_seed(1)
    return Batch({f"x{i}": torch.randn(rows, 3, generator=noise) for i in range(count)})


@pytest.mark.parametrize("sampled", [True, False])
def test_loss_and_gradient_are_in_expectation_the_exact_ones(sampled: bool) -> None:
    """Of four modalities, with rows that lack some of them; those of a single product would be far off."""
    lg = LG(FOUR)
    made = mopoe(lg.modalities(), lg.latent, sampled=sampled)
    made.model.double().load_state_dict(lg.model().state_dict())
    set_to_exact_experts(lg, made.guide.double().encoders)
    rows = lg.data(200, missing=True)
    loss = exact_loss(made, rows)
    truth = torch.cat([loss.detach().view(1), flat_gradient(loss, made.objective)])
    assert z_scores(estimates(made.objective, rows, 150), truth).abs().max() < 4.5
    other = componentwise_elbo(made.model, Experts(made.guide.encoders, product_of_experts))
    assert z_scores(estimates(other, rows, 30), truth).abs().max() > 20


def exact_loss(made: Recipe, rows: Batch) -> Tensor:
    """Minus the mean over subsets T of E_q_T log p(x|z) - KL(q_T || p), in closed form for an affine Gaussian model."""
    loc, scale, mask = opinions(made.guide.encoders, rows)
    total, count = torch.zeros(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    for members in torch.tensor(list(product([False, True], repeat=len(FOUR)))[1:]):
        q = product_of_experts(loc, scale, mask & members).base_dist
        bound = -0.5 * (q.loc**2 + q.scale**2 - 1).sum(-1) + q.scale.log().sum(-1)
        for m, decode in made.model.decoders.items():
            p = decode(q.loc)
            spread = (q.scale**2 @ (decode.net[0].weight ** 2).T / p.base_dist.scale**2).sum(-1)
            bound = bound + (p.log_prob(rows.x[m]) - 0.5 * spread) * rows.mask[m]
        whole = (mask | ~members).all(-1)
        total, count = total + torch.where(whole, bound, 0.0), count + whole
    return -(total / count.clamp(min=1)).mean()


def estimates(objective: torch.nn.Module, rows: Batch, draws: int) -> Tensor:
    """Loss and gradient `(draws, 1 + P)`."""
    out = []
    for _ in range(draws):
        loss = objective(rows)
        out.append(torch.cat([loss.detach().view(1), flat_gradient(loss, objective)]))
    return torch.stack(out)


class Largest(TorchDispatchMode):
    """The most numbers in one tensor."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))])
        return out


def test_calls_and_memory_are_linear_in_the_modalities() -> None:
    """4 and 8 of them, forwards and backwards; the whole mixture makes as many calls and 16 times the tensors."""
    largest, calls = {}, Counter()
    for count in (4, 8):
        for sampled in (True, False):
            made = recipe(count, sampled=sampled)
            for part in (*made.guide.encoders.values(), *made.model.decoders.values()):
                part.register_forward_hook(lambda *_, key=(count, sampled): calls.update([key]))
            with Largest() as watch:
                made.objective(data(count)).backward()
            largest[count, sampled] = watch.numel
    assert calls[4, True] == 8 and calls[8, True] == 16
    assert largest[8, True] <= 2 * largest[4, True]
    assert largest[8, False] > 10 * largest[4, False]


@pytest.mark.parametrize("count", [8, 40])
def test_it_trains(count: int) -> None:
    """40 modalities have 10^12 subsets."""
    made = recipe(count, sampled=True)
    losses = fit(made, data(count, 64), 15, batch_size=32, lr=1e-2, progress=False)["loss"]
    assert losses[-1] < losses[0] and all(p.grad is not None for p in made.objective.parameters())


def test_it_can_be_a_graph() -> None:
    made = recipe(3, sampled=True)
    loss, _ = capture(made.objective, data(3), compiled=False)(data(3))
    assert loss.isfinite()


def test_its_guide_is_the_mixture_and_it_is_loaded_as_it_was_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    made = recipe(3, sampled=True)
    save(made, tmp_path / "model")
    again = load(tmp_path / "model")
    for part in (made, again):
        assert part.config["sampled"] and part.guide.fuse is mixture_of_products
        assert next(iter(part.objective)).guide.fuse is product_of_a_subset
