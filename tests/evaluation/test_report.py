"""A report's numbers against the linear-Gaussian model's closed forms, written out here."""

from __future__ import annotations

import json
import re
from math import log, pi
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.distributions import Mixture
from pyro_mm.evaluation import NoLikelihood
from pyro_mm.evaluation.report import report
from pyro_mm.guides import Experts, mixture_of_experts, product_of_experts, product_of_posteriors
from pyro_mm.handlers import given, in_subsets
from pyro_mm.models import LearntScale
from pyro_mm.weights import log_weights
from tests.helpers.estimates import Stretched, guide, hidden, truth
from tests.helpers.pairs import GuideOfNested, GuideOfPrivate, Nested, WithPrivate
from tests.helpers.pairs import data as pair_data
from tests.helpers.pairs import pair as pair_of
from tests.helpers.programs import BottomUp, Layers

LG = truth()
TEST = hidden(LG.sample(120, seed=1))
GROUPS = [("a", "b", "c"), ("a",), ("b",), ("c",)]


def kl_to_standard(loc: Tensor, scale: Tensor) -> Tensor:
    """KL(N(loc, scale^2) || N(0, 1)), elementwise."""
    return 0.5 * (scale**2 + loc**2 - 1) - scale.log()


def given_rows(group: tuple[str, ...]) -> Batch:
    """The rows that have any of the group, all else hidden."""
    return TEST[TEST.present(group)].only(*group)


# Latents.


@pytest.mark.parametrize("kind", ["mean-field", "poe", "posteriors", "surrogate"])
def test_kl_per_dimension_is_the_closed_form(kind: str) -> None:
    q = guide(kind, LG)
    found = report(LG.model(), q, TEST, 3, seed=0)
    assert list(found.views) == GROUPS
    for group, view in found.views.items():
        rows = given_rows(group)
        p = q.posterior(rows).base_dist
        each = kl_to_standard(p.loc, p.scale).detach()
        z = view.latents["z"]
        assert z.method == "closed form" and z.rows == view.rows == len(rows)
        torch.testing.assert_close(z.kl, each.mean(0))
        torch.testing.assert_close(z.activity, p.loc.detach().var(0))
        assert z.total == view.kl == pytest.approx(each.sum(-1).mean().item())
        assert z.total_se == pytest.approx(each.sum(-1).std().item() / len(rows) ** 0.5)
        assert z.active.all() and not z.collapsed.any()
    assert found.collapsed == ()


def test_a_full_gaussian_has_its_marginals_and_its_own_kl() -> None:
    found = report(LG.model(), LG.exact_guide(), TEST, 400, seed=0)
    for group, view in found.views.items():
        mean, cov = LG.posterior(given_rows(group))
        z, scale = view.latents["z"], cov.diagonal(dim1=-2, dim2=-1).sqrt()
        assert z.method == "marginals, closed form"
        torch.testing.assert_close(z.kl, kl_to_standard(mean, scale).mean(0))
        total = 0.5 * (scale.square().sum(-1) + mean.square().sum(-1) - 2 - cov.logdet())
        assert abs(z.total - total.mean().item()) < 0.004
    dependent = found.views["c",].latents["z"]
    assert dependent.total > dependent.kl.sum() + 0.05, "dimensions that depend on each other cost more than alone"


@pytest.mark.parametrize("kind", ["moe", "mopoe"])
def test_kl_of_a_mixtures_marginals_is_the_integral(kind: str) -> None:
    data, q = TEST[:12], guide(kind, LG)
    found = report(LG.model(), q, data, 8000, subsets=[("a", "b")], seed=0)
    z = found.views["a", "b"].latents["z"]
    assert z.method == "marginals, sampled"
    mixture = q.posterior(data[data.present(("a", "b"))].only("a", "b"))
    grid = torch.linspace(-14, 14, 8001).double().view(-1, 1, 1, 1)
    each = mixture.family(mixture.loc, mixture.scale).log_prob(grid).exp()  # (grid, N, J, D)
    density = (mixture.log_weights.exp().unsqueeze(-1) * each).sum(-2).detach()
    ratio = density.log() - dist.Normal(0.0, 1.0).log_prob(grid.squeeze(-1))
    exact = (torch.where(density > 0, density * ratio, 0.0).sum(0) * 28 / 8000).mean(0)
    torch.testing.assert_close(z.kl, exact, rtol=0, atol=0.02)
    torch.testing.assert_close(z.activity, mixture.mean.detach().var(0))
    assert z.total > z.kl.max()


def unused(*dims: int, latent: int = 4) -> LinearGaussian:
    """The model with latents that no modality reads: their posterior is the prior."""
    full = truth((6, 5, 4), latent)
    keep = torch.ones(latent).double()
    keep[list(dims)] = 0.0
    return LinearGaussian({m: w * keep for m, w in full.weights.items()}, full.offsets, full.scales)


@pytest.mark.parametrize("kind", ["exact", "mean-field", "poe", "moe"])
def test_a_dimension_that_is_not_used_is_inactive_and_the_rest_are_active(kind: str) -> None:
    lg = unused(1, 3)
    data = hidden(lg.sample(200, seed=3))
    encoders: Any = {m: Scaled(e, 1.0) for m, e in lg.unimodal_posteriors().items()}
    q = Experts(encoders, product_of_posteriors) if kind == "poe" else guide(kind, lg)
    found = report(lg.model(), q, data, 60, seed=0)
    for view in found.views.values():
        z = view.latents["z"]
        assert z.active.tolist() == [True, False, True, False]
        assert z.collapsed.tolist() == [False, True, False, True]
        assert z.kl[[1, 3]].abs().max() < 1e-9 and z.activity[[1, 3]].max() < 1e-9
    assert found.collapsed == () and "COLLAPSE" not in repr(found)
    strict = report(lg.model(), q, data, 60, threshold=1e3, seed=0)
    assert not strict.everything.latents["z"].active.any() and strict.threshold == 1e3


def test_posterior_collapse_is_said_aloud() -> None:
    lg = unused(0, 1, 2, 3)
    found = report(lg.model(), guide("mean-field", lg), lg.sample(50), 5, seed=0)
    assert found.collapsed == ("z",)
    assert "POSTERIOR COLLAPSE: given everything, the prior in every dimension of z" in repr(found)


class Shifted(nn.Module):
    """z ~ N(0, 1) pushed through the identity: a distribution that does not know its mean."""

    def forward(self, batch: Batch) -> None:
        base = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.AffineTransform(0.0, 1.0)]))


def test_noise_of_the_means_makes_no_unit_active() -> None:
    """The average of 20 draws has variance 1/20, five times the threshold, where the posterior mean has none."""
    found = report(LG.model(), Shifted(), LG.sample(2000), 20, seed=0).everything.latents["z"]
    assert found.method == "total only, sampled" and found.kl is None
    assert found.activity.max() < 0.01 and not found.active.any()
    assert abs(found.total) < 1e-12 and found.collapsed.all()


# Terms of the ELBO.


def expected_logp(m: str, loc: Tensor, scale: Tensor, data: Batch) -> Tensor:
    """E log N(x_m; W z + b, s^2 I), z ~ N(loc, diag scale^2)."""
    w, s = LG.weights[m], LG.scales[m]
    away = (data.x[m] - LG.offsets[m] - loc @ w.T).square().sum(-1) + (scale**2 @ w.square().T).sum(-1)
    return -0.5 * away / s**2 - len(w) * (log(s) + 0.5 * log(2 * pi))


def test_terms_are_the_closed_form_expectations() -> None:
    q, runs = Stretched(LG, 1.3, 0.4), 12
    reports = [report(LG.model(), q, TEST, 60, subsets=[("a", "b", "c")], seed=s).everything for s in range(runs)]
    some = TEST[TEST.present()]
    p = q.posterior(some).base_dist
    loc, scale = p.loc.detach(), p.scale.detach()
    kl = kl_to_standard(loc, scale).sum(-1)
    exact = {m: torch.where(some.mask[m], expected_logp(m, loc, scale, some), 0.0) for m in "abc"}
    size = sum(abs(v.sum().item()) for v in exact.values())
    for m, values in exact.items():
        n = int(some.mask[m].sum())
        seen = [r.terms[m].nats for r in reports]
        assert near(seen, values.sum().item() / n)
        term = reports[0].terms[m]
        assert (term.rows, term.elements) == (n, len(LG.weights[m]))
        assert term.per_element == pytest.approx(term.nats / len(LG.weights[m]))
        assert term.share == pytest.approx(abs(values.sum().item()) / size, abs=0.01)
    assert near([r.elbo for r in reports], (sum(exact.values()) - kl).mean().item())
    elements = sum(int(some.mask[m].sum()) * len(LG.weights[m]) for m in "abc")
    bits = -(sum(exact.values()) - kl).sum().item() / elements / log(2)
    assert near([r.bits for r in reports], bits)


def near(repeats: list[float], exact: float) -> bool:
    """Is the mean of repeats within 4 standard errors, and are those small?"""
    values = torch.tensor(repeats).double()
    error = values.std() / len(repeats) ** 0.5
    assert error < 0.02
    return bool((values.mean() - exact).abs() < 4 * error)


def test_grey_levels_add_their_bits() -> None:
    """Per element of those modalities that have them."""
    data = LG.sample(30)
    plain = report(LG.model(), guide("poe", LG), data, 5, seed=0)
    grey = report(LG.model(), guide("poe", LG), data, 5, levels={"a": 256, "b": 4}, seed=0)
    assert grey.everything.bits - plain.everything.bits == pytest.approx((6 * 8 + 5 * 2) / 15)
    assert grey.views["a",].bits - plain.views["a",].bits == pytest.approx(8)
    assert grey.views["c",].bits == plain.views["c",].bits


def test_the_elbo_is_the_mean_log_weight_whatever_the_order_of_latents() -> None:
    """Two layers, drawn bottom-up by the guide: closed forms only where they hold, else draws."""
    torch.manual_seed(1)
    data = Batch({"x": torch.randn(200).double() * 2})
    found = report(Layers(), BottomUp(), data, 500, seed=0).everything
    direct = log_weights(Layers(), BottomUp(), data, 4000).mean().item()
    assert found.elbo == pytest.approx(direct, abs=0.02)
    assert found.latents["z"].method == "sampled" and found.latents["u"].method == "closed form"
    assert found.kl == pytest.approx(found.latents["z"].total + found.latents["u"].total)


def test_training_weights_change_nothing() -> None:
    plain, scaled = (
        report(m, q, TEST, 10, seed=0).summary()
        for m, q in (
            (LG.model(), guide("poe", LG)),
            (poutine.scale(LG.model(), scale=3.0), poutine.scale(guide("poe", LG), scale=0.2)),
        )
    )
    assert plain == scaled


# Gradients.


def pull(m: str, loc: Tensor, data: Batch) -> Tensor:
    """W'(x - b - W z) / s^2 at z = loc, 0 where the modality is missing."""
    w, s = LG.weights[m], LG.scales[m]
    g = (data.x[m] - LG.offsets[m] - loc @ w.T) @ w / s**2
    return torch.where(data.mask[m].unsqueeze(-1), g, 0.0)


@pytest.mark.parametrize(("spread", "k", "tolerance"), [(1e-9, 2, 1e-6), (1.0, 600, 0.03)])
def test_gradients_are_those_written_by_hand(spread: float, k: int, tolerance: float) -> None:
    """The model is linear, so that the expected gradient is that at the mean, whatever the spread."""
    q = Stretched(LG, spread, 0.5)
    some = TEST[TEST.present()]
    loc = q.posterior(some).base_dist.loc.detach()
    found = report(LG.model(), q, TEST, k, seed=0).gradients
    assert found is not None and found.over == ("z",)
    exact = {m: pull(m, loc, some) for m in "abc"}
    for m, g in exact.items():
        assert found.norm[m] == pytest.approx(g[some.mask[m]].square().sum(-1).mean().sqrt().item(), rel=tolerance)
    assert found.kl == pytest.approx(loc.square().sum(-1).mean().sqrt().item(), rel=tolerance)
    for (a, b), cosine in found.cosine.items():
        both = some.mask[a] & some.mask[b]
        x, y = exact[a][both], exact[b][both]
        assert cosine == pytest.approx((x * y).sum().item() / (x.norm() * y.norm()).item(), abs=tolerance)
    assert list(found.cosine) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_few_draws_do_not_lengthen_gradients() -> None:
    """Squared norms are unbiased with 2 draws, where those of the mean gradient are twice too large and more."""
    q, data = Stretched(LG, 1.0, 0.2), LG.sample(300, seed=5)
    loc = q.posterior(data).base_dist.loc.detach()
    exact = pull("a", loc, data).square().sum(-1).mean().item()
    squares = [report(LG.model(), q, data, 2, subsets=["a"], seed=s).gradients.norm["a"] ** 2 for s in range(25)]
    values = torch.tensor(squares).double()
    error = values.std() / 5
    assert (values.mean() - exact).abs() < 4 * error
    w, s = LG.weights["a"], LG.scales["a"]
    noise = ((w.T @ w / s**2).square().sum(0) * q.posterior(data).base_dist.scale.square()).sum(-1).mean().item() / 2
    assert noise > 20 * error, "the bias that would be there"


def test_at_the_optimum_the_modalities_balance_the_kl() -> None:
    """g_a + g_b = g_KL, so that |g_KL|^2 = |g_a|^2 + |g_b|^2 + 2 cos |g_a| |g_b|."""
    lg = truth((6, 5), 2)
    g = report(lg.model(), lg.exact_guide(), lg.sample(400, seed=2), 400, seed=0).gradients
    assert g is not None
    a, b = g.norm["a"], g.norm["b"]
    assert a**2 + b**2 + 2 * g.cosine["a", "b"] * a * b == pytest.approx(g.kl**2, rel=0.1)
    assert g.cosine["a", "b"] < 0 and min(a, b) > 1.5 * g.kl, "they pull against each other, harder than the prior"


# Shares of experts.


class Scaled(nn.Module):
    """An expert with its standard deviations times a factor."""

    def __init__(self, expert: nn.Module, factor: float) -> None:
        super().__init__()
        self.expert, self.factor = expert, factor

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        q = self.expert(x).base_dist
        return dist.Normal(q.loc, q.scale * self.factor).to_event(1)


@pytest.mark.parametrize("rule", [product_of_experts, product_of_posteriors])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_shares_are_those_of_the_precisions(rule: Any, sigma: float) -> None:
    encoders = {m: Scaled(e, f) for (m, e), f in zip(LG.unimodal_posteriors().items(), (1.0, 0.7, 1.1), strict=True)}
    prior = LearntScale(2, dist.Normal).double()
    with torch.no_grad():
        prior.raw[0] = sigma - 1  # softmax of equal entries: scales of 1
    q = Experts(encoders, rule, prior)
    found = report(LG.model(), q, TEST, 2, seed=0).experts
    assert not isinstance(found, str) and list(found) == ["z"]
    shares = found["z"]
    some = TEST[TEST.present()]
    seen = torch.stack([some.mask[m] for m in "abc"], -1).double().unsqueeze(-1)
    own = torch.stack([encoders[m](some.x[m]).base_dist.scale.detach() ** -2 for m in "abc"], -2)
    base = prior().base_dist.scale.detach() ** -2
    if rule is product_of_posteriors:
        own = (own - base).clamp(min=0.0)
    total = base + (seen * own).sum(-2)
    parts = torch.cat([seen * own, base.expand(len(some), 1, 2)], -2) / total.unsqueeze(-2)
    torch.testing.assert_close(shares.stacked, parts.mean(0))
    torch.testing.assert_close(shares.stacked.sum(0), torch.ones(2).double())
    for i, m in enumerate("abc"):
        torch.testing.assert_close(shares.share[i], parts[some.mask[m], i].mean(0))
        assert shares.mean()[m] == pytest.approx(parts[some.mask[m], i].mean().item())
    assert shares.names == ("a", "b", "c", "prior")


def test_a_users_own_product_counts_and_other_rules_do_not() -> None:
    def mine(loc: Tensor, scale: Tensor, mask: Tensor) -> dist.TorchDistribution:
        precision = 1 + torch.where(mask.unsqueeze(-1), scale**-2, 0.0).sum(-2)
        return dist.Normal(torch.zeros_like(precision), precision**-0.5).to_event(1)

    experts = LG.unimodal_posteriors()
    wrapped = Experts(experts, mine)
    own = report(LG.model(), lambda batch: wrapped(batch), TEST, 2, seed=0).experts
    library = report(LG.model(), Experts(experts, product_of_experts), TEST, 2, seed=0).experts
    assert not isinstance(own, str) and not isinstance(library, str)
    torch.testing.assert_close(own["z"].share, library["z"].share)
    mixture = report(LG.model(), Experts(experts, mixture_of_experts), TEST, 2, seed=0).experts
    assert mixture == "not a product of experts: no experts' precisions add up to that of 'z' (Mixture)"
    joint = report(LG.model(), guide("mean-field", LG), TEST, 2, seed=0)
    assert joint.experts == "not a product of experts: the guide has no encoders"
    assert "experts: not a product of experts" in repr(joint)


def test_a_guide_that_is_shown_less_has_fewer_experts() -> None:
    q = guide("poe", LG)
    shown = report(LG.model(), given(q, "a"), LG.sample(20), 2, seed=0).experts
    assert not isinstance(shown, str)
    scale = q.encoders["a"].log_scale.exp().detach()
    torch.testing.assert_close(shown["z"].stacked[0], scale**-2 / (1 + scale**-2))
    assert shown["z"].stacked[1:3].abs().max() == 0 and shown["z"].share[1:3].isnan().all()


# Any pair, any rows.


def test_private_latents_count_in_the_rows_that_have_them() -> None:
    model, q = pair_of(WithPrivate, GuideOfPrivate)
    full = pair_data(60)
    data = Batch(full.x, {"a": torch.arange(60) % 3 > 0, "b": torch.arange(60) % 4 > 0})
    found = report(model, q, data, 10, seed=0)
    w = found.everything.latents["w_a"]
    loc = data.x["a"][data.mask["a"]].mean(-1)
    assert w.rows == 40 and found.everything.rows == int(data.present().sum())
    assert w.total == pytest.approx((loc.square() / 2).mean().item())
    torch.testing.assert_close(w.activity, loc.var().reshape(1))
    total = found.everything.latents["z"].total + w.total * 40 / found.everything.rows
    assert found.everything.kl == pytest.approx(total)
    assert list(found.views["b",].latents) == ["z"], "given b alone there is no w_a"
    assert found.gradients is not None and found.gradients.over == ("z",)


def test_latents_in_a_plate_of_their_own_are_dimensions() -> None:
    model, q = pair_of(Nested, GuideOfNested)
    data = pair_data(40)
    y = report(model, q, data, 10, seed=0).everything.latents["y"]
    assert y.kl is not None
    torch.testing.assert_close(y.kl, kl_to_standard(0.2 * data.x["a"], torch.tensor(0.8).double()).mean(0))
    torch.testing.assert_close(y.activity, (0.2 * data.x["a"]).var(0))


def test_labels_and_plain_functions() -> None:
    logits = torch.tensor([0.3, -0.5, 1.0]).double()

    def model(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(3).double()))
            pyro.sample("x", dist.Normal(c.double(), 1.0), obs=batch.x["x"])

    def q(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("c", dist.Categorical(logits=logits))

    found = report(model, q, Batch({"x": torch.randn(30).double()}), 5, seed=0)
    c, p = found.everything.latents["c"], logits.softmax(-1)
    assert c.total == pytest.approx((p * (3 * p).log()).sum().item())
    assert not c.active.any() and c.activity.isnan().all() and found.gradients is None
    assert "no latent has a gradient" in repr(found) and "-/1" in repr(found)
    assert json.loads(json.dumps(found.summary(), allow_nan=False))["given"]["x"]["latents"]["c"]["activity"] == [None]


@pytest.mark.parametrize("kind", ["poe", "moe"])
def test_rows_and_values_that_are_missing_count_for_nothing(kind: str) -> None:
    pair = LG.model(), guide(kind, LG)
    some = TEST[TEST.present()]
    found = report(*pair, some, 20, seed=0).summary()
    empty = Batch({m: torch.cat([v, v[:9]]) for m, v in some.x.items()}, padded(some.mask))
    changed = Batch._view({m: torch.where(some.mask[m].unsqueeze(-1), v, 1e6) for m, v in some.x.items()}, some.mask)
    for other in (empty, changed):
        again = report(*pair, other, 20, seed=0).summary()
        assert again | {"n": 0} == found | {"n": 0}
    assert report(*pair, empty, 2, seed=0).n == len(some) + 9


def padded(mask: dict[str, Tensor]) -> dict[str, Tensor]:
    return {m: torch.cat([v, torch.zeros(9, dtype=torch.bool)]) for m, v in mask.items()}


@pytest.mark.parametrize("chunk", [6, 50, 1000])
def test_chunks_change_the_draws_only(chunk: int) -> None:
    pair, data = (LG.model(), guide("poe", LG)), TEST[:12]
    whole, cut = (report(*pair, data, 40, chunk=c, seed=0) for c in (None, chunk))
    for group, view in whole.views.items():
        other = cut.views[group]
        torch.testing.assert_close(view.latents["z"].kl, other.latents["z"].kl)
        torch.testing.assert_close(view.latents["z"].activity, other.latents["z"].activity)
        assert view.elbo == pytest.approx(other.elbo, abs=0.5)
    assert whole.experts["z"].mean() == pytest.approx(cut.experts["z"].mean())
    assert whole.gradients.norm == pytest.approx(cut.gradients.norm, rel=0.15)


def test_the_table_and_the_json_hold_the_same_numbers() -> None:
    found = report(LG.model(), guide("poe", LG), TEST, 10, subsets=[("a", "b"), "c"], seed=0)
    assert list(found.views) == [("a", "b", "c"), ("a", "b"), ("c",)]
    made, text = json.loads(json.dumps(found.summary(), allow_nan=False)), repr(found)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    for m, t in made["given"]["a, b, c"]["terms"].items():
        for number in (f"{t['nats']:.3f}", f"{t['share']:.1%}", f"{t['per_element']:.4f}", f"{t['rows']}"):
            assert number in lines[m]
        assert f"{made['gradients']['norm'][m]:.3f}" in lines[m]
        assert f"{m} {made['experts']['z']['mean'][m]:.1%}" in text
    for group, v in made["given"].items():
        (line,) = (x for x in text.splitlines() if re.split("  +", x)[:2] == ["z", group])
        assert f"{v['latents']['z']['kl']:.3f}" in line and "2/2" in line
    assert f"{made['gradients']['cosine']['a, b']:+.2f}" in text
    assert f"N={int(TEST.present().sum())} of {len(TEST)}, K=10" in text


def test_a_seed_gives_the_same_report_and_leaves_everything_alone() -> None:
    model, q = LG.model().train(), guide("moe", LG).train()
    state = torch.get_rng_state()
    first, second = (report(model, q, TEST[:9], 4, seed=3).summary() for _ in range(2))
    assert first == second and torch.equal(state, torch.get_rng_state())
    assert model.training and q.training and all(p.grad is None for p in [*model.parameters(), *q.parameters()])


def outside(batch: Batch) -> None:
    """A latent that all rows share."""
    z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("x", dist.Normal(z, 1.0), obs=batch.x["x"])


def outside_guide(batch: Batch) -> None:
    pyro.sample("z", dist.Normal(torch.zeros(()).double(), 2.0))


class Extra(nn.Module):
    """A site that the model lacks."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", Mixture(torch.zeros(2, 2).double(), torch.ones(2, 2).double(), torch.ones(2).bool()))
            pyro.sample("index", dist.Categorical(logits=torch.zeros(2)))


def test_what_cannot_be_reported_is_refused() -> None:
    model, q = LG.model(), guide("poe", LG)
    with pytest.raises(ValueError, match="at least 2 draws"):
        report(model, q, TEST, 1)
    with pytest.raises(ValueError, match=r"subsets= names \['d'\], but the modalities are \['a', 'b', 'c'\]"):
        report(model, q, TEST, subsets=[("a", "d")])
    with pytest.raises(ValueError, match=r"levels= names \['d'\]"):
        report(model, q, TEST, levels={"d": 2})
    with pytest.raises(ValueError, match=r"no row has any of \['b', 'c'\]"):
        report(model, q, TEST.only("a"), subsets=[("b", "c")])
    with pytest.raises(ValueError, match="no row of the batch has any modality"):
        report(model, q, TEST[~TEST.present()])
    with pytest.raises(ValueError, match="one view of the data"):
        report(model, q, TEST.subsets([("a",), ("b",)]))
    with pytest.raises(ValueError, match="guide site 'index' is not in the model"):
        report(model, Extra(), TEST)
    with pytest.raises(ValueError, match=r"site 'z' stands in the plate 'subset'.*instead of in_subsets"):
        report(in_subsets(model, [("a",), ("b",)]), in_subsets(q, [("a",), ("b",)]), TEST)
    with pytest.raises(ValueError, match="site 'z' is outside the plate 'data'"):
        report(outside, outside_guide, Batch({"x": torch.zeros(3).double()}))

    class NoDensity(nn.Module):
        no_likelihood = "its decoder is a GAN"

    with pytest.raises(NoLikelihood, match="GAN"):
        report(NoDensity(), q, TEST)
