"""log p(x_A | x_B) by two estimators, and the plug-in density that is another quantity."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation import (
    Evidence,
    NoLikelihood,
    log_conditional,
    log_conditional_difference,
    log_marginal,
    plug_in,
)
from pyro_mm.guides import Concatenation, JointEncoder
from pyro_mm.models import Conditional
from tests.helpers.estimates import GUIDES, Stretched, guide, hidden, judge, truth
from tests.helpers.pairs import GuideOfPrivate, WithPrivate

LG = truth()
TEST = hidden(LG.sample(200, seed=1))
SPLITS = [("a", ("b", "c")), (("a", "b"), "c"), ("b", "a")]


@pytest.mark.parametrize("kind", GUIDES)
def test_every_guide_gives_the_conditional(kind: str) -> None:
    """Rows that lack A, B or both included."""
    ev = log_conditional(LG.model(), guide(kind, LG), TEST, "a", ("b", "c"), 2000, independent=True, seed=0)
    fine = ev.reliable
    judge(ev.estimate[fine], ev.se[fine], LG.log_conditional(TEST, "a", ("b", "c"))[fine])
    assert ev.unreliable_share < (0.15 if kind == "poe" else 0.08)
    without = ~TEST.mask["a"]
    assert torch.equal(ev.estimate[without], torch.zeros(int(without.sum())).double())
    assert ev.se[without].max() < 1e-7


@pytest.mark.parametrize(("of", "given"), SPLITS)
def test_both_estimators_agree_with_each_other_and_the_truth(of: tuple[str, ...], given: tuple[str, ...]) -> None:
    pair = LG.model(), guide("moe", LG)
    exact = LG.log_conditional(TEST, of, given)
    shared = log_conditional(*pair, TEST, of, given, 1000, independent=True, seed=0)
    apart = log_conditional_difference(*pair, TEST, of, given, 1000, independent=True, seed=0)
    for ev in (shared, apart):
        judge(ev.estimate, ev.se, exact)
    both = (shared.se**2 + apart.se**2).sqrt().clamp(min=1e-9)
    z = (shared.estimate - apart.estimate) / both
    assert (z.abs() < 3).double().mean() > 0.98


def test_reference_figures() -> None:
    """12 given 8 dimensions, mean-field, K = 1000: bias .003 and rmse .100 shared; .010 and .100 by difference."""
    big = truth((12, 8, 5), 4)
    data = big.sample(200, seed=1)
    pair, exact = (big.model(), guide("mean-field", big)), big.log_conditional(data, "a", "b")
    for estimator in (log_conditional, log_conditional_difference):
        error = estimator(*pair, data, "a", "b", 1000, seed=0).estimate - exact
        assert abs(error.mean().item()) < 0.03 and error.square().mean().sqrt().item() < 0.17


def test_the_shared_proposal_is_named() -> None:
    ev = log_conditional(LG.model(), guide("moe", LG), TEST[:3], "a", "b", 20)
    assert ev.quantity == "log p(a | b)"
    assert ev.proposal == "shared: 0.45 guide(a, b) + 0.45 guide(b) + 0.1 prior"


def test_a_chunk_changes_nothing_but_the_draws() -> None:
    """Blocks of 8 rows and 50 particles, the last of either smaller."""
    pair, data = (LG.model(), guide("moe", LG)), TEST[:60]
    for chunk in (None, 400):
        ev = log_conditional(*pair, data, "a", "c", 470, chunk=chunk, seed=1)
        judge(ev.estimate, ev.se, LG.log_conditional(data, "a", "c"), rms=(0.5, 1.3))


def test_plug_in_converges_to_its_own_closed_form() -> None:
    """log E_{q(z|x_B)} p(x_A|z): exact for the true posterior, otherwise away from the conditional for every K."""
    data = LG.sample(200, seed=5)
    conditional = LG.log_conditional(data, "a", "b")
    for q, same in ((LG.exact_guide(), True), (Stretched(LG, 2.0), False), (Stretched(LG, 0.5), False)):
        closed = LG.plug_in(data, "a", q.posterior(data.only("b")))
        ev = plug_in(LG.model(), q, data, "a", "b", 4000, seed=0)
        fine = ev.reliable
        judge(ev.estimate[fine], ev.se[fine], closed[fine], mean=0.03, rms=(0.7, 1.3))
        distance = (closed - conditional).mean().item()
        assert (abs(distance) < 1e-9) if same else (distance < -0.25)
        assert ev.quantity == "log plug-in(a | b)" and ev.proposal == "guide"


class Private(nn.Module):
    """z ~ N(0,1); w_a ~ N(0,1); x_a ~ N(z + w_a, .1): the guide's w_a looks at x_a even where it is hidden."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            with poutine.mask(mask=batch.mask["a"]):
                w = pyro.sample("w_a", dist.Normal(torch.zeros(()).double(), 1.0))
                pyro.sample("a", dist.Normal(z + w, 0.1), obs=batch.x["a"])
            with poutine.mask(mask=batch.mask["b"]):
                pyro.sample("b", dist.Normal(z, 0.5), obs=batch.x["b"])


class GuidePrivate(nn.Module):
    """q(z | x_b) is exact."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            loc, scale = (
                torch.where(batch.mask["b"], 0.8 * batch.x["b"], 0.0),
                torch.where(batch.mask["b"], 0.2**0.5, 1.0),
            )
            z = pyro.sample("z", dist.Normal(loc, scale))
            with poutine.mask(mask=batch.mask["a"]):
                pyro.sample("w_a", dist.Normal(batch.x["a"] - z, 0.1))


def private_data(n: int = 300) -> Batch:
    z, w, e, f = torch.randn(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Batch({"a": z + w + 0.1 * e, "b": z + 0.5 * f})


def test_plug_in_does_not_let_the_guide_see_what_it_predicts() -> None:
    """w_a is drawn from the model where a is hidden: x_a | x_b ~ N(.8 x_b, .2 + 1 + .01), the conditional itself."""
    data = private_data()
    exact = dist.Normal(0.8 * data.x["b"], 1.21**0.5).log_prob(data.x["a"])
    ev = plug_in(Private(), GuidePrivate(), data, "a", "b", 4000, seed=0)
    judge(ev.estimate, ev.se, exact, mean=0.03)


def test_private_latents_share_the_draws_too() -> None:
    """The component that is shown x_b draws w_a from the model; refined by default, as there are two latents."""
    data = private_data()
    exact = dist.Normal(0.8 * data.x["b"], 1.21**0.5).log_prob(data.x["a"])
    plain = log_conditional(Private(), GuidePrivate(), data, "a", "b", 4000, refine=False, independent=True, seed=0)
    assert plain.proposal == "shared: 0.45 guide(a, b) + 0.45 guide(b) + 0.1 prior"
    refined = log_conditional(Private(), GuidePrivate(), data, "a", "b", 4000, independent=True, seed=0)
    assert "Laplace" in refined.proposal
    for ev in (plain, refined):
        fine = ev.reliable
        judge(ev.estimate[fine], ev.se[fine], exact[fine], mean=0.03, rms=(0.7, 1.3))
        assert fine.double().mean() > 0.7


def test_a_latent_that_no_guide_knows_is_listed() -> None:
    model, q = WithPrivate().double(), GuideOfPrivate().double()
    data = Batch({"a": torch.randn(4, 3).double(), "b": torch.randn(4, 2).double()})
    assert log_conditional(model, q, data, "a", "b", 50).prior_sites == ("u",)


def cvae() -> tuple[Conditional, JointEncoder]:
    torch.manual_seed(0)
    a, b, _ = LG.modalities
    model = Conditional(a, (b,), 2).double()
    return model, JointEncoder(Concatenation([a, b], 2, 16), model.prior).double()


def test_a_conditional_model_has_its_conditional_only() -> None:
    """p(a | b) of a linear CVAE: N(W z-part ..., W W' + s^2 I) with the offset that b gives."""
    model, q = cvae()
    layer, data = model.decoder.net[0], LG.sample(100, seed=6)
    offset = layer.bias + model.condition["b"](data.x["b"], data.mask["b"]) @ layer.weight[:, 2:].T
    cov = layer.weight[:, :2] @ layer.weight[:, :2].T + 0.25 * torch.eye(6)
    exact = dist.MultivariateNormal(offset, cov).log_prob(data.x["a"]).detach()
    for estimator in (log_conditional, log_conditional_difference):
        ev = estimator(model, q, data, "a", "b", 10_000, seed=0)
        fine = ev.reliable
        judge(ev.estimate[fine], ev.se[fine], exact[fine], mean=0.05, rms=(0.6, 1.3))
        assert fine.double().mean() > 0.5
    with pytest.raises(NoLikelihood, match=r"not given here: \['b'\]"):
        log_marginal(model, q, data, 10)
    with pytest.raises(NoLikelihood, match=r"generates \['a'\], so it has no density of \['b'\]"):
        log_conditional(model, q, data, "b", "a", 10)


def unnamed(batch: Batch) -> None:
    """A model of a alone, as a function."""
    with pyro.plate("data", len(batch), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        with poutine.mask(mask=batch.mask["a"]):
            pyro.sample("a", dist.Normal(z @ LG.weights["a"].T, 0.5).to_event(1), obs=batch.x["a"])


UNKNOWN = [(e, *names) for e in (log_conditional, log_conditional_difference) for names in (("b", "a"), ("a", "b"))]


@pytest.mark.parametrize(("estimator", "of", "given"), [*UNKNOWN, (plug_in, "b", "a")])
def test_refuses_modalities_that_the_model_does_not_know(
    estimator: Callable[..., Evidence], of: str, given: str
) -> None:
    """Silently, log p(a | b) would be log p(a).  Plug-in may be given what only the guide knows."""
    with pytest.raises(NoLikelihood, match=r"no site \['b'\]"):
        estimator(unnamed, guide("moe", LG), TEST, of, given, 10)


def test_refuses_sets_that_overlap_or_are_unknown_or_empty() -> None:
    pair = LG.model(), guide("moe", LG)
    with pytest.raises(ValueError, match=r"\['a'\] cannot be both"):
        log_conditional(*pair, TEST, ("a", "b"), "a", 10)
    with pytest.raises(ValueError, match=r"unknown modality \['sound'\]; this batch has \['a', 'b', 'c'\]"):
        log_conditional(*pair, TEST, "a", "sound", 10)
    with pytest.raises(ValueError, match="at least one modality in `of` and one in `given`"):
        plug_in(*pair, TEST, "a", (), 10)


def test_bias_and_error_are_those_of_repeats() -> None:
    """-(v_u - v_w) / 2, and sqrt(sum (u_k - w_k)^2), averaged over 6000 copies of one datum."""
    data = LG.sample(1, seed=9)[torch.zeros(6000, dtype=torch.long)]
    ev = log_conditional(LG.model(), Stretched(LG, 2.5), data, "a", "b", 60, independent=True, seed=0)
    error: Tensor = ev.estimate - LG.log_conditional(data, "a", "b")
    mean, se = error.mean().item(), error.std().item() / 6000**0.5
    assert mean < -8 * se, "a bias that can be seen"
    assert mean == pytest.approx(ev.bias.mean().item(), abs=4 * se)
    assert ev.se.square().mean().sqrt().item() == pytest.approx(error.std().item(), rel=0.15)
