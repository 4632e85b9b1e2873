"""A report's terms and gradients against closed forms of the linear-Gaussian model."""

from __future__ import annotations

from math import log, pi

import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.report import report
from pyro_mm.weights import log_weights
from tests.helpers.estimates import Stretched, guide, truth
from tests.helpers.programs import BottomUp, Layers
from tests.helpers.reports import LG, TEST, kl_to_standard


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
