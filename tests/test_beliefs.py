"""Messages at a site: against the linear-Gaussian oracle, and against sums written out."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm import log_weights
from pyro_mm.batch import Batch
from pyro_mm.beliefs import ClassMessage, NormalMessage, believe, informed, tilted
from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.handlers import given, in_subsets
from pyro_mm.modality import encoders
from pyro_mm.modules import log_evidence, log_responsibilities
from pyro_mm.objectives import elbo
from tests.helpers.oracle import LG, assert_same_gradients, gradients, set_to_exact_experts

D = torch.float64


def exact_pair() -> tuple[LG, nn.Module, nn.Module]:
    """A model with one latent and its exact posterior."""
    lg = LG(latent=1)
    guide = Experts(encoders(lg.modalities(), 1), product_of_experts).double()
    set_to_exact_experts(lg, guide.encoders)
    return lg, lg.model(), guide


def told(lg: LG, n: int = 15) -> tuple[Batch, Tensor]:
    """Rows in every pattern of presence, a third of them without a message; and what they are told."""
    batch, mu = lg.data(n, missing=True), 3 * torch.randn(n, 1, dtype=D)
    heard = torch.arange(n) % 3 != 0
    return Batch({**batch.x, "mu": mu}, {**batch.mask, "mu": heard}), torch.where(heard.unsqueeze(-1), mu, 0.0)


def shifted(lg: LG, batch: Batch, mu: Tensor) -> Tensor:
    """log p(x) under z ~ N(mu, I): that of x - W mu under N(0, I)."""
    x = {m: batch.x[m] - mu @ lg.w[m].T for m in lg.dims}
    return lg.log_marginal(Batch(x, {m: batch.mask[m] for m in lg.dims}))


def test_a_believed_prior_and_a_tilted_posterior_have_the_exact_likelihood_in_every_draw():
    lg, model, guide = exact_pair()
    batch, mu = told(lg)
    pair = believe(model, "z", NormalMessage("mu")), tilted(guide, "z", "mu")
    found = log_weights(*pair, batch, 4)
    torch.testing.assert_close(found, shifted(lg, batch, mu).expand(4, -1), rtol=0, atol=2e-8)
    untold = log_weights(model, guide, batch, 1)[0]
    assert (found[0] - untold).abs().max() > 0.5  # the message matters


def test_a_message_reaches_every_subset_of_a_plate():
    lg, model, guide = exact_pair()
    batch, _ = told(lg)
    groups = [("a", "mu"), ("b", "c", "mu"), ("mu",)]
    pair = believe(model, "z", NormalMessage("mu")), tilted(guide, "z", "mu")
    together = elbo(*(in_subsets(p, groups) for p in pair))(batch)
    truth = sum(-shifted(lg, batch.only(*g), told_in(batch)).mean() for g in groups)
    torch.testing.assert_close(together, truth, rtol=0, atol=2e-8)


def told_in(batch: Batch) -> Tensor:
    return torch.where(batch.mask["mu"].unsqueeze(-1), batch.x["mu"], 0.0)


def test_given_outside_hides_the_message_too():
    lg, model, guide = exact_pair()
    batch, mu = told(lg)
    message = NormalMessage("mu")
    hidden = log_weights(given(believe(model, "z", message), "a"), given(guide, "a"), batch, 1)[0]
    torch.testing.assert_close(hidden, lg.log_marginal(batch.only("a")), rtol=0, atol=2e-8)
    inside = believe(given(model, "a"), "z", message), tilted(given(guide, "a"), "z", "mu")
    torch.testing.assert_close(log_weights(*inside, batch, 1)[0], shifted(lg, batch.only("a"), mu), rtol=0, atol=2e-8)


class Coins(nn.Module):
    """c ~ Cat(.2, .5, .3);  y ~ Bernoulli(h_c)."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, 0.5, 0.3], dtype=D).log())
        self.heads = nn.Parameter(torch.tensor([0.1, 0.6, 0.9], dtype=D))

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Bernoulli(self.heads[c]), obs=batch.x["y"])


def tossed() -> tuple[Coins, Batch, Tensor, Tensor]:
    """Coins, rows, log p(y | c) `(N, 3)` by hand, and log-messages."""
    coins, y = Coins(), torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=D)
    logs = torch.where(y.unsqueeze(-1) > 0, coins.heads, 1 - coins.heads).log().detach()
    said = torch.tensor([[0.0, -2.0, 1.0], [3.0, 0.0, -1.0], [0.5, 0.5, 0.5], [9.0, 9.0, -9.0]], dtype=D)
    heard = torch.tensor([True, True, True, False])
    return coins, Batch({"y": y, "l": said}, {"l": heard}), logs, torch.where(heard.unsqueeze(-1), said, 0.0)


def test_informed_multiplies_the_prior_and_its_evidence_is_that_of_both():
    coins, batch, logs, said = tossed()
    total = coins.logits.detach() + said + logs
    program = informed(coins, "c", "l")
    torch.testing.assert_close(log_evidence(program, batch), total.logsumexp(-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_responsibilities(program, batch), total.log_softmax(-1), rtol=1e-12, atol=1e-12)


def test_believed_classes_are_normalised():
    coins, batch, logs, said = tossed()
    total = said.log_softmax(-1) + logs
    program = believe(coins, "c", ClassMessage("l"))
    torch.testing.assert_close(log_evidence(program, batch), total.logsumexp(-1), rtol=1e-12, atol=1e-12)


def test_informed_trains_under_pyros_own_elbo_with_the_gradient_of_the_sum():
    coins, batch, _, said = tossed()
    estimator = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    loss = elbo(informed(coins, "c", "l"), nn.Identity(), estimator=estimator)(batch)
    y = batch.x["y"].unsqueeze(-1)
    by_hand = coins.logits.log_softmax(-1) + said + torch.where(y > 0, coins.heads, 1 - coins.heads).log()
    truth = -by_hand.logsumexp(-1).mean()
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(loss, coins), gradients(truth, coins))


def test_mistakes_name_the_site_or_the_entry():
    lg, model, _ = exact_pair()
    batch, _ = told(lg)
    message = NormalMessage("mu")
    coins, rows, _, _ = tossed()
    wide = Batch({**batch.x, "mu": torch.zeros(15, 2, dtype=D)})
    for program, seen, wrong in (
        (believe(model, "w", message), batch, "no latent 'w'"),
        (believe(model, "a", message), batch, "'a' is observed"),
        (believe(model, "z", message), lg.data(15), "no message 'mu'"),
        (believe(model, "z", message), wide, r"'z' has event shape \(1,\), the message \(2,\)"),
        (informed(model, "z", "mu"), batch, "'z' .* is no Categorical"),
        (informed(coins, "c", "l"), Batch({**rows.x, "l": rows.x["l"][:, :2]}), "'c' has 3 classes.*'l' has 2"),
        (tilted(coins, "c", "l"), rows, "'c' .* no diagonal Normal"),
    ):
        with pytest.raises(ValueError, match=wrong):
            program(seen)
    with pytest.raises(ValueError, match="scale must be positive"):
        NormalMessage("mu", 0.0)
