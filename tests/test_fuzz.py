"""Random pairs, masks and objectives: what must hold for every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import torch
from hypothesis import given as fuzz
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyro_mm import likelihoods, networks
from pyro_mm.batch import Batch
from pyro_mm.guides import (
    Concatenation,
    Experts,
    JointEncoder,
    Surrogate,
    barycentre,
    mixture_of_experts,
    mixture_of_products,
    product_of_experts,
    product_of_posteriors,
)
from pyro_mm.handlers import Subsets, given, in_subsets, particles
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Objective, componentwise_elbo, dreg, elbo, iwae, kl, looser, nll
from pyro_mm.weights import Run, log_weights, replay, total_log_weight
from tests.helpers.oracle import gradients

D = torch.float64
NET = networks.MLP((5,), nn.Tanh)
KINDS: list[tuple[tuple[int, ...], likelihoods.Likelihood]] = [
    ((3,), likelihoods.Normal()),
    ((), likelihoods.Categorical(3)),
    ((2, 2), likelihoods.Binomial(4)),
    ((2,), likelihoods.Laplace()),
    ((2,), likelihoods.Bernoulli()),
    ((), likelihoods.NegativeBinomial()),
    ((2,), likelihoods.ContinuousBernoulli()),
]
RULES = [product_of_experts, mixture_of_experts, mixture_of_products, product_of_posteriors, barycentre]


@dataclass
class Case:
    modalities: list[Modality]
    model: Joint
    guide: nn.Module
    x: dict[str, Tensor]
    mask: Tensor
    dim: int
    k: int
    groups: list[list[str]]
    seed: int

    @property
    def names(self) -> list[str]:
        return [m.name for m in self.modalities]

    @property
    def batch(self) -> Batch:
        return Batch(self.x, {m: self.mask[:, i] for i, m in enumerate(self.names)})

    @property
    def pair(self) -> nn.ModuleList:
        return nn.ModuleList([self.model, self.guide])

    def objective(self, name: str) -> Objective:
        first, last, groups = self.names[0], self.names[-1], Subsets(self.groups)
        return OBJECTIVES[name](self.model, self.guide, self.k, first, last, groups)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "weighted": lambda p, q, k, first, last, groups: elbo(p, q, beta=0.5, weights={first: 3.0}),
    "closed": lambda p, q, k, first, last, groups: elbo(p, q, analytic_kl=True),
    "particles": lambda p, q, k, first, last, groups: elbo(p, q, particles=k),
    "landed": lambda p, q, k, first, last, groups: elbo(p, q, stl=True),
    "parts": lambda p, q, k, first, last, groups: componentwise_elbo(p, q),
    "nll": lambda p, q, k, first, last, groups: nll(p, q),
    "iwae": lambda p, q, k, first, last, groups: iwae(p, q, k),
    "dreg": lambda p, q, k, first, last, groups: dreg(p, q, k, beta=0.7),
    "looser": lambda p, q, k, first, last, groups: looser(p, q, k),
    "looser dreg": lambda p, q, k, first, last, groups: looser(p, q, k, doubly=True),
    "kl": lambda p, q, k, first, last, groups: kl(q, given(q, first)) + 2 * kl(q, given(q, last)),
    "cross": lambda p, q, k, first, last, groups: elbo(given(p, last), given(q, first)),
    "subsets": lambda p, q, k, first, last, groups: elbo(in_subsets(p, groups), in_subsets(q, groups)),
    "subsets iwae": lambda p, q, k, first, last, groups: iwae(in_subsets(p, groups), in_subsets(q, groups), k),
}
NAMED = st.sampled_from(list(OBJECTIVES))


def datum(kind: likelihoods.Likelihood, shape: tuple[int, ...], n: int) -> Tensor:
    raw = torch.randn(n, *kind.raw_shape(shape), dtype=D)
    learnt = {name: v.double() for name, v in kind.learnt(shape).items()}
    return kind(raw, shape, **learnt).sample()


@st.composite
def cases(draw: Callable) -> Case:
    """1 to 4 modalities of any kind, 1 to 6 rows missing any of them, any guide."""
    kinds = draw(st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=4))
    n, dim, k = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)), min_size=n, max_size=n))
    which, seed = draw(st.integers(0, len(RULES) + 1)), draw(st.integers(0, 10_000))
    members = st.lists(st.sampled_from([f"m{i}" for i in range(len(kinds))]), unique=True)
    groups = draw(st.lists(members, min_size=1, max_size=3))
    torch.manual_seed(seed)
    modalities = [Modality(f"m{i}", KINDS[j][0], KINDS[j][1], NET) for i, j in enumerate(kinds)]
    x = {m.name: datum(m.likelihood, m.shape, n) for m in modalities}
    guide: nn.Module
    if which < len(RULES):
        guide = Experts(encoders(modalities, dim), RULES[which])
    else:
        guide = JointEncoder(Concatenation(modalities, dim, 4), dim)
        guide = Surrogate(guide, encoders(modalities, dim)) if which > len(RULES) else guide
    model = Joint(decoders(modalities, dim), dim).double()
    return Case(modalities, model, guide.double(), x, torch.tensor(mask), dim, k, groups, seed)


def seeded(case: Case, objective: Objective, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    pyro.set_rng_seed(case.seed)
    loss = objective(batch)
    return loss.detach(), gradients(loss, case.pair) if loss.requires_grad else {}


def weight(
    case: Case, batch: Batch, z: Tensor, model: nn.Module | None = None, guide: nn.Module | None = None
) -> Tensor:
    """log p(x, z) - log q(z | x) at given z."""
    sites = replay(model or case.model, batch, {"z": z}), replay(guide or case.guide, batch, {"z": z})
    return total_log_weight(Run(*sites))


def latents(case: Case, *lead: int) -> Tensor:
    return torch.randn(*lead, len(case.batch), case.dim, dtype=D, generator=torch.Generator().manual_seed(case.seed))


@settings(max_examples=100)
@fuzz(cases(), NAMED)
def test_values_under_a_mask_change_nothing_bit_for_bit(case, name):
    """NaN, infinities and 1e30 given to the constructor; and finite extremes that are only hidden later."""
    clean, dirty, hidden = case.batch, {}, {}
    for i, m in enumerate(case.names):
        v = clean.x[m]
        seen = case.mask[:, i].view(-1, *[1] * (v.dim() - 1))
        floats = v.is_floating_point()
        junk = torch.tensor([torch.nan, torch.inf, 1e30, -1e30], dtype=D).repeat(2)[: len(v)] if floats else None
        dirty[m] = torch.where(seen, v, junk.view_as(seen)) if floats else torch.where(seen, v, 2)
        real = isinstance(case.modalities[i].likelihood, likelihoods.Normal)
        hidden[m] = torch.where(seen, v, 1e30) if real else torch.where(seen, v, torch.ones_like(v))
    objective = case.objective(name)
    value, found = seeded(case, objective, clean)
    for other in (Batch(dirty, clean.mask), Batch._view(hidden, clean.mask)):
        again, also = seeded(case, objective, other)
        assert torch.equal(value, again)
        assert all(torch.equal(found[n], also[n]) for n in found)


@settings(max_examples=150)
@fuzz(cases(), NAMED)
def test_losses_and_gradients_are_finite(case, name):
    value, found = seeded(case, case.objective(name), case.batch)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in found.values())


@settings(max_examples=100)
@fuzz(cases(), NAMED)
def test_rows_with_nothing_present_add_exactly_nothing(case, name):
    """Alone they have loss 0 and gradient 0, and they change no weight of their neighbours."""
    n = len(case.batch)
    empty = Batch(case.x, {m: torch.zeros(n, dtype=torch.bool) for m in case.names})
    value, found = seeded(case, case.objective(name), empty)
    assert value.item() == 0.0
    assert all((g == 0).all() for g in found.values())
    assert torch.equal(log_weights(case.model, case.guide, empty, case.k), torch.zeros(case.k, n, dtype=D))
    z = latents(case)
    alone = weight(case, case.batch, z)
    both = Batch.collate([case.batch, empty])
    assert (weight(case, both, torch.cat([z, z]))[:, n:] == 0).all()
    torch.testing.assert_close(weight(case, both, torch.cat([z, z]))[:, :n], alone, rtol=1e-11, atol=1e-11)


@settings(max_examples=60)
@fuzz(cases())
def test_permuting_rows_permutes_weights(case):
    z = latents(case)
    here = weight(case, case.batch, z)
    order = torch.randperm(len(case.batch))
    there = weight(case, case.batch[order], z[order])
    torch.testing.assert_close(there, here[:, order], rtol=1e-11, atol=1e-11)
    for i in range(len(case.batch)):
        torch.testing.assert_close(
            weight(case, case.batch[i], z[i : i + 1]), here[:, i : i + 1], rtol=1e-11, atol=1e-11
        )


@settings(max_examples=60)
@fuzz(cases())
def test_permuting_modalities_changes_no_weight(case):
    """In the batch always; in model and guide for guides made of experts."""
    z = latents(case)
    here = weight(case, case.batch, z)
    names = case.names[::-1]
    turned = Batch({m: case.batch.x[m] for m in names}, {m: case.batch.mask[m] for m in names})
    assert torch.equal(weight(case, turned, z), here)
    model = Joint({m: case.model.decoders[m] for m in names}, case.dim).double()
    guide = case.guide
    if isinstance(guide, Experts):
        guide = Experts({m: guide.encoders[m] for m in names}, guide.fuse)
    torch.testing.assert_close(weight(case, turned, z, model, guide), here, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@fuzz(cases())
def test_particles_and_subsets_are_scored_one_by_one(case):
    s = len(case.groups)
    z = latents(case, case.k, s)
    pair = [particles(in_subsets(p, case.groups), case.k) for p in (case.model, case.guide)]
    together = weight(case, case.batch, z, *pair).reshape(case.k, s, -1)
    for i, group in enumerate(case.groups):
        view = case.batch.only(*group)
        for j in range(case.k):
            torch.testing.assert_close(together[j, i], weight(case, view, z[j, i])[0], rtol=1e-10, atol=1e-10)


@settings(max_examples=60)
@fuzz(cases(), NAMED)
def test_an_objective_leaves_its_batch_alone(case, name):
    batch = case.batch
    before = {m: (v.clone(), batch.mask[m].clone()) for m, v in batch.x.items()}
    case.objective(name)(batch)
    assert list(batch.x) == list(batch.mask) == list(before)
    for m, (x, mask) in before.items():
        assert torch.equal(batch.x[m], x)
        assert torch.equal(batch.mask[m], mask)
    assert batch.hidden == frozenset()
