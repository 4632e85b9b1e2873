"""The ELBO between two programs: against stock Pyro, against code written by hand, against closed forms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mm import likelihoods, networks
from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, mixture_of_products, product_of_experts
from pyro_mm.handlers import given, in_subsets
from pyro_mm.modality import Modality, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Warmup, elbo, kl, nll
from tests.helpers.noise import WithNoise
from tests.helpers.objectives import pair
from tests.helpers.oracle import LG, ExactGuide, MeanField, assert_same_gradients, gradients, z_scores
from tests.helpers.programs import Layers, Private, PrivateGuide

D = torch.float64
Normal = torch.distributions.Normal


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
