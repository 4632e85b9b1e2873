"""The traps of docs/traps.md, one test each: what goes wrong silently elsewhere raises here, or is harmless.

Each test also shows that the trap is real, so that a release of Pyro that mends it is noticed.
"""

from __future__ import annotations

import copy
from functools import partial
from math import log

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.importance import vectorized_importance_weights
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.guides import mixture_of_experts
from pyro_mm.handlers import Impute, Scale, frozen, given, masked, particles
from pyro_mm.objectives import dreg, elbo, iwae, kl, looser
from pyro_mm.objectives.multisample import doubly_reparameterised
from pyro_mm.recipe import Recipe
from pyro_mm.weights import log_weights, run
from tests.helpers import objectives
from tests.helpers.noise import WithNoise
from tests.helpers.oracle import LG, ExactGuide, MeanField, assert_same_gradients, gradients, z_scores
from tests.helpers.programs import BottomUp, Layers, PerRowMixture, Private, PrivateGuide

D = torch.float64
Normal = torch.distributions.Normal
pair = partial(objectives.pair, seed=6)


def test_trap_1_stock_svi_on_plain_modules_trains_nothing():
    """Trap 1: `pyro.infer.SVI` on plain modules trains nothing, silently; `svi` trains every parameter."""
    stock = pytest.importorskip("pyro_mm.training.stock")
    lg, model, guide = pair()
    batch = lg.data(10)
    before = copy.deepcopy({n: p for m in (model, guide) for n, p in m.named_parameters()})
    optim = pyro.optim.SGD({"lr": 1e-3})
    with pyro.get_param_store().scope():
        SVI(model, guide, optim, Trace_ELBO()).step(batch)  # no error, no movement
    assert all(torch.equal(p, before[n]) for m in (model, guide) for n, p in m.named_parameters())
    assert len(stock.stock_trains_nothing(model, guide, batch)) == len(before)
    pyro.set_rng_seed(1)
    loss = elbo(model, guide)(batch) * 10
    truth = gradients(loss, nn.ModuleList([model, guide]))
    pyro.set_rng_seed(1)
    trained = stock.svi(model, guide, optim, Trace_ELBO(max_plate_nesting=1))
    assert trained.step(batch) == pytest.approx(loss.item())
    for (n, p), g in zip(nn.ModuleList([model, guide]).named_parameters(), truth.values(), strict=True):
        torch.testing.assert_close(p.detach(), before[n.split(".", 1)[1]].detach() - 1e-3 * g, rtol=1e-9, atol=1e-12)


def test_trap_2_closed_form_divergence_in_a_bottom_up_guide():
    """Trap 2: `TraceMeanField_ELBO` on a bottom-up guide is far too high, with only a warning; `elbo` raises."""
    model, guide, batch = Layers(), BottomUp(), Batch({"x": torch.randn(2000, dtype=D)})
    with torch.no_grad():
        true = elbo(model, guide, particles=20)(batch).item()
        with pytest.warns(UserWarning, match="mean field"):
            stock = TraceMeanField_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, batch).item() / 2000
    assert stock > true + 0.1
    for objective in (elbo(model, guide, analytic_kl=True), elbo(model, guide, analytic_kl=True, particles=3)):
        with pytest.raises(ValueError, match="analytic KL is not valid at site 'z'"):
            objective(batch)


def test_trap_3_renyi_elbo():
    """Trap 3: `RenyiELBO` cannot be differentiated, mixes data when one site stands outside the plate, and has N / B
    inside its exponential under subsampling.
    """
    lg, model, guide = pair()
    batch = lg.data(6)
    with pytest.raises(TypeError, match=r"RenyiELBO has no differentiable_loss: use iwae\(\)"):
        elbo(model, guide, estimator=RenyiELBO(num_particles=5))

    class Outside(nn.Module):
        def forward(self, batch: Batch) -> None:
            pyro.sample("theta", dist.Normal(torch.zeros((), dtype=D), 1.0))
            model(batch)

    class OutsideGuide(nn.Module):
        def forward(self, batch: Batch) -> None:
            pyro.sample("theta", dist.Normal(torch.zeros((), dtype=D), 1.0))
            guide(batch)

    for objective in (iwae, dreg):
        with pytest.raises(ValueError, match="'theta' is outside the plate 'data'"):
            objective(Outside(), OutsideGuide(), 5)(batch)

    class Subsampled(nn.Module):
        """The exact pair on a plate that claims ten times as many data."""

        def __init__(self, observe: bool) -> None:
            super().__init__()
            self.observe = observe

        def forward(self, batch: Batch) -> None:
            mean, covariance = lg.posterior(batch)
            with pyro.plate("data", 60, dim=-1, subsample=torch.arange(6)):
                if not self.observe:
                    pyro.sample("z", dist.MultivariateNormal(mean, covariance))
                    return
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
                for m in lg.dims:
                    pyro.sample(m, dist.Normal(z @ lg.w[m].T + lg.b[m], lg.s[m]).to_event(1), obs=batch.x[m])

    truth = -lg.log_marginal(batch).mean()
    programs = Subsampled(True), Subsampled(False)
    for objective in (iwae(*programs, 5), dreg(*programs, 5), elbo(*programs), elbo(*programs, particles=3)):
        torch.testing.assert_close(objective(batch), truth, rtol=0, atol=1e-12)
    stock = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert stock.loss(*programs, batch) / 6 == pytest.approx(10 * truth.item())


class Indexed(nn.Module):
    """Three experts that agree, one of them picked by an index that is a site of its own."""

    def __init__(self, guide: MeanField, infer: dict) -> None:
        super().__init__()
        self.guide, self.infer = guide, infer

    def forward(self, batch: Batch) -> None:
        loc, scale = self.guide.moments(batch)
        with pyro.plate("data", len(batch), dim=-1):
            index = pyro.sample("index", dist.Categorical(torch.ones(3, dtype=D)), infer=self.infer)
            shift = torch.zeros(3, dtype=D)[index].unsqueeze(-1)
            pyro.sample("z", dist.Normal(loc + shift, scale).to_event(1))


@pytest.mark.parametrize("infer", [{}, {"is_auxiliary": True}, {"enumerate": "parallel"}], ids=str)
@pytest.mark.filterwarnings("ignore:Found .*vars in guide but not model")
def test_trap_4_an_expert_index_as_a_guide_site(infer):
    """Trap 4: an enumerated or auxiliary expert index over-states the bound by N log M, silently; here it raises."""
    lg = LG()
    model, guide, batch = lg.model(), MeanField(lg), lg.data(400)
    indexed = Indexed(guide, infer)
    stock = (TraceEnum_ELBO if infer.get("enumerate") else Trace_ELBO)(max_plate_nesting=1)
    for objective in (elbo(model, indexed), elbo(model, indexed, estimator=stock), iwae(model, indexed, 4),
                      dreg(model, indexed, 4), elbo(model, indexed, analytic_kl=True)):  # fmt: skip
        with pytest.raises(ValueError, match=r"guide site 'index' is not in the model.*Score a mixture by its density"):
            objective(batch)
    claimed = -stock.differentiable_loss(model, indexed, batch).item() / 400
    with torch.no_grad():
        bound = torch.stack([-elbo(model, guide)(batch) for _ in range(20)])
        mixed = torch.stack([-elbo(model, Agreeing(guide))(batch) for _ in range(20)])
    error = 5 * bound.std().item()
    assert claimed == pytest.approx(bound.mean().item() + log(3), abs=error)
    assert mixed.mean().item() == pytest.approx(bound.mean().item(), abs=error)
    assert claimed > lg.log_marginal(batch).mean().item() + 0.5  # a "lower bound" above the truth
    assert error < 0.3


class Agreeing(Indexed):
    """The same mixture, scored by its density."""

    def __init__(self, guide: MeanField) -> None:
        super().__init__(guide, {})

    def forward(self, batch: Batch) -> None:
        loc, scale = (v.expand(len(batch), 2).unsqueeze(-2).expand(-1, 3, -1) for v in self.guide.moments(batch))
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", mixture_of_experts(loc, scale, torch.ones(len(batch), 3, dtype=torch.bool)))


def test_trap_5_obs_mask_makes_latents_the_guide_lacks():
    """Trap 5: `obs_mask=` makes hidden latents, whose density stock ELBOs keep; here they cancel."""
    lg = LG()
    batch = lg.data(10, missing=True)

    class ObsMask(nn.Module):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
                for m in lg.dims:
                    px = dist.Normal(z @ lg.w[m].T + lg.b[m], lg.s[m]).to_event(1)
                    pyro.sample(m, px, obs=batch.x[m], obs_mask=batch.mask[m])

    model, guide = ObsMask(), ExactGuide(lg)
    truth = lg.log_marginal(batch)
    torch.testing.assert_close(log_weights(model, guide, batch, 4), truth.expand(4, 10), rtol=0, atol=1e-12)
    torch.testing.assert_close(elbo(model, guide)(batch), -truth.mean(), rtol=0, atol=1e-12)
    with torch.no_grad(), pytest.warns(UserWarning, match="unobserved"):
        stock = Trace_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, batch) / 10
    assert stock.item() > -truth.mean().item() + 1  # several nats of a hidden latent's own density


def test_trap_6_replaying_a_hidden_private_latent_leaks():
    """Trap 6: plain replay hands the model a private latent drawn from the hidden modality; `Impute` does not."""
    lg, _, shared = pair()
    model, guide = Private(lg), PrivateGuide(lg, shared)
    batch = lg.data(5)
    other = Batch(batch.x | {"b": batch.x["b"] + 3.0}).only("a", "c")
    view = batch.only("a", "c")

    def drawn(batch: Batch, leak: bool) -> torch.Tensor:
        pyro.set_rng_seed(1)
        seen = run(guide, batch)
        values = {n: (s.value, None if leak else s.mask) for n, s in seen.items()}
        with Impute(values), torch.no_grad():
            return run(poutine.uncondition(model), batch)["b"].fn.mean

    assert torch.equal(drawn(view, leak=False), drawn(other, leak=False))
    assert (drawn(view, leak=True) - drawn(other, leak=True)).abs().max().item() > 0.1


def test_trap_7_nan_under_a_mask_poisons_gradients():
    """Trap 7: the loss stays finite and the gradient does not; a `Batch` never holds NaN."""
    lg, model, guide = pair()
    clean = lg.data(5, missing=True)
    dirty = {m: torch.where(clean.mask[m].unsqueeze(-1), v, torch.nan) for m, v in clean.x.items()}
    raw = Batch._view(dirty, clean.mask)  # past the constructor
    loss = elbo(model, guide)(raw)
    assert torch.isfinite(loss)
    assert any(torch.isnan(g).any() for g in gradients(loss, nn.ModuleList([model, guide])).values())
    for batch in (Batch(dirty, clean.mask), Batch.of(dirty, dtype=D)):
        found = gradients(elbo(model, guide)(batch), nn.ModuleList([model, guide]))
        assert all(torch.isfinite(g).all() for g in found.values())


def test_trap_8_beta_in_the_model_alone_is_another_objective():
    """Trap 8: beta must weigh log p(z) and log q(z) alike; `beta=` scales both programs."""
    lg, model, guide = pair()
    batch, noise = lg.data(5), torch.randn(5, 2, dtype=D)
    quiet = WithNoise(guide, z=noise)
    objective = elbo(model, quiet, beta=0.2)
    value = objective(batch)
    report = objective.report()
    q = guide.posterior(batch)
    z = q.base_dist.loc + q.base_dist.scale * noise
    log_q, log_p = q.log_prob(z).mean(), Normal(0.0, 1.0).log_prob(z).sum(-1).mean()
    recon = sum(report[f"elbo/{m}"] for m in lg.dims)
    assert value.item() == pytest.approx((0.2 * (log_q - log_p)).item() - recon)
    alone = elbo(Scale(0.2)(model), quiet)(batch)
    assert alone.item() == pytest.approx((log_q - 0.2 * log_p).item() - recon)
    assert abs(alone.item() - value.item()) > 0.1


def test_trap_9_pyros_weights_sum_the_data():
    """Trap 9: `vectorized_importance_weights` sums the data plate away; ours are per datum and add up to Pyro's."""
    lg, model, guide = pair()
    batch = lg.data(4, missing=True)
    with torch.no_grad():
        pyro.set_rng_seed(2)
        theirs, _, _ = vectorized_importance_weights(model, guide, batch, num_samples=50, max_plate_nesting=2)
        pyro.set_rng_seed(2)
        ours = log_weights(model, guide, batch, 50)
    assert theirs.shape == (50,)
    assert ours.shape == (50, 4)
    torch.testing.assert_close(ours.sum(-1), theirs)


class Target(nn.Module):
    """z ~ N(0.2, 0.6^2): a density to be approached, without data."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.full((1,), 0.2, dtype=D), 0.6).to_event(1))


def expected_gradients(loc: torch.Tensor, scale: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """d/d loc_j of -E log (w_1 + w_2) / 2 for two draws from two experts, and what DReG expects; by quadrature.

    `systematic`: one draw from each expert; `independent`: both from the mixture.
    """
    loc = loc.clone().requires_grad_()
    z = torch.linspace(-8, 8, 1601, dtype=D)
    step = z[1] - z[0]
    q = Normal(loc.unsqueeze(-1), scale.unsqueeze(-1)).log_prob(z).exp()
    mix = q.mean(0)
    log_w = Normal(0.2, 0.6).log_prob(z) - mix.log()
    both = torch.logaddexp(log_w.unsqueeze(1), log_w) - log(2)
    slope = (-(z - 0.2) / 0.36 + (q * (z - loc.unsqueeze(-1)) / scale.unsqueeze(-1) ** 2).mean(0) / mix).detach()
    squared = (log_w.unsqueeze(1) - log_w).sigmoid().detach() ** 2
    out = {}
    for kind, pairs in {"systematic": (q[0], q[1]), "independent": (mix, mix)}.items():
        bound = -(pairs[0].unsqueeze(1) * pairs[1] * both).sum() * step**2
        (exact,) = torch.autograd.grad(bound, loc, retain_graph=True)
        others = (q[1], q[0]) if kind == "systematic" else (mix, mix)
        path = [-(q[j].unsqueeze(1) * others[j] * squared * slope.unsqueeze(1)).sum() * step**2 for j in (0, 1)]
        out[kind] = {"bound": exact, "dreg": torch.stack(path).detach()}
    return out


def test_trap_10_dreg_with_systematic_components_is_biased():
    """Trap 10: the identity behind DReG needs independent draws; `dreg` takes them whatever the caller's setting."""
    rows, k = 20_000, 2
    loc, scale = torch.tensor([-0.3, 0.8], dtype=D), torch.tensor([0.5, 0.9], dtype=D)
    exact = expected_gradients(loc, scale)
    torch.testing.assert_close(exact["independent"]["dreg"], exact["independent"]["bound"], rtol=1e-6, atol=1e-6)
    bias = exact["systematic"]["dreg"] / exact["systematic"]["bound"] - 1
    assert bias.abs().max().item() > 0.1
    guide = PerRowMixture(loc.unsqueeze(-1), scale.log().unsqueeze(-1), rows)
    batch, model = Batch({"x": torch.zeros(rows)}), Target()

    def systematic(batch: Batch) -> torch.Tensor:
        return -doubly_reparameterised(*(particles(p, k) for p in (model, guide, frozen(guide))), batch).mean()

    for loss, truth in (
        (systematic, exact["systematic"]["dreg"]),
        (iwae(model, guide, k), exact["systematic"]["bound"]),
        (dreg(model, guide, k), exact["independent"]["bound"]),
    ):
        found = gradients(rows * loss(batch), guide)["loc"].squeeze(-1)
        assert z_scores(found, truth).abs().max().item() < 4


def test_trap_11_conditioned_latents_are_flagged_as_observed():
    """Trap 11: a handler that goes by the flag would temper them as data; `Scale` goes by name."""
    lg, model, _ = pair()
    batch, z = lg.data(3), torch.randn(3, 2, dtype=D)
    fixed = poutine.condition(model, data={"z": z})
    weights = {m: 0.5 for m in lg.dims}
    sites = run(Scale(0.1, weights)(fixed), batch)
    assert sites["z"].observed
    torch.testing.assert_close(sites["z"].log_prob(), Normal(0.0, 1.0).log_prob(z).sum(-1))
    torch.testing.assert_close(sites["a"].log_prob(), 0.5 * sites["a"].log_prob(scaled=False))
    with pytest.raises(ValueError, match="'z' is a latent of the guide but observed in the model"):
        elbo(fixed, ExactGuide(lg))(batch)


def test_trap_12_an_objectives_state_repeats_shared_modules():
    """Trap 12: a checkpoint holds the model and the guide, each once, and brings back the same loss bit for bit."""
    lg, model, guide = pair()
    objective = elbo(model, guide) + sum(kl(guide, given(guide, m)) for m in lg.dims)
    own = len(model.state_dict()) + len(guide.state_dict())
    assert len(objective.state_dict()) > 2 * own
    assert len(list(objective.parameters())) == own
    recipe = Recipe("pair", model, guide, objective)
    saved = copy.deepcopy({n: m.state_dict() for n, m in recipe.modules.items()})
    assert sum(len(s) for s in saved.values()) == own
    _, model2, guide2 = pair()
    for p in [*model2.parameters(), *guide2.parameters()]:
        nn.init.zeros_(p)
    for name, module in {"model": model2, "guide": guide2}.items():
        module.load_state_dict(saved[name])
    again = elbo(model2, guide2) + sum(kl(guide2, given(guide2, m)) for m in lg.dims)
    batch, found = lg.data(5, missing=True), []
    for loss in (objective, again):
        pyro.set_rng_seed(3)
        found.append(loss(batch))
    assert torch.equal(*found)


def test_trap_13_bounds_hold_in_expectation_only():
    """Trap 13: for single data the lower end is often above the truth, so only means are compared, with their error."""
    lg = LG()
    batch, guide = lg.data(2000), MeanField(lg, spread=1.3)
    with torch.no_grad():
        lower = log_weights(lg.model(), guide, batch, 4).logsumexp(0) - log(4)
    gap = lg.log_marginal(batch) - lower
    assert (gap < 0).double().mean().item() > 0.2
    assert gap.mean().item() > 3 * gap.std().item() / 2000**0.5


def test_all_missing_rows_and_masked_programs_are_no_trap():
    """What every remedy relies on: masking both programs takes a row out of every objective, gradient included."""
    lg, model, guide = pair(mixture_of_experts)
    batch = lg.data(6)
    keep = torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.bool)
    programs = nn.ModuleList([model, guide])
    for make in (elbo, lambda p, q: iwae(p, q, 3), lambda p, q: looser(p, q, 3, lg.dims)):
        found = []
        for data, mask in (
            (batch, keep),
            (Batch({m: torch.where(keep[:, None], v, -v) for m, v in batch.x.items()}), keep),
        ):
            pyro.set_rng_seed(4)
            loss = make(Masked(model, mask), Masked(guide, mask))(data)
            found.append((loss.detach(), gradients(loss, programs)))
        assert torch.equal(found[0][0], found[1][0])
        assert_same_gradients(found[0][1], found[1][1], rtol=0, atol=0)


def test_trap_14_a_latent_that_only_the_guide_masks():
    """Trap 14: its prior density stays in stock Pyro's bound; here it cancels, and nothing present is worth 0 nats."""

    class Prior(nn.Module):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                w = pyro.sample("w", dist.Normal(torch.zeros(1, dtype=D), 1.0).to_event(1))
                with poutine.mask(mask=batch.mask["x"]):
                    pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=batch.x["x"])

    class Encoder(nn.Module):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1), poutine.mask(mask=batch.mask["x"]):
                pyro.sample("w", dist.Normal(batch.x["x"] / 2, 0.5**0.5).to_event(1))

    x = torch.randn(2000, 1, dtype=D)
    seen, nothing = Batch({"x": x}), Batch({"x": x}, {"x": torch.zeros(2000, dtype=torch.bool)})
    exact = Normal(0.0, 2**0.5).log_prob(x).mean().item()
    stock = -Trace_ELBO(max_plate_nesting=1).differentiable_loss(Prior(), Encoder(), seen).item() / 2000
    assert stock == pytest.approx(exact, abs=1e-6)  # this guide is the posterior
    stock = -Trace_ELBO(max_plate_nesting=1).differentiable_loss(Prior(), Encoder(), nothing).item() / 2000
    assert stock < -1.0  # it should be log p(nothing) = 0
    assert elbo(Prior(), Encoder())(nothing).item() == 0.0
    assert -elbo(Prior(), Encoder())(seen).item() == pytest.approx(exact, abs=1e-6)
    mixed = Batch({"x": x}, {"x": torch.arange(2000) % 2 == 0})
    halves = torch.where(mixed.mask["x"], Normal(0.0, 2**0.5).log_prob(x).squeeze(-1), torch.zeros((), dtype=D))
    torch.testing.assert_close(log_weights(Prior(), Encoder(), mixed, 3), halves.expand(3, -1), atol=1e-6, rtol=0)


class Masked(nn.Module):
    def __init__(self, program: nn.Module, mask: torch.Tensor) -> None:
        super().__init__()
        self.program, self.mask = program, mask

    def forward(self, batch: Batch) -> None:
        masked(self.program, self.mask)(batch)


def test_config_enumerate_is_not_needed_by_the_estimator_check():
    """Trap 4, the harmless side: an index that the model has as well is enumerated as Pyro does."""

    class Shared(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor(logits, dtype=D))

        @config_enumerate
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                pyro.sample("index", dist.Categorical(logits=self.logits))

    p, q = Shared([0.0, 1.0]), Shared([0.5, -0.5])
    loss = elbo(p, q, estimator=TraceEnum_ELBO(max_plate_nesting=1))(Batch({"x": torch.zeros(4)}))
    a, b = q.logits.log_softmax(-1), p.logits.log_softmax(-1)
    torch.testing.assert_close(loss, (a.exp() * (a - b)).sum())
