"""TELBO, VAEVAE and SVAE against their formulas written by hand, and against exact values at exact posteriors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.guides import JointEncoder, Surrogate
from pyro_mm.likelihoods import Categorical
from pyro_mm.modality import Modality
from pyro_mm.objectives.schedules import value_of
from pyro_mm.variants.vaevae import paired_and_unpaired
from tests.helpers.hierarchies import hidden, modalities
from tests.variants.test_published_losses import SIZES, agree, likelihood, made

CASES = [(name, missing) for name in ("telbo", "vaevae", "svae") for missing in (False, True)]


@pytest.mark.parametrize(("name", "missing"), CASES)
def test_the_objective_is_the_published_one(name: str, missing: bool) -> None:
    options = {} if name == "svae" else {"width": 8}
    recipe, batch = made(name, beta=0.5, weights={"a": 3.0}, **options)
    batch = hidden(batch, 1) if missing else batch
    guide, prior, weights = recipe.guide, recipe.model.prior(), {"a": 3.0, "b": 1.0, "c": 1.0}
    complete = torch.stack([batch.mask[m] for m in SIZES]).all(0)

    def by_hand() -> Tensor:
        q = guide.posterior(batch)
        z = q.rsample()
        recon = sum(weights[m] * likelihood(recipe, batch, m, z) for m in SIZES)
        if name == "telbo":
            joint = recon - 0.5 * kl_divergence(q, prior.expand(q.batch_shape))
        else:
            joint = 2 * recon - 0.5 * sum(kl_divergence(q, guide.posterior(batch.only(m))) for m in SIZES)
        total = torch.where(complete, joint, 0.0)
        for m in SIZES:
            own = guide.posterior(batch.only(m))
            bound = weights[m] * likelihood(recipe, batch, m, own.rsample())
            bound = bound - 0.5 * kl_divergence(own, prior.expand(own.batch_shape))
            total = total + torch.where(batch.mask[m], bound, 0.0)
        return -total.mean()

    agree(lambda: recipe.objective(batch), by_hand, 25)


def exact_pair() -> tuple[LinearGaussian, nn.Module, Surrogate]:
    oracle = LinearGaussian.random({"a": 3, "b": 2, "c": 2}, latent=1, seed=1)
    guide = Surrogate(JointEncoder(oracle.joint_posterior_net(), 1), oracle.unimodal_posteriors())
    return oracle, oracle.model(), guide


def test_the_paired_bound_is_tight_at_exact_posteriors() -> None:
    """Of complete rows M log p(X), of others sum_m log p(x_m): with exact posteriors every draw has the same value."""
    oracle, model, guide = exact_pair()
    batch = hidden(oracle.sample(40, seed=2), 3)
    objective = paired_and_unpaired(model, guide, 1.0, None)
    torch.manual_seed(0)
    draws = torch.stack([-objective(batch).detach() for _ in range(36)])
    complete = torch.stack([batch.mask[m] for m in "abc"]).all(0)
    alone = sum(oracle.log_marginal(batch.only(m)) for m in "abc")
    exact = torch.where(complete, 3 * oracle.log_marginal(batch), alone).mean()
    assert 5 < int(complete.sum()) < 35
    assert abs((draws.mean() - exact).item()) < 4 * (draws.std() / 6).item()


def test_it_is_no_bound_where_surrogates_are_not_posteriors() -> None:
    """Surrogates at the joint posterior cost nothing in the KLs: the paired part exceeds what it would bound."""
    oracle, model, _ = exact_pair()
    batch = oracle.sample(40, seed=2)
    net = oracle.joint_posterior_net()

    class Told(nn.Module):
        """q(z|x_m), having been told all the rest."""

        def forward(self, x: Tensor) -> torch.distributions.Distribution:
            return net(batch)

    guide = Surrogate(JointEncoder(net, 1), {m: Told() for m in "abc"})
    first = paired_and_unpaired(model, guide, 1.0, None)
    paired = [(w, t) for w, t in first.pairs() if t.label in ("reconstruction", "kl")][:4]
    torch.manual_seed(0)
    value = torch.stack([-sum(value_of(w) * t(batch).detach() for w, t in paired) for _ in range(5)]).mean()
    bounded = sum(oracle.log_marginal(batch) - oracle.log_marginal(batch.only(m)) for m in "abc").mean()
    assert value > bounded + 1.0


def test_stopped_bounds_leave_the_decoder_alone_and_train_its_encoder() -> None:
    torch.manual_seed(0)
    recipe = variants.telbo(modalities(SIZES), 2, stop=["b"], width=8)
    batch = Batch({m: torch.randn(6, d) for m, d in SIZES.items()}).only("b")  # nothing but ELBO(b) counts
    loss = recipe.objective(batch)
    loss.backward()
    assert loss.item() > 0
    assert all(p.grad is None or not bool(p.grad.any()) for p in recipe.model.parameters())
    assert all(bool(p.grad.any()) for p in recipe.guide.unimodal.encoders["b"].parameters())
    with pytest.raises(ValueError, match=r"stop: unknown modality \['sound'\]; there are \['a', 'b', 'c'\]"):
        variants.telbo(modalities(SIZES), 2, stop=["sound"])


def test_labels_weigh_fifty_unless_told_otherwise() -> None:
    both = [*modalities({"a": 2}), Modality("label", (), Categorical(3))]
    assert all(t.likelihood_weights == {"label": 50.0} for t in variants.telbo(both, 2, width=8).objective)
    assert all(t.likelihood_weights == {"a": 2.0} for t in variants.telbo(both, 2, weights={"a": 2.0}).objective)


def test_multivaes_kl_shrinks_variances_and_ours_does_not() -> None:
    """A decoder that ignores z: nothing but the KL moves q(z|x_m), whose best is the prior.

    MultiVae 1.0.3 writes -1/2 (1 + log s^2 - mu_m^2 - s_m^2), s of the joint encoder: its minimum is at s_m = 0.
    """
    torch.manual_seed(0)
    recipe = variants.telbo(modalities({"a": 2, "b": 2}), 2, width=8)
    for decoder in recipe.model.decoders.values():
        nn.init.zeros_(decoder.net[0].weight)
    recipe.model.requires_grad_(False)
    batch = Batch({m: torch.randn(64, 2) for m in "ab"})
    encoder, (_, alone, _) = recipe.guide.unimodal.encoders["a"], recipe.objective

    def trained(loss: Callable[[], Tensor]) -> float:
        state = {k: v.clone() for k, v in encoder.state_dict().items()}
        optimiser = torch.optim.Adam(encoder.parameters(), lr=5e-2)
        for _ in range(150):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
        spread = 2 * encoder(batch.x["a"]).base_dist.scale.log().mean().item()
        encoder.load_state_dict(state)
        return spread

    def published() -> Tensor:
        joint, q = recipe.guide.posterior(batch).base_dist, encoder(batch.x["a"]).base_dist
        log_s2 = 2 * joint.scale.log().detach()
        return -0.5 * (1 + log_s2 - q.loc.square() - q.scale.square()).sum(-1).mean()

    assert abs(trained(lambda: alone(batch))) < 0.05
    assert trained(published) < -5
