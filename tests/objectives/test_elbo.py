"""The ELBO between two programs: against stock Pyro, against code written by hand, against closed forms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mm import likelihoods, networks, objectives
from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, Surrogate, mixture_of_experts, mixture_of_products, product_of_experts
from pyro_mm.guides.joint_encoder import Concatenation, JointEncoder
from pyro_mm.handlers import given, in_subsets
from pyro_mm.modality import Modality, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Warmup, componentwise_elbo, elbo, kl, nll
from tests.helpers.noise import WithNoise
from tests.helpers.oracle import LG, ExactGuide, MeanField, assert_same_gradients, gradients, z_scores
from tests.helpers.programs import BottomUp, Layers, PerRow, Private, PrivateGuide

D = torch.float64
Normal = torch.distributions.Normal


def pair(fuse=product_of_experts, dims: dict[str, int] | None = None) -> tuple[LG, nn.Module, Experts]:
    lg = LG(dims or {"a": 4, "b": 3, "c": 2})
    torch.manual_seed(4)
    return lg, lg.model(), Experts(encoders(lg.modalities(), 2), fuse).double()


def private() -> tuple[LG, nn.Module, nn.Module]:
    lg, _, shared = pair()
    return lg, Private(lg), PrivateGuide(lg, shared)


def compare(ours, theirs, model: nn.Module, guide: nn.Module, batch: Batch) -> None:
    """Value and every gradient agree, both with the same random numbers."""
    programs, found = nn.ModuleList([model, guide]), []
    for loss in (ours, lambda b: theirs.differentiable_loss(model, guide, b) / len(b)):
        pyro.set_rng_seed(7)
        value = loss(batch)
        found.append((value.detach(), gradients(value, programs)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    assert_same_gradients(found[0][1], found[1][1])


@pytest.mark.parametrize("particles", [1, 7])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("make", [pair, lambda: pair(mixture_of_products), private], ids=["poe", "mopoe", "private"])
def test_value_and_gradient_are_those_of_pyros_trace_elbo(make, missing, particles):
    lg, model, guide = make()
    stock = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=2)
    compare(elbo(model, guide, particles=particles), stock, model, guide, lg.data(10, missing=missing))


@pytest.mark.parametrize("particles", [1, 7])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("make", [pair, private], ids=["poe", "private"])
def test_value_and_gradient_are_those_of_pyros_mean_field_elbo(make, missing, particles):
    lg, model, guide = make()
    stock = TraceMeanField_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=2)
    ours = elbo(model, guide, particles=particles, analytic_kl=True)
    compare(ours, stock, model, guide, lg.data(10, missing=missing))


def test_two_layers_with_a_closed_form_where_it_is_valid():
    """A top-down guide: both terms in closed form; against Pyro's."""

    class TopDown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor([0.4, -0.3, 0.5, 0.7, -0.5], dtype=D))

        def forward(self, batch: Batch) -> None:
            x = batch.x["x"]
            with pyro.plate("data", len(batch), dim=-1):
                u = pyro.sample("u", dist.Normal(self.a[0] * x, self.a[1].exp()))
                pyro.sample("z", dist.Normal(self.a[2] * u + self.a[3] * x, self.a[4].exp()))

    batch, model, guide = Batch({"x": torch.randn(6, dtype=D)}), Layers(), TopDown()
    compare(elbo(model, guide, analytic_kl=True), TraceMeanField_ELBO(max_plate_nesting=1), model, guide, batch)
    compare(elbo(model, guide), Trace_ELBO(max_plate_nesting=1), model, guide, batch)


def by_hand(
    lg: LG,
    model: Joint,
    guide: Experts,
    batch: Batch,
    z: Tensor,
    beta: float = 1.0,
    weights: dict[str, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over rows of (reconstruction, sampled KL) of a product of experts, no library code but the networks."""
    precision, moment = torch.ones(len(batch), 2, dtype=D), torch.zeros(len(batch), 2, dtype=D)
    for m, encoder in guide.encoders.items():
        out = encoder.net(batch.x[m])
        tau = (nn.functional.softplus(out[:, 2:]) + 1e-4) ** -2 * batch.mask[m].unsqueeze(-1)
        precision, moment = precision + tau, moment + tau * out[:, :2]
    loc, scale = moment / precision, precision**-0.5
    z = loc + scale * z
    recon = torch.zeros((), dtype=D)
    for m, decoder in model.decoders.items():
        logp = Normal(decoder.net(z.reshape(-1, 2)).reshape(*z.shape[:-1], -1), lg.s[m]).log_prob(batch.x[m]).sum(-1)
        recon = recon + (weights or {}).get(m, 1.0) * (logp * batch.mask[m]).sum()
    sampled = (Normal(loc, scale).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum()
    return recon, beta * sampled


@pytest.mark.parametrize("particles", [1, 7])
def test_weights_and_beta_against_a_vae_written_by_hand(particles):
    lg, model, guide = pair()
    batch = lg.data(10, missing=True)
    noise = torch.randn(particles, 1, 10, 2, dtype=D)
    eps = noise if particles > 1 else noise[0, 0]
    weights = {"a": 3.0, "c": 0.25}
    loss = elbo(model, WithNoise(guide, z=eps), beta=0.3, weights=weights, particles=particles)(batch)
    recon, divergence = by_hand(lg, model, guide, batch, noise[:, 0], 0.3, weights)
    truth = (divergence - recon) / particles / 10
    programs = nn.ModuleList([model, guide])
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(loss, programs), gradients(truth, programs))


def test_schedules_weigh_as_the_numbers_they_stand_for():
    lg, model, guide = pair()
    batch = lg.data(5, missing=True)
    quiet = WithNoise(guide, z=torch.randn(5, 2, dtype=D))
    beta, weight = Warmup(4), Warmup(2, 0.0, 6.0)
    moving = elbo(model, quiet, beta=beta, weights={"b": weight})
    for epochs, b, w in ((0.0, 0.0, 0.0), (1.0, 0.25, 3.0), (3.0, 0.75, 6.0), (9.0, 1.0, 6.0)):
        moving.set_progress(epochs)
        truth = elbo(model, quiet, beta=b, weights={"b": w})(batch)
        torch.testing.assert_close(moving(batch), truth, rtol=1e-12, atol=1e-12)


def test_the_reconstruction_term_alone():
    lg, model, guide = pair()
    batch, noise = lg.data(10, missing=True), torch.randn(10, 2, dtype=D)
    quiet = WithNoise(guide, z=noise)
    loss = nll(model, quiet, weights={"b": 2.0})
    recon, _ = by_hand(lg, model, guide, batch, noise, weights={"b": 2.0})
    torch.testing.assert_close(loss(batch), -recon / 10, rtol=1e-12, atol=1e-12)
    # ELBO = -nll - KL, term by term
    whole = elbo(model, quiet, analytic_kl=True)
    q = guide.posterior(batch).base_dist
    divergence = kl_divergence(q, Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))).sum() / 10
    torch.testing.assert_close(whole(batch), nll(model, quiet)(batch) + divergence, rtol=1e-12, atol=1e-12)
    assert whole.report()["elbo/kl"] == pytest.approx(divergence.item())
    assert loss.report()["reconstruction"] == pytest.approx(recon.item() / 10)


def test_the_report_adds_up():
    lg, model, guide = pair()
    objective = elbo(model, guide, particles=3) - kl(guide, given(guide, "a"))
    value = objective(lg.data(10, missing=True))
    report = objective.report()
    assert set(report) == {"elbo", "elbo/a", "elbo/b", "elbo/c", "elbo/kl", "kl"}
    parts = report["elbo/a"] + report["elbo/b"] + report["elbo/c"] - report["elbo/kl"]
    assert report["elbo"] == pytest.approx(parts)
    assert value.item() == pytest.approx(-report["elbo"] - report["kl"])


def test_the_exact_posterior_makes_the_bound_tight():
    lg = LG()
    batch = lg.data(10, missing=True)
    truth = -lg.log_marginal(batch).mean()
    torch.testing.assert_close(elbo(lg.model(), ExactGuide(lg))(batch), truth, rtol=0, atol=1e-12)
    mean, covariance = lg.posterior(batch)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=D), torch.eye(2, dtype=D))
    divergence = kl_divergence(torch.distributions.MultivariateNormal(mean, covariance), prior).mean()
    closed = elbo(lg.model(), ExactGuide(lg), particles=4000)
    closed(batch)
    assert closed.report()["elbo/kl"] == pytest.approx(divergence.item(), rel=0.02)


def test_a_mean_field_bound_is_below_by_its_divergence_from_the_posterior():
    """log p - ELBO = KL(q || posterior), in closed form."""
    lg = LG()
    batch, guide = lg.data(8), MeanField(lg, spread=0.8)
    mean, covariance = lg.posterior(batch)
    loc, scale = guide.moments(batch)
    q = torch.distributions.MultivariateNormal(loc, torch.diag_embed(scale.expand(8, 2) ** 2))
    gap = kl_divergence(q, torch.distributions.MultivariateNormal(mean, covariance)).mean()
    draws = torch.stack([-elbo(lg.model(), guide, particles=500)(batch).detach() for _ in range(30)])
    z = z_scores(draws, (lg.log_marginal(batch).mean() - gap).item())
    assert z.abs().item() < 4
    assert gap.item() > 5 * draws.std().item() / 30**0.5


@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_sticking_the_landing_is_unbiased_and_quieter_near_the_optimum(spread):
    lg = LG({"a": 4, "b": 3})
    rows = 20_000
    one = lg.data(1)
    batch = one[[0] * rows]
    mean, covariance = lg.posterior(one)
    log_scale = (covariance.inverse().diagonal(dim1=-1, dim2=-2) ** -0.5 * spread).log()
    guide = PerRow(mean, log_scale, rows)
    plain, landed, closed = (
        gradients(rows * elbo(lg.model(), guide, **how)(batch), guide)
        for how in ({}, {"stl": True}, {"analytic_kl": True})
    )
    # E: mean-field optimum for the posterior's precision P: grad_loc = P (loc - mean), grad_log_scale = P_dd s^2 - 1
    truth = {"loc": torch.zeros(2, dtype=D), "log_scale": torch.full((2,), spread**2 - 1, dtype=D)}
    for name in truth:
        for found in (plain, landed, closed):
            assert z_scores(found[name], truth[name]).abs().max().item() < 4.2
    if spread == 1.0:
        off = (covariance.inverse()[0, 0, 1].abs() / covariance.inverse()[0].diagonal().min()).item()
        assert off > 0.05  # so that the landing has some variance left
        for name in truth:
            assert (landed[name].std(0) < 0.6 * plain[name].std(0)).all()


def test_sticking_the_landing_at_the_exact_posterior_has_no_noise():
    lg = LG()
    batch = lg.data(6)
    mean, covariance = lg.posterior(batch)
    model = LG.model(lg)

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(mean)
            self.tril = nn.Parameter(torch.linalg.cholesky(covariance))

        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                pyro.sample("z", dist.MultivariateNormal(self.loc, scale_tril=self.tril))

    guide = Exact()
    landed = gradients(elbo(model, guide, stl=True, particles=5)(batch), guide)
    plain = gradients(elbo(model, guide, particles=5)(batch), guide)
    assert max(g.abs().max().item() for g in landed.values()) < 1e-12
    assert max(g.abs().max().item() for g in plain.values()) > 1e-2


def test_sticking_the_landing_for_a_mixture_and_for_two_layers():
    """Same expected gradient as the plain estimator, for guides whose log q is not a single Normal's."""
    lg, model, guide = pair(mixture_of_experts, {"a": 2, "b": 2})
    batch = lg.data(1)[[0] * 400]
    for p, q, data in (
        (model, guide, batch),
        (Layers(), BottomUp(), Batch({"x": torch.full((400,), 0.7, dtype=D)})),
    ):
        found = []
        for how in ({}, {"stl": True}):
            term = elbo(p, q, particles=10, **how)
            draws = [torch.cat([g.flatten() for g in gradients(term(data), q).values()]) for _ in range(25)]
            found.append(torch.stack(draws))
        difference = found[0].mean(0) - found[1].mean(0)
        error = ((found[0].var(0) + found[1].var(0)) / 25).sqrt()
        live = error > 1e-10
        assert live.any()
        z = difference[live] / error[live]
        assert z.abs().max().item() < 5
        assert z.square().mean().item() < 2


def test_a_closed_form_keeps_its_gradient_beside_sticking_the_landing():
    """With both asked for, sites with a closed form use it; a frozen closed form would train no guide."""
    lg, model, guide = pair()
    batch, noise = lg.data(10, missing=True), torch.randn(10, 2, dtype=D)
    quiet = WithNoise(guide, z=noise)
    both = elbo(model, quiet, analytic_kl=True, stl=True)(batch)
    closed = elbo(model, quiet, analytic_kl=True)(batch)
    torch.testing.assert_close(both, closed)
    assert_same_gradients(gradients(both, guide), gradients(closed, guide))


def test_divergence_of_two_guides_is_the_closed_form():
    lg, _, guide = pair()
    batch = lg.data(10, missing=True)
    other = Surrogate(JointEncoder(Concatenation(lg.modalities(), 2, 8), 2), encoders(lg.modalities(), 2)).double()
    q, p = guide.posterior(batch).base_dist, other.posterior(batch).base_dist
    truth = kl_divergence(q, p).sum() / 10
    found = kl(guide, other)
    torch.testing.assert_close(found(batch), truth, rtol=1e-12, atol=1e-12)
    programs = nn.ModuleList([guide, other])
    assert_same_gradients(gradients(found(batch), programs), gradients(truth, programs))
    assert found.report()["kl"] == pytest.approx(truth.item())
    draws = torch.stack([kl(guide, other, analytic=False, particles=100)(batch).detach() for _ in range(40)])
    assert z_scores(draws, truth.item()).abs().item() < 4
    assert kl(guide, guide)(batch).item() == 0.0


def test_divergence_from_one_modality_counts_rows_that_have_it():
    lg, _, guide = pair()
    batch = lg.data(10, missing=True)
    q, p = guide.posterior(batch).base_dist, guide.posterior(batch.only("a")).base_dist
    truth = (kl_divergence(q, p).sum(-1) * batch.mask["a"]).sum() / 10
    torch.testing.assert_close(kl(guide, given(guide, "a"))(batch), truth, rtol=1e-12, atol=1e-12)


def test_divergence_of_discrete_guides_is_exact_and_trains():
    """A single discrete site: nothing depends on the draw, so its closed form is the whole gradient."""

    class Guide(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor(logits, dtype=D))

        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                pyro.sample("z", dist.Categorical(logits=self.logits.expand(len(batch), -1)))

    q, p = Guide([0.1, 1.0, -0.5]), Guide([0.0, 0.0, 1.0])
    log_q, log_p = q.logits.log_softmax(-1), p.logits.log_softmax(-1)
    truth = (log_q.exp() * (log_q - log_p)).sum()
    found = kl(q, p)(Batch({"x": torch.zeros(4)}))
    programs = nn.ModuleList([q, p])
    torch.testing.assert_close(found, truth)
    assert_same_gradients(gradients(found, programs), gradients(truth, programs))


def test_mixture_divergences_are_sampled_and_unbiased():
    lg, _, guide = pair(mixture_of_experts, {"a": 2, "b": 2})
    other = Experts(encoders(lg.modalities(), 2), product_of_experts).double()
    batch = lg.data(3)
    grid = torch.linspace(-7, 7, 241, dtype=D)
    points = torch.cartesian_prod(grid, grid).unsqueeze(1)
    with torch.no_grad():
        q, p = (g.posterior(batch).expand((len(points), 3)).log_prob(points.expand(-1, 3, 2)) for g in (guide, other))
        truth = ((q.exp() * (q - p)).sum(0) * (grid[1] - grid[0]) ** 2).mean().item()
        draws = torch.stack([kl(guide, other, particles=200)(batch) for _ in range(40)])
    assert z_scores(draws, truth).abs().item() < 4


@pytest.mark.parametrize("fuse", [mixture_of_products, mixture_of_experts])
@pytest.mark.parametrize("missing", [False, True])
def test_componentwise_divergence_by_hand_and_below_the_mixtures_own_bound(fuse, missing):
    lg, model, guide = pair(fuse)
    batch = lg.data(5, missing=missing)
    published = componentwise_elbo(model, guide, beta=0.5)
    published(batch)
    q = guide.posterior(batch)
    truth = torch.zeros((), dtype=D)
    for n in range(5):
        present = q.weights[n] > 0
        each = kl_divergence(Normal(q.loc[n, present], q.scale[n, present]), Normal(torch.zeros(1, dtype=D), 1.0))
        truth = truth + each.sum(-1).mean()
    assert published.report()["elbo/kl"] == pytest.approx(0.5 * truth.item() / 5)
    # The gap is the information of the index about z: between 0 and the log of the number of components.
    own = elbo(model, guide, particles=200)
    draws = []
    for _ in range(20):
        own(batch)
        draws.append(own.report()["elbo/kl"])
    tight, error = torch.tensor(draws).mean().item(), 4 * torch.tensor(draws).std().item() / 20**0.5
    most = (q.weights > 0).sum(-1).double().log().mean().item()
    assert -error < truth.item() / 5 - tight - 0.01 < most + error


def test_componentwise_with_an_ordinary_guide_is_the_closed_form():
    lg, model, guide = pair()
    batch, quiet = lg.data(5), WithNoise(guide, z=torch.randn(5, 2, dtype=D))
    torch.testing.assert_close(componentwise_elbo(model, quiet)(batch), elbo(model, quiet, analytic_kl=True)(batch))


def test_cross_modal_terms_count_only_rows_with_a_source_and_a_target():
    """Loss and gradient are those of hand-written code on the rows that have both, over the size of the whole batch."""
    lg, model, guide = pair()
    batch = lg.data(20, missing=True)
    noise = torch.randn(20, 2, dtype=D)
    keep = batch.mask["a"] & (batch.mask["b"] | batch.mask["c"])
    assert 0 < int(keep.sum()) < 20
    loss = elbo(given(model, "b", "c"), given(WithNoise(guide, z=noise), "a"))(batch)
    rows = batch[keep]
    q = guide.encoders["a"](rows.x["a"]).base_dist
    precision = 1 + q.scale**-2
    loc, scale = q.loc * q.scale**-2 / precision, precision**-0.5
    z = loc + scale * noise[keep]
    truth = kl_sampled = (Normal(loc, scale).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum()
    for m in "bc":
        logp = Normal(model.decoders[m].net(z), lg.s[m]).log_prob(rows.x[m]).sum(-1)
        truth = truth - (logp * rows.mask[m]).sum()
    assert kl_sampled.item() != 0
    programs = nn.ModuleList([model, guide])
    torch.testing.assert_close(loss, truth / 20, rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(loss, programs), gradients(truth / 20, programs))


def test_cross_modal_terms_in_a_plate_of_subsets_count_views_with_a_source():
    """A view that hides the source from the guide would train the model from the prior's noise."""
    lg, model, guide = pair()
    batch = lg.data(10, missing=True)
    groups = [("a", "b"), ("b", "c"), ("a",)]
    noise = torch.randn(3, 10, 2, dtype=D)
    quiet = WithNoise(guide, z=noise)
    loss = elbo(in_subsets(given(model, "b"), groups), in_subsets(given(quiet, "a"), groups))(batch)
    view = batch.only("a", "b")  # the only group with both
    alone = elbo(given(model, "b"), given(WithNoise(guide, z=noise[0]), "a"))(view)
    torch.testing.assert_close(loss, alone, rtol=1e-12, atol=1e-12)
    programs = nn.ModuleList([model, guide])
    assert_same_gradients(gradients(loss, programs), gradients(alone, programs))


class Letters(nn.Module):
    """y ~ Categorical;  x | y ~ N(centre_y, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.4, 0.5], dtype=D))
        self.centres = nn.Parameter(torch.tensor([-2.0, 0.0, 3.0], dtype=D))

    @config_enumerate
    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.Normal(self.centres[y], 1.0), obs=batch.x["x"])


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 3).double()

    @config_enumerate
    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("y", dist.Categorical(logits=self.net(batch.x["x"].unsqueeze(-1))))


def test_an_enumerating_estimator_passes_through_and_is_exact():
    model, guide, batch = Letters(), Reader(), Batch({"x": torch.randn(6, dtype=D)})
    loss = elbo(model, guide, estimator=TraceEnum_ELBO(max_plate_nesting=1))(batch)
    log_q = guide.net(batch.x["x"].unsqueeze(-1)).log_softmax(-1)
    log_p = model.logits.log_softmax(-1) + Normal(model.centres, 1.0).log_prob(batch.x["x"].unsqueeze(-1))
    truth = (log_q.exp() * (log_q - log_p)).sum() / 6
    programs = nn.ModuleList([model, guide])
    torch.testing.assert_close(loss, truth)
    assert_same_gradients(gradients(loss, programs), gradients(truth, programs))
    with torch.no_grad():  # as in validation, where TraceEnum_ELBO by itself would raise
        value = elbo(model, guide, estimator=TraceEnum_ELBO(max_plate_nesting=1))(batch)
    torch.testing.assert_close(value, truth.detach())
    assert not value.requires_grad


def test_an_estimator_sees_weights_beta_and_counted_rows():
    lg, model, guide = pair()
    batch = lg.data(10, missing=True)
    quiet = WithNoise(guide, z=torch.randn(10, 2, dtype=D))
    how = {"beta": 0.5, "weights": {"b": 3.0}}
    for p, q in ((model, quiet), (given(model, "b"), given(quiet, "a"))):
        through = elbo(p, q, estimator=Trace_ELBO(max_plate_nesting=1), **how)
        torch.testing.assert_close(through(batch), elbo(p, q, **how)(batch), rtol=1e-12, atol=1e-12)
        assert through.report() == {"elbo": pytest.approx(-through(batch).item())}


def test_an_estimator_that_cannot_be_used_is_refused_at_once():
    _, model, guide = pair()
    with pytest.raises(TypeError, match=r"RenyiELBO has no differentiable_loss: use iwae\(\) or dreg\(\)"):
        elbo(model, guide, estimator=RenyiELBO(num_particles=2))
    for how in ({"particles": 3}, {"analytic_kl": True}, {"stl": True}):
        with pytest.raises(ValueError, match="brings its own particles and KL"):
            elbo(model, guide, estimator=Trace_ELBO(), **how)


@pytest.mark.parametrize("how", [{}, {"analytic_kl": True}, {"stl": True}, {"particles": 2}], ids=str)
@pytest.mark.parametrize("objective", [elbo, nll])
def test_a_site_without_reparameterisation_is_refused(objective, how):
    """Its gradient through the likelihood would be missing, closed-form KL or not."""
    if objective is nll and how != {"particles": 2}:
        how = {}
    with pytest.raises(ValueError, match=r"guide site 'y' \(Categorical\) is not reparameterised"):
        objective(Letters(), Reader(), **how)(Batch({"x": torch.randn(6, dtype=D)}))


def test_a_closed_form_is_refused_for_a_bottom_up_guide():
    """Trap 2: Pyro's mean-field ELBO only warns, and its loss is far too high."""
    model, guide, batch = Layers(), BottomUp(), Batch({"x": torch.randn(400, dtype=D)})
    with pytest.raises(ValueError, match="analytic KL is not valid at site 'z': the model draws 'u' before it"):
        elbo(model, guide, analytic_kl=True)(batch)
    stock = TraceMeanField_ELBO(max_plate_nesting=1)
    with torch.no_grad():
        true = torch.stack([elbo(model, guide)(batch) for _ in range(30)])
        with pytest.warns(UserWarning, match="mean field"):
            wrong = torch.stack([stock.differentiable_loss(model, guide, batch) / 400 for _ in range(30)])
    bound = -model.log_marginal(batch.x["x"]).mean().item()
    error = true.std().item() / 30**0.5
    assert bound < true.mean().item() + 4 * error
    assert wrong.mean().item() > true.mean().item() + 0.1


def test_componentwise_divergences_are_refused_where_closed_forms_are():
    from pyro_mm.distributions import Mixture

    class Mixed(nn.Module):
        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                loc = batch.x["x"].reshape(-1, 1, 1) * torch.ones(2, 1, dtype=D)
                z = pyro.sample("z", Mixture(loc, torch.ones_like(loc), torch.ones(2, dtype=D)))
                pyro.sample("u", dist.Normal(z, 1.0).to_event(1))

    class Model(nn.Module):
        def forward(self, batch: Batch) -> None:
            one = torch.ones(1, dtype=D)
            with pyro.plate("data", len(batch), dim=-1):
                u = pyro.sample("u", dist.Normal(0 * one, one).to_event(1))
                pyro.sample("z", dist.Normal(u, one).to_event(1))

    with pytest.raises(ValueError, match="not valid at site 'z'"):
        componentwise_elbo(Model(), Mixed())(Batch({"x": torch.zeros(3, dtype=D)}))


def test_counts_and_terms_that_make_no_sense():
    lg, model, guide = pair()
    with pytest.raises(ValueError, match="particles must be at least 1, got 0"):
        elbo(model, guide, particles=0)

    class Empty(nn.Module):
        def forward(self, batch: Batch) -> None:
            pass

    with pytest.raises(ValueError, match="has no terms"):
        elbo(Empty(), Empty())(lg.data(2))


def test_labels_and_counts_against_code_written_by_hand():
    """Not only Normals: a label and a count from one latent."""
    modalities = [
        Modality("y", (), likelihoods.Categorical(4), networks.MLP((6,))),
        Modality("n", (3,), likelihoods.NegativeBinomial(), networks.MLP((6,))),
    ]
    model = Joint({m.name: m.decoder(2) for m in modalities}, 2).double()
    guide = Experts(encoders(modalities, 2), product_of_experts).double()
    mask = {"y": torch.tensor([1, 0, 1, 0, 1]).bool(), "n": torch.tensor([1, 1, 0, 0, 1]).bool()}
    batch = Batch({"y": torch.tensor([3, 1, 0, 2, 2]), "n": torch.tensor([[0.0, 3, 9]] * 5, dtype=D)}, mask)
    noise = torch.randn(5, 2, dtype=D)
    loss = elbo(model, WithNoise(guide, z=noise))(batch)
    q = guide.posterior(batch).base_dist
    z = q.loc + q.scale * noise
    logits = model.decoders["y"].net(z).log_softmax(-1).gather(-1, batch.x["y"].unsqueeze(-1)).squeeze(-1)
    mu = nn.functional.softplus(model.decoders["n"].net(z)) + 1e-6
    r, x = model.decoders["n"].learnt["log_r"].exp(), batch.x["n"]
    counts = (x + r).lgamma() - r.lgamma() - (x + 1).lgamma() + r * (r / (r + mu)).log() + x * (mu / (r + mu)).log()
    truth = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum()
    truth = (truth - (logits * mask["y"]).sum() - (counts.sum(-1) * mask["n"]).sum()) / 5
    programs = nn.ModuleList([model, guide])
    torch.testing.assert_close(loss, truth, rtol=1e-10, atol=1e-10)
    assert_same_gradients(gradients(loss, programs), gradients(truth, programs))


@pytest.mark.parametrize("make", ["elbo", "nll", "componentwise_elbo", "iwae", "dreg", "looser"])
def test_a_weight_of_an_unknown_modality_is_refused(make: str) -> None:
    """Also through verbs, which show a program less than it generates."""
    _, model, guide = pair(mixture_of_experts, {"a": 2, "b": 2})
    k = {"k": 2} if make in ("iwae", "dreg", "looser") else {}
    build = getattr(objectives, make)
    with pytest.raises(ValueError, match=r"weights for \['lable'\], but Joint generates a, b"):
        build(model, guide, weights={"a": 2.0, "lable": 50.0}, **k)
    build(model, guide, weights={"b": 2.0}, **k)
    if make == "elbo":
        build(given(model, "a"), given(guide, "a"), weights={"b": 2.0})
        with pytest.raises(ValueError, match="lable"):
            build(given(model, "a"), guide, weights={"lable": 2.0})
