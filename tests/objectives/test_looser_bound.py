"""The looser bound of a mixture of experts, and stratified draws."""

from __future__ import annotations

from functools import partial

import pyro
import pytest
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.distributions import independent_components
from pyro_mm.guides import Experts, mixture_of_experts
from pyro_mm.handlers import given
from pyro_mm.objectives import iwae, looser
from tests.helpers.multisample import agree, lme, off_centre
from tests.helpers.objectives import pair
from tests.helpers.oracle import LG, assert_same_gradients, gradients
from tests.helpers.programs import PerRowMixture

D = torch.float64
Normal = torch.distributions.Normal
experts = partial(pair, mixture_of_experts, seed=5)


def log_weight(lg: LG, guide: Experts, batch: Batch, z: Tensor) -> Tensor:
    """log p(x_S, z) - log 1/|S| sum_m q_m(z) at `z` `(K, N, 2)`, S what is present, written out."""
    log_p = Normal(0.0, 1.0).log_prob(z).sum(-1)
    parts = []
    for m in lg.dims:
        seen = batch.mask[m]
        logp = Normal(z @ lg.w[m].T + lg.b[m], lg.s[m]).log_prob(batch.x[m]).sum(-1)
        log_p = log_p + torch.where(seen, logp, 0.0)
        parts.append(torch.where(seen, guide.encoders[m](batch.x[m]).log_prob(z), -torch.inf))
    count = torch.stack(list(batch.mask.values())).sum(0).clamp(min=1).double()
    return log_p - (torch.stack(parts).logsumexp(0) - count.log())


@pytest.mark.parametrize("doubly", [False, True])
def test_the_looser_bound_by_hand_with_missing_modalities(doubly):
    """1/|S| sum over the present experts, each with its own draws, scored by the whole mixture."""
    lg, model, guide = experts()
    batch, k = lg.data(10, missing=True), 6
    pyro.set_rng_seed(1)
    value = looser(model, guide, k, doubly=doubly)(batch)
    pyro.set_rng_seed(1)
    truth = torch.zeros(10, dtype=D)
    count = torch.stack(list(batch.mask.values())).sum(0).clamp(min=1).double()
    for m in lg.dims:
        torch.rand(k, 1, 10, dtype=D) if doubly else torch.rand(1, 10, dtype=D)  # the draw of a component that is one
        q = guide.encoders[m](batch.x[m]).base_dist
        seen = batch.mask[m].view(1, 1, 10, 1)
        loc = torch.where(seen, q.loc, 0.0).expand(k, 1, 10, 2)
        z = torch.distributions.Normal(loc, torch.where(seen, q.scale, 1.0)).rsample()[:, 0]
        bound = lme(log_weight(lg, guide, batch, z))
        truth = truth + torch.where(batch.mask[m], bound, 0.0) / count
    torch.testing.assert_close(value, -truth.mean(), rtol=1e-10, atol=1e-10)
    if not doubly:
        assert_same_gradients(gradients(value, guide), gradients(-truth.mean(), guide), rtol=1e-7, atol=1e-9)


def test_the_looser_bound_is_below_the_stratified_one():
    """The same draws, the logarithm inside or outside of the mean over experts."""
    lg, model, guide = experts()
    batch = lg.data(300)
    with torch.no_grad():
        tight = torch.stack([-iwae(model, guide, 12)(batch) for _ in range(20)])
        loose = torch.stack([-looser(model, guide, 4)(batch) for _ in range(20)])
    truth = lg.log_marginal(batch).mean()
    error = ((tight.var() + loose.var()) / 20).sqrt()
    assert ((tight.mean() - loose.mean()) / error).item() > 5
    assert (tight.mean() < truth).item()


def test_stratified_draws_give_every_expert_its_share():
    """IWAE of a mixture with K = M k draws: k from each expert (Shi et al. 2019), by hand."""
    lg, model, guide = experts()
    batch, k = lg.data(200), 2
    with torch.no_grad():
        ours = torch.stack([-iwae(model, guide, 3 * k)(batch) for _ in range(60)])
        theirs = []
        for _ in range(60):
            z = torch.cat([guide.encoders[m](batch.x[m]).expand((k, 200)).sample() for m in lg.dims])
            theirs.append(lme(log_weight(lg, guide, batch, z)).mean())
        with independent_components():
            free = torch.stack([-iwae(model, guide, 3 * k)(batch) for _ in range(60)])
    theirs = torch.stack(theirs)
    error = ((ours.var() + theirs.var()) / 60).sqrt()
    assert ((ours.mean() - theirs.mean()) / error).abs().item() < 4
    assert (
        (ours.mean() - free.mean()) / ((ours.var() + free.var()) / 60).sqrt()
    ).item() > 3  # tighter than independent


def test_the_looser_bound_with_doubly_reparameterised_gradients_is_the_papers():
    """As in the authors' code: log q with constant parameters, the path's gradient times the normalised weights."""
    lg, model, guide = experts()
    batch, k = lg.data(4), 5
    pyro.set_rng_seed(2)
    found = gradients(looser(model, guide, k, doubly=True)(batch), guide)
    pyro.set_rng_seed(2)
    constant = {m: e(batch.x[m]).base_dist for m, e in guide.encoders.items()}
    fixed = {m: (q.loc.detach(), q.scale.detach()) for m, q in constant.items()}
    total = torch.zeros((), dtype=D)
    for q in constant.values():
        torch.rand(k, 1, 4, dtype=D)
        z = torch.distributions.Normal(q.loc.expand(k, 1, 4, 2), q.scale).rsample()[:, 0]
        leaf = z.detach().requires_grad_()
        log_q = torch.stack([Normal(*fixed[j]).log_prob(leaf).sum(-1) for j in fixed]).logsumexp(0)
        log_p = Normal(0.0, 1.0).log_prob(leaf).sum(-1)
        for j in lg.dims:
            log_p = log_p + Normal(leaf @ lg.w[j].T + lg.b[j], lg.s[j]).log_prob(batch.x[j]).sum(-1)
        (path,) = torch.autograd.grad((log_p - log_q).sum(), leaf)
        w = (log_p - log_q).detach().softmax(0).unsqueeze(-1)
        total = total - (w**2 * path * z).sum() / 3 / 4
    assert_same_gradients(found, gradients(total, guide), rtol=1e-7, atol=1e-9)


def test_the_looser_bound_counts_rows_as_every_other_term():
    lg, model, guide = experts()
    batch = lg.data(10, missing=True)
    pyro.set_rng_seed(4)
    cross = looser(given(model, "b"), guide, 5, ["a", "c"])(batch)
    pyro.set_rng_seed(4)
    view = Batch._view(batch.x, {m: v & batch.mask["b"] for m, v in batch.mask.items()})
    alone = looser(given(model, "b"), guide, 5, ["a", "c"])(view)
    torch.testing.assert_close(cross, alone, rtol=1e-10, atol=1e-10)


class PerRowExperts(PerRowMixture):
    """Experts `a` and `b` with parameters per row, present as the batch says."""

    names = ("a", "b")

    def forward(self, batch: Batch) -> None:
        mask = torch.stack([batch.mask[m] for m in self.names], -1)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", mixture_of_experts(self.loc, self.log_scale.exp(), mask))


@pytest.mark.parametrize(("k", "unbiased"), [(1, True), (30, False)])
def test_the_looser_bound_and_its_doubly_reparameterised_gradient(k, unbiased):
    """What the docstring says: right at K=1, and too long at large K (its draws are not the scored density's)."""
    rows = 10_000
    model, batch, *moments = off_centre(rows)
    guide = PerRowExperts(*moments, rows)
    plain, doubly = (gradients(rows * looser(model, guide, k, doubly=d)(batch), guide) for d in (False, True))
    if unbiased:
        agree(plain, doubly)
    else:
        ratio = doubly["loc"].mean(0)[0] / plain["loc"].mean(0)[0]
        assert (ratio > 1.5).all()
        assert (plain["loc"].std(0) > doubly["loc"].std(0)).all()
