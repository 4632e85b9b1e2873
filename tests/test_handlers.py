"""Verbs on programs, and the effect handlers behind them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, JointEncoder, mixture_of_products, product_of_experts
from pyro_mm.guides.joint_encoder import Concatenation
from pyro_mm.handlers import (
    Impute,
    InSubsets,
    RandomSubsets,
    Scale,
    Subsets,
    frozen,
    given,
    in_rows,
    in_subsets,
    masked,
    particles,
    rows_of,
)
from pyro_mm.modality import encoders
from pyro_mm.objectives import elbo, iwae, kl
from pyro_mm.weights import replay, run
from tests.helpers.noise import WithNoise
from tests.helpers.oracle import LG, assert_same_gradients, gradients

D = torch.float64
GROUPS = [("a", "b", "c"), ("a",), ("b", "c"), ("c",)]


def pair(fuse=product_of_experts) -> tuple[LG, nn.Module, nn.Module]:
    lg = LG()
    torch.manual_seed(3)
    return lg, lg.model(), Experts(encoders(lg.modalities(), 2), fuse).double()


def both(model: nn.Module, guide: nn.Module) -> nn.Module:
    return nn.ModuleList([model, guide])


def test_given_shows_these_modalities_and_no_others():
    lg, model, guide = pair()
    batch = lg.data(5, missing=True)
    z = torch.randn(5, 2, dtype=D)
    for program in (model, guide):
        shown = replay(given(program, "a", "c"), batch, {"z": z})
        truth = replay(program, batch.only("a", "c"), {"z": z})
        for name, site in truth.items():
            assert torch.equal(shown[name].log_prob(), site.log_prob())
    assert given(guide, "a", "c").names == ("a", "c")
    assert dict(given(guide, "a").named_parameters()).keys() == {f"program.{n}" for n, _ in guide.named_parameters()}
    with pytest.raises(ValueError, match="at least one modality"):
        given(guide)


def test_in_rows_counts_the_rows_that_are_asked_for():
    """The term is the sum over those rows by themselves; the program still sees everything of them."""
    lg, model, guide = pair()
    batch = lg.data(15, missing=True)
    a, b = batch.mask["a"], batch.mask["b"]
    for present, absent, rows in (("ab", "", a & b), ("a", "b", a & ~b), ("", "b", ~b)):
        term = elbo(in_rows(model, present, absent), guide)
        torch.manual_seed(4)
        loss = term(batch)
        torch.manual_seed(4)
        z = run(guide, batch)["z"].value
        p, q = (replay(program, batch, {"z": z}) for program in (model, guide))
        each = sum(site.log_prob() for site in p.values()) - q["z"].log_prob()
        torch.testing.assert_close(loss, -(each * rows).sum() / len(batch))
    kept = rows_of(in_rows(given(model, "a"), "", "c"), given(guide, "b"))(batch)
    assert torch.equal(kept, a & b & ~batch.mask["c"])
    assert in_rows(model, "ab").names == model.names
    with pytest.raises(ValueError, match="present or absent"):
        in_rows(model)
    with pytest.raises(ValueError, match=r"in_rows names \['d'\], which the batch lacks"):
        elbo(in_rows(model, "d"), guide)(batch)


def test_particles_are_independent_draws_in_one_plate():
    lg, _, guide = pair()
    batch = lg.data(3)
    site = run(particles(guide, 4000), batch)["z"]
    assert site.value.shape == (4000, 1, 3, 2)
    q = guide.posterior(batch)
    error = q.base_dist.scale / 4000**0.5
    assert ((site.value.mean((0, 1)) - q.base_dist.loc).abs() < 4.5 * error).all()
    torch.testing.assert_close(site.value.std(0)[0], q.base_dist.scale, rtol=0.08, atol=0)
    neighbour = torch.corrcoef(torch.stack([site.value[::2, 0, 0, 0], site.value[1::2, 0, 0, 0]]))[0, 1]
    assert neighbour.abs().item() < 4.5 / 2000**0.5


@pytest.mark.parametrize("analytic", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_a_plate_of_subsets_is_the_sum_of_separate_elbos(missing, analytic):
    lg, model, guide = pair()
    batch = lg.data(7, missing=missing)
    noise = torch.randn(len(GROUPS), 7, 2, dtype=D)
    together = elbo(in_subsets(model, GROUPS), in_subsets(WithNoise(guide, z=noise), GROUPS), analytic_kl=analytic)
    value = together(batch)
    parts = [
        elbo(given(model, *g), given(WithNoise(guide, z=noise[s]), *g), analytic_kl=analytic)(batch)
        for s, g in enumerate(GROUPS)
    ]
    torch.testing.assert_close(value, sum(parts), rtol=1e-12, atol=1e-12)
    programs = both(model, guide)
    assert_same_gradients(gradients(value, programs), gradients(sum(parts), programs))


def test_a_plate_of_subsets_for_a_joint_encoder_and_particles():
    lg, model, _ = pair()
    batch = lg.data(4, missing=True)
    guide = JointEncoder(Concatenation(lg.modalities(), 2, 8), 2).double()
    noise = torch.randn(3, len(GROUPS), 4, 2, dtype=D)
    value = elbo(in_subsets(model, GROUPS), in_subsets(WithNoise(guide, z=noise), GROUPS), particles=3)(batch)
    parts = [
        elbo(given(model, *g), given(WithNoise(guide, z=noise[k, s]), *g))(batch) / 3
        for k in range(3)
        for s, g in enumerate(GROUPS)
    ]
    torch.testing.assert_close(value, sum(parts), rtol=1e-12, atol=1e-12)


def test_a_plate_of_subsets_inside_importance_weighting_is_a_sum_too():
    lg, model, guide = pair()
    batch = lg.data(4, missing=True)
    noise = torch.randn(6, len(GROUPS), 4, 2, dtype=D)
    value = iwae(in_subsets(model, GROUPS), in_subsets(WithNoise(guide, z=noise), GROUPS), 6)(batch)
    parts = [
        iwae(given(model, *g), given(WithNoise(guide, z=noise[:, s : s + 1]), *g), 6)(batch)
        for s, g in enumerate(GROUPS)
    ]
    torch.testing.assert_close(value, sum(parts), rtol=1e-12, atol=1e-12)


def test_subsets_must_be_subsets():
    lg, model, _ = pair()
    with pytest.raises(ValueError, match=r"subsets name \['q'\], which the batch lacks; it has \['a', 'b', 'c'\]"):
        run(in_subsets(model, [("a", "q")]), lg.data(2))
    with pytest.raises(ValueError, match="at least one subset"):
        in_subsets(model, [])
    with pytest.raises(ValueError, match="k must be at least 1"):
        RandomSubsets("ab", 0)


def test_frozen_keeps_values_and_stops_the_gradients_of_parameters_only():
    lg, _, guide = pair(mixture_of_products)
    batch = lg.data(5, missing=True)
    z = torch.randn(5, 2, dtype=D, requires_grad=True)
    live, fixed = (replay(g, batch, {"z": z})["z"].log_prob().sum() for g in (guide, frozen(guide)))
    assert torch.equal(live, fixed)
    assert fixed.requires_grad
    torch.testing.assert_close(*[torch.autograd.grad(v, z, retain_graph=True)[0] for v in (live, fixed)])
    assert all((g == 0).all() for g in gradients(fixed, guide).values())
    assert all(p.requires_grad for p in guide.parameters())
    assert any((g != 0).any() for g in gradients(live, guide).values())


def test_frozen_holds_shared_parameters_and_nested_verbs():
    lg, _, guide = pair()
    encoder = guide.encoders["a"]
    batch = Batch({"a": lg.data(4).x["a"], "b": lg.data(4, seed=2).x["a"]})
    shared = Experts({"a": encoder, "b": encoder}, product_of_experts)
    site = run(given(frozen(particles(shared, 2)), "a", "b"), batch)["z"]
    assert not site.value.requires_grad
    assert not site.log_prob().requires_grad


def test_frozen_refuses_a_plain_function():
    _, _, guide = pair()
    with pytest.raises(TypeError, match=r"frozen\(\) cannot find the parameters of .*, a plain function"):
        frozen(lambda batch: guide(batch))(LG().data(2))


@pytest.mark.parametrize(("m", "sizes"), [(5, (2, 3, 4)), (3, (2,)), (2, (1, 2)), (1, (1,))])
def test_random_subsets_have_a_uniform_size_and_are_uniform_given_their_size(m, sizes):
    names = "abcde"[:m]
    n = 3000
    drawn = RandomSubsets(names, 1)
    counts: Counter[tuple[str, ...]] = Counter()
    for _ in range(n):
        drawn.redraw()
        counts[drawn.groups[0]] += 1
    groups = [g for size in sizes for g in combinations(names, size)]
    assert set(counts) <= set(groups)
    expected = {g: n / len(sizes) / len(list(combinations(names, len(g)))) for g in groups}
    chi = sum((counts[g] - e) ** 2 / e for g, e in expected.items())
    freedom = len(groups) - 1
    assert chi <= freedom + 3.5 * (2 * freedom) ** 0.5


def test_random_subsets_come_after_the_fixed_ones():
    drawn = RandomSubsets("abcd", 3, always=["abcd", ("a",)])
    assert drawn.groups[:2] == (("a", "b", "c", "d"), ("a",))
    assert len(drawn) == 5
    assert all(2 <= len(set(g)) <= 3 and list(g) == sorted(g) for g in drawn.groups[2:])


class Watch(nn.Module):
    """Notes the masks it is called with."""

    def __init__(self, program: nn.Module, seen: list[Tensor]) -> None:
        super().__init__()
        self.program, self.seen = program, seen

    def forward(self, batch: Batch) -> None:
        self.seen.append(torch.stack(list(batch.mask.values())))
        self.program(batch)


def test_one_draw_of_subsets_per_call_of_the_objective_for_model_and_guide():
    lg = LG({"a": 2, "b": 2, "c": 2, "d": 2})
    guide = Experts(encoders(lg.modalities(), 2), product_of_experts).double()
    subsets = RandomSubsets("abcd", 2)
    one, other = [], []
    model = in_subsets(Watch(lg.model(), one), subsets)
    guides = in_subsets(Watch(guide, other), subsets)
    objective = elbo(model, guides) + 0.5 * elbo(model, guides)
    batch = lg.data(1)
    drawn = set()
    for _ in range(20):
        one.clear()
        other.clear()
        objective(batch)
        assert len(one) == len(other) == 2  # twice: two terms
        assert all(torch.equal(m, one[0]) for m in one + other)
        drawn.add(subsets.groups)
    assert len(drawn) > 5  # anew at every call


def test_scale_weighs_latents_and_observations_by_name():
    lg, model, guide = pair()
    batch = lg.data(4, missing=True)
    z = torch.randn(4, 2, dtype=D)
    plain, weighed = (replay(p, batch, {"z": z}) for p in (model, Scale(0.3, {"b": 7.0})(model)))
    for name, factor in {"z": 0.3, "a": 1.0, "b": 7.0, "c": 1.0}.items():
        torch.testing.assert_close(weighed[name].log_prob(), factor * plain[name].log_prob())
        assert torch.equal(weighed[name].log_prob(scaled=False), plain[name].log_prob())
    inside = replay(Scale(torch.tensor(0.5))(poutine.scale(guide, scale=0.3)), batch, {"z": z})["z"]
    torch.testing.assert_close(inside.log_prob(), 0.15 * replay(guide, batch, {"z": z})["z"].log_prob())


def test_impute_takes_the_guides_value_where_its_mask_is_true():
    class Model(nn.Module):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                for m in batch.x:
                    pyro.sample(f"w_{m}", dist.Normal(torch.full((2,), 9.0), 0.1).to_event(1))
                pyro.sample("u", dist.Normal(9.0, 0.1))

    batch = Batch({"a": torch.zeros(3), "b": torch.zeros(3)})
    mask = torch.tensor([True, False, True])
    private = torch.arange(24.0).reshape(4, 1, 3, 2) - 100
    values = {"w_a": (private, mask), "w_b": (private, None), "u": (torch.full((4, 1, 3), -5.0), False)}
    with Impute(values):
        sites = run(particles(Model(), 4), batch)
    assert torch.equal(sites["w_a"].value[..., mask, :], private[..., mask, :])
    assert (sites["w_a"].value[..., ~mask, :] > 8).all()
    assert torch.equal(sites["w_b"].value, private)
    assert (sites["u"].value > 8).all()


def test_what_impute_sets_is_what_the_program_goes_on_with():
    class Chain(nn.Module):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1e-6))

    with Impute({"z": (torch.tensor([5.0, 6.0]), torch.tensor([True, True]))}):
        sites = run(Chain(), Batch({"a": torch.zeros(2)}))
    torch.testing.assert_close(sites["x"].value, torch.tensor([5.0, 6.0]), atol=1e-4, rtol=0)


def shown_by_hand(batch: Batch, *groups: tuple[str, ...]) -> Tensor:
    return torch.stack([torch.stack([batch.mask[m] for m in g]).any(0) for g in groups]).all(0)


def test_rows_that_a_term_counts():
    lg, model, guide = pair()
    batch = lg.data(10, missing=True)
    assert rows_of(model, guide)(batch) is None
    for pairs, groups in (
        ((model, given(guide, "a")), [("a",)]),
        ((given(model, "b", "c"), given(guide, "a")), [("b", "c"), ("a",)]),
        ((model, frozen(given(guide, "a"))), [("a",)]),
        ((model, WithNoise(given(guide, "a"))), [("a",)]),
        ((model, given(given(guide, "a", "b"), "b", "c")), [("b", "c"), ("b",)]),
        ((particles(given(model, "b"), 2), given(frozen(guide), "a", "c")), [("b",), ("a", "c")]),
    ):
        assert torch.equal(rows_of(*pairs)(batch), shown_by_hand(batch, *groups))
    rows = rows_of(in_subsets(model, GROUPS), in_subsets(given(guide, "a", "b"), GROUPS))(batch)
    truth = [shown_by_hand(batch.only(*g), ("a", "b")) for g in GROUPS]
    assert torch.equal(rows, torch.stack(truth))


def test_masking_a_program_scores_the_other_rows_nowhere():
    lg, model, _ = pair()
    batch, keep = lg.data(4), torch.tensor([True, False, True, False])
    z = torch.randn(4, 2, dtype=D)
    plain, less = replay(model, batch, {"z": z}), replay(masked(model, keep), batch, {"z": z})
    for name in plain:
        assert torch.equal(less[name].log_prob(), torch.where(keep, plain[name].log_prob(), 0.0))
    assert masked(model, None) is model


def test_verbs_of_verbs_register_parameters_once_and_pass_names_on():
    _, model, guide = pair()
    subsets = Subsets(GROUPS)
    nested = in_subsets(particles(frozen(guide), 2), subsets)
    assert isinstance(nested, InSubsets)
    assert nested.names == ("a", "b", "c")
    assert {id(p) for p in nested.parameters()} == {id(p) for p in guide.parameters()}
    objective = elbo(in_subsets(model, subsets), nested) + kl(guide, given(guide, "a"))
    assert len(list(objective.parameters())) == len(list(model.parameters())) + len(list(guide.parameters()))
    assert repr(subsets) == "Subsets({a, b, c}, {a}, {b, c}, {c})"
