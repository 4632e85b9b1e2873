"""NEXUS and its relatives against hand-written losses, the law of the dropout, and what gradients may reach."""

from __future__ import annotations

from itertools import combinations
from math import log, pi

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.nn.functional import cross_entropy

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.guides import kept_sets, perceptual_dropout
from pyro_mm.guides.dropout import dropped
from pyro_mm.links import OptimalLink
from pyro_mm.modality import Modality
from pyro_mm.objectives import mmd
from pyro_mm.objectives.mmd import WIDTHS, discrepancy
from pyro_mm.recipe import Recipe
from pyro_mm.training import fit
from pyro_mm.weights import run

NAMES = ("image", "trajectory", "sound", "label")
MODALITIES = [
    Modality("image", (6,), likelihoods.Normal(0.5**0.5, bounded=True), networks.MLP((8,))),
    Modality("trajectory", (4,), likelihoods.Normal(0.1, bounded=True), networks.MLP((8,))),
    Modality("sound", (5,), likelihoods.Normal(0.5**0.5, bounded=True), networks.MLP((8,))),
    Modality("label", (), likelihoods.Categorical(3), networks.MLP((8,))),
]


def data(n: int = 40, missing: bool = False, seed: int = 0) -> Batch:
    noise = torch.Generator().manual_seed(seed)
    x = {m.name: torch.rand(n, *m.shape, generator=noise) for m in MODALITIES[:3]}
    x["label"] = torch.randint(0, 3, (n,), generator=noise)
    if not missing:
        return Batch(x)
    return Batch(x, {m: torch.rand(n, generator=noise) > 0.3 for m in x})


# The law of forced perceptual dropout.


def test_the_law_of_what_is_kept_is_that_of_the_definition() -> None:
    """Exact enumeration of the recipe: with probability `rate` a uniform number 1..M-1 is dropped, any ones."""
    rate, names = 0.2, NAMES
    law: dict[tuple[str, ...], float] = {names: 1 - rate}
    for n_drop in range(1, 4):
        gone = list(combinations(names, n_drop))
        for lost in gone:
            kept = tuple(m for m in names if m not in lost)
            law[kept] = law.get(kept, 0.0) + rate / 3 / len(gone)
    found = kept_sets(names, rate)
    assert found.keys() == law.keys() and sum(found.values()) == pytest.approx(1.0)
    assert all(found[s] == pytest.approx(p) for s, p in law.items())
    by_size = [sum(p for s, p in found.items() if len(s) == r) for r in (1, 2, 3, 4)]
    assert by_size == pytest.approx([1 / 15, 1 / 15, 1 / 15, 0.8])


@pytest.mark.parametrize("present", [4, 3, 2])
def test_draws_follow_the_law(present: int) -> None:
    """Chi-square over kept sets, for rows that have all modalities and for rows that miss some."""
    torch.manual_seed(0)
    n, rate = 60_000, 0.5
    masks = torch.zeros(4, n, dtype=torch.bool)
    masks[:present] = True
    kept = dropped(masks, rate)
    assert not bool((kept & ~masks).any()) and bool(kept.any(0).all())
    names = NAMES[:present]
    law = kept_sets(names, rate)
    code = (kept[:present] * (2 ** torch.arange(present)).unsqueeze(-1)).sum(0)
    counts = torch.bincount(code, minlength=2**present)
    sets = {sum(2 ** names.index(m) for m in s): p for s, p in law.items()}
    observed = [counts[c].item() for c in sets]
    assert sum(observed) == n
    assert chisquare(observed, [n * p for p in sets.values()]).pvalue > 1e-3


def test_a_single_modality_is_kept_and_evaluation_drops_nothing() -> None:
    torch.manual_seed(0)
    assert bool(dropped(torch.ones(1, 500, dtype=torch.bool), 1.0).all())
    guide = perceptual_dropout(variants.mvae(MODALITIES, 2).guide, 1.0)
    batch = data(missing=True)
    assert guide.eval().view(batch) is batch
    seen = guide.train().view(batch)
    several = torch.stack(list(batch.mask.values())).sum(0) > 1
    fewer = torch.stack(list(seen.mask.values())).sum(0) < torch.stack(list(batch.mask.values())).sum(0)
    assert torch.equal(several, fewer)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        perceptual_dropout(guide, 1.5)


# The published loss.


def nexus() -> Recipe:
    torch.manual_seed(0)
    options = {"codes": {"image": 3, "trajectory": 2, "sound": 4, "label": 2}, "dropout": 0.0, "beta": 0.7}
    return variants.nexus(MODALITIES, 2, **options, width=8, net=networks.MLP((8,)))


def by_hand(recipe: Recipe, batch: Batch, codes: dict[str, Tensor], eps: Tensor) -> Tensor:
    """L = sum_m lambda_m R_m + beta_m KL_m + sum_m gamma_m T_m + beta KL, constants of the densities added."""
    model, guide = recipe.model, recipe.guide
    loss: Tensor | float = 0.0
    for m, beta in {"image": 0.7, "trajectory": 0.7, "sound": 7.0, "label": 0.7}.items():
        q = guide.encoders[m][0](batch.x[m]).base_dist
        z, px = codes[m], model.decoders[m](codes[m])
        loss = loss + beta * 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).sum(-1)
        if m == "label":
            loss = loss + 50.0 * cross_entropy(px.base_dist.logits if hasattr(px, "base_dist") else px.logits,
                                               batch.x[m], reduction="none")  # fmt: skip
        else:
            size, weight = batch.x[m].shape[-1], {"image": 1.0, "trajectory": 50.0, "sound": 1.0}[m]
            loss = loss + weight * (batch.x[m] - px.mean).square().sum(-1) + size / 2 * log(pi / weight)
    kept = {m: v.detach() for m, v in codes.items()}
    sent = torch.stack([guide.top.program.senders[m](kept[m]) for m in NAMES]).mean(0)
    q = guide.top.program.head(sent).base_dist
    z = q.loc + q.scale * eps
    loss = loss + 0.7 * 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).sum(-1)
    for m, gamma in {"image": 1.0, "trajectory": 50.0, "label": 50.0}.items():
        size = kept[m].shape[-1]
        made = model.branches[m][0].net(z)
        loss = loss + gamma * (kept[m] - made).square().sum(-1) + size / 2 * log(pi / gamma)
    made = model.branches["sound"][0].net(z)
    s2 = (kept["sound"] - made).square().mean()
    loss = loss + 0.5 * ((kept["sound"] - made).square() / s2 + s2.log() + log(2 * pi)).sum(-1)
    return loss.mean()


def test_the_loss_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients against the formula written by hand, at the same noise."""
    recipe, batch = nexus(), data()
    noise: list[Tensor] = []
    plain = torch.distributions.Normal.rsample

    def recorded(self: torch.distributions.Normal, shape: torch.Size = torch.Size()) -> Tensor:
        value = plain(self, shape)
        noise.append(((value - self.loc) / self.scale).detach())
        return value

    monkeypatch.setattr(torch.distributions.Normal, "rsample", recorded)
    for module in recipe.modules.values():
        module.double()
    recipe.objective.double()
    batch = batch.to(torch.float64)
    loss = recipe.objective(batch)
    monkeypatch.undo()
    # Order of the terms: moving bottoms (guide, then the model's own draw for rows hidden from the guide, which are
    # none), the top (codes drawn anew, then z), the frozen bottom.
    assert len(noise) == 13
    below = dict(zip(("image", "trajectory", "label", "sound"), (*noise[:6:2], noise[11]), strict=True))
    above, eps = dict(zip(NAMES, noise[6:10], strict=True)), noise[10]
    q = {m: recipe.guide.encoders[m][0](batch.x[m]).base_dist for m in NAMES}
    draws = [{m: q[m].loc + q[m].scale * e[m] for m in NAMES} for e in (below, above)]
    two = by_hand_of_both(recipe, batch, draws, eps)
    torch.testing.assert_close(loss, two)
    ours = torch.autograd.grad(loss, list(recipe.guide.parameters()) + list(recipe.model.parameters()))
    theirs = torch.autograd.grad(two, list(recipe.guide.parameters()) + list(recipe.model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def by_hand_of_both(recipe: Recipe, batch: Batch, draws: list[dict[str, Tensor]], eps: Tensor) -> Tensor:
    """The bottom part at one draw of the codes, the top part at another: their expectations are those of the paper."""
    bottom = by_hand(recipe, batch, draws[0], eps) - top_alone(recipe, batch, draws[0], eps)
    return bottom + top_alone(recipe, batch, draws[1], eps)


def top_alone(recipe: Recipe, batch: Batch, codes: dict[str, Tensor], eps: Tensor) -> Tensor:
    """What `by_hand` adds after the codes were detached."""
    model, guide = recipe.model, recipe.guide
    kept = {m: v.detach() for m, v in codes.items()}
    q = guide.top.program.head(torch.stack([guide.top.program.senders[m](kept[m]) for m in NAMES]).mean(0)).base_dist
    z = q.loc + q.scale * eps
    loss = 0.7 * 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).sum(-1)
    for m in NAMES:
        p = model.branches[m][0]
        made = p.net(z)
        s2 = (kept[m] - made).square().mean() if m == "sound" else p.log_scale.exp() ** 2
        loss = loss + 0.5 * ((kept[m] - made).square() / s2 + torch.as_tensor(s2).log() + log(2 * pi)).sum(-1)
    return loss.mean()


def test_gradients_of_the_top_never_reach_the_bottom() -> None:
    """The published form stops them at the codes; the one-bound form does not."""
    recipe, batch = nexus(), data(missing=True)
    top = [t for t in recipe.objective.terms if t.label == "coded"]
    (term,) = top
    term(batch).backward()
    reached = {n for n, p in recipe.guide.encoders.named_parameters() if p.grad is not None}
    assert reached == set()
    assert all(p.grad is None for p in recipe.model.decoders.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in recipe.model.branches.parameters() if p.requires_grad)
    assert all(p.grad is not None and bool(p.grad.any()) for p in recipe.guide.top.parameters())
    torch.manual_seed(0)
    one = variants.nexus_elbo(MODALITIES, 2, codes=3, width=8, net=networks.MLP((8,)))
    one.objective(batch).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in one.guide.encoders.parameters())


def test_dropped_modalities_are_still_reconstructed() -> None:
    torch.manual_seed(0)
    recipe = variants.nexus_elbo(MODALITIES, 2, codes=3, dropout=1.0, width=8, net=networks.MLP((8,)))
    recipe.objective(data())
    report = recipe.objective.report()
    assert {f"elbo/{m}" for m in NAMES} <= set(report)
    sites = run(recipe.guide.train(), data())
    assert all(sites[f"z_{m}"].mask.all() for m in NAMES)


def test_the_frozen_modality_is_trained_first_and_then_held_still(tmp_path: object) -> None:
    recipe = nexus()
    before = [p.detach().clone() for p in recipe.guide.encoders["sound"].parameters()]
    first, second = recipe.stages
    assert first.name == "sound alone"
    fit(recipe, data(), 1, batch_size=20, progress=False, seed=0)
    after = [p.detach().clone() for p in recipe.guide.encoders["sound"].parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    moving = {id(p) for p in second.moving()}
    assert not moving & {id(p) for p in recipe.guide.encoders["sound"].parameters()}
    assert not moving & {id(p) for p in recipe.model.decoders["sound"].parameters()}
    assert moving >= {id(p) for p in recipe.model.branches["sound"].parameters()}
    assert not moving & {id(p) for p in recipe.model.branches["sound"].buffers()}


# Parts.


def test_the_optimal_scale_is_the_batchs_own_and_outside_training_a_number() -> None:
    torch.manual_seed(0)
    link = OptimalLink(2, 3, networks.MLP((4,)))
    z, value = torch.randn(50, 2), 0.3 * torch.randn(50, 3)
    seen = torch.rand(50) > 0.4
    p = link.fitted(link(z), value, seen)
    error = (value - link(z).base_dist.loc)[seen]
    torch.testing.assert_close(p.base_dist.scale[0, 0], error.square().mean().sqrt())
    torch.testing.assert_close(link.log_scale, error.square().mean().sqrt().log())
    # At the best scale the derivative by it is zero: letting it carry a gradient changes nothing.
    loss = -(p.log_prob(value) * seen).sum()
    fixed = torch.distributions.Normal(link(z).base_dist.loc, p.base_dist.scale.detach())
    other = -(fixed.log_prob(value).sum(-1) * seen).sum()
    for a, b in zip(*(torch.autograd.grad(v, list(link.parameters())) for v in (loss, other)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    link.eval()
    kept = link.log_scale.clone()
    assert link.fitted(link(z), value, seen).base_dist.scale[0, 0] == link.log_scale.exp()
    assert torch.equal(kept, link.log_scale)


def test_mmd_is_zero_for_equal_laws_and_equals_its_definition() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(60, 2, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)

    def k(x: Tensor, y: Tensor) -> float:
        return sum((4 * c / (4 * c + (x - y).square().sum())).item() for c in WIDTHS)

    within = [sum(k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
              for s in (a, b)]  # fmt: skip
    across = sum(k(x, y) for x in a for y in b) / (len(a) * len(b))
    assert discrepancy(a, b).item() == pytest.approx(sum(within) - 2 * across)
    repeats = torch.stack([discrepancy(*torch.randn(2, 80, 2)) for _ in range(200)])
    assert abs(repeats.mean().item()) < 4 * repeats.std().item() / 200**0.5
    assert discrepancy(torch.randn(80, 2) + 2, torch.randn(80, 2)).item() > 10 * repeats.std().item()


def test_mmd_leaves_out_rows_without_data() -> None:
    recipe = variants.mfm(MODALITIES, 2, width=8)
    nothing = data().without(*NAMES)
    assert mmd(recipe.model, recipe.guide)(nothing).item() == 0.0
