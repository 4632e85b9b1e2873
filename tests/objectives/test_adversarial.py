"""Terms of a GAN against hand-written ones, their optimum, and what is said of collapse and divergence."""

from __future__ import annotations

import sys
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, log_marginal
from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from pyro_mm.objectives import Discriminator, adversarial, discrimination
from pyro_mm.objectives.adversarial import WATCHED
from pyro_mm.training import Stage, fit, in_turn

D = torch.float64


class Pair(nn.Module):
    """z ~ N(0, 1), x ~ N(w z + b, 1); the guide draws z ~ N(x, 0.5^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7, dtype=D))
        self.b = nn.Parameter(torch.tensor(0.2, dtype=D))

    def model(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            pyro.sample("x", dist.Normal((self.w * z + self.b).unsqueeze(-1), 1.0).to_event(1), obs=batch.x.get("x"))

    def guide(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(batch.x["x"].squeeze(-1), 0.5))


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Parameter(torch.tensor(1.3, dtype=D)), nn.Parameter(torch.tensor(-0.4, dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x.squeeze(-1) + self.c


def blind(batch: Batch) -> None:
    """A guide that sees nothing: z ~ N(0, 1)."""
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))


def rows() -> Batch:
    x = torch.linspace(-1, 1, 6, dtype=D)[:, None]
    return Batch({"x": x}, {"x": torch.tensor([True, True, False, True, True, False])})


def fakes(pair: Pair, batch: Batch) -> list[Tensor]:
    prior = torch.randn(6, dtype=D)
    posterior = batch.x["x"].squeeze(-1) + 0.5 * torch.randn(6, dtype=D)
    return [(pair.w * z + pair.b)[:, None] for z in (prior, posterior)]


@pytest.mark.parametrize("term", ["generator", "discriminator"])
def test_losses_and_gradients_are_those_written_by_hand(term: str) -> None:
    pair, critic, batch = Pair(), Line(), rows()
    mask = batch.mask["x"]
    make = adversarial if term == "generator" else discrimination
    objective = make(pair.model, pair.guide, "x", critic)
    torch.manual_seed(0)
    loss = objective(batch)
    torch.manual_seed(0)
    made = fakes(pair, batch)
    one, zero = torch.ones(6, dtype=D), torch.zeros(6, dtype=D)

    def row_losses(logit: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logit, target, reduction="none")

    if term == "generator":
        by_hand = sum(row_losses(critic(v), one) for v in made)
        parameters = [pair.w, pair.b]
    else:
        by_hand = row_losses(critic(batch.x["x"]), one) + sum(row_losses(critic(v.detach()), zero) for v in made)
        parameters = [critic.a, critic.c]
    expected = by_hand[mask].sum() / 6
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["mvae", "mopoe", "mmvaeplus", "nexus_elbo", "telbo"])
def test_what_was_sharpened_has_no_likelihood(name: str) -> None:
    image = Modality("x", (3,), likelihoods.Normal(1.0), networks.MLP((8,)))
    label = Modality("y", (), likelihoods.Categorical(3), networks.MLP((8,)))
    recipe, batch = getattr(variants, name)([image, label]), Batch({"x": torch.randn(4, 3), "y": torch.arange(4) % 3})
    assert log_marginal(recipe.model, recipe.guide, batch, 2).estimate.isfinite().all()
    adversarial(recipe.model, recipe.guide, "x", Discriminator(image))
    with pytest.raises(NoLikelihood, match="the decoder of 'x' was sharpened by a discriminator"):
        log_marginal(recipe.model, recipe.guide, batch, 2)


def test_the_best_discriminator_is_the_ratio_of_densities() -> None:
    """Fakes from both sources count twice: D = p(x) / (p(x) + 2 g(x)), here a line in the log."""
    torch.manual_seed(0)
    pair, critic = Pair(), Line()
    with torch.no_grad():
        pair.w.fill_(1.0), pair.b.fill_(-1.0)
    objective = discrimination(pair.model, blind, "x", critic)
    optimiser = torch.optim.Adam(critic.parameters(), 0.02)
    for _ in range(400):
        optimiser.zero_grad()
        objective(Batch({"x": 1 + torch.randn(500, 1, dtype=D)})).backward()
        optimiser.step()
    # log N(x; 1, 1) - log N(x; -1, 1) - log 2 = 2 x - log 2
    assert abs(critic.a - 2) < 0.2 and abs(critic.c + 0.693) < 0.2
    report = objective.report()
    assert abs(report["discrimination/spread"] - 1) < 0.15
    assert report["discrimination/real"] > 0.6 > 0.3 > report["discrimination/fake"]


def test_collapse_and_a_discriminator_that_is_sure_are_said_once() -> None:
    pair, critic, batch = Pair(), Line(), Batch({"x": torch.randn(8, 1, dtype=D) + 100})
    with torch.no_grad():
        pair.w.fill_(1e-3), critic.a.fill_(1.0), critic.c.fill_(-50.0)
    objective = discrimination(pair.model, blind, "x", critic)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2 * WATCHED + 5):
            objective(batch)
    texts = sorted(str(w.message) for w in said)
    assert len(texts) == 2
    assert texts[0].startswith("draws of 'x' differ by 0% of what data differ: the generator has collapsed")
    assert texts[1].startswith("the discriminator is certain of every 'x', real or made")


def test_a_collapse_is_said_while_training_in_turns(monkeypatch) -> None:
    """The turn that moves D alone has everything else in evaluation mode, and watches all the same."""
    monkeypatch.setattr(sys.modules["pyro_mm.objectives.adversarial"], "WATCHED", 5)
    torch.manual_seed(0)
    image = Modality("x", (3,), likelihoods.Normal(1.0), networks.MLP((8,)))
    model = Joint(decoders([image], 2), 2)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    critic, guide = Discriminator(image), Experts(encoders([image], 2), product_of_experts)
    first = Stage(adversarial(model, guide, "x", critic), 1, guide)
    stage = in_turn(2, first, Stage(discrimination(model, guide, "x", critic), 1, critic))
    batch = Batch({"x": torch.randn(40, 3)})
    with pytest.warns(UserWarning, match=r"draws of 'x' differ by 0% .* \(over 5 steps\)"):
        fit([stage], batch, batch_size=10, progress=False)


def test_the_discriminator_has_spectral_norms_and_fits_the_modality() -> None:
    image = Modality("image", (1, 8, 8), likelihoods.Bernoulli(), networks.Conv((4, 8), 16))
    critic = Discriminator(image)
    assert critic(torch.rand(5, 1, 8, 8)).shape == (5,)
    for _ in range(30):  # one power iteration in each
        critic(torch.rand(5, 1, 8, 8))
    linear = [p for p in critic.eval().modules() if isinstance(p, nn.Linear)]
    assert linear and all(abs(torch.linalg.matrix_norm(p.weight, 2) - 1) < 0.05 for p in linear)
    free = Discriminator(image, spectral=False)
    assert not any("parametrizations" in n for n, _ in free.named_parameters())
