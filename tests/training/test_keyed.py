"""Noise by row: the same for a row in whatever company it is drawn, and right in distribution."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_mm.distributions import Mixture
from pyro_mm.objectives import elbo
from pyro_mm.training import fit
from pyro_mm.training.keyed import keyed_noise
from pyro_mm.weights import run
from tests.helpers.training import MODALITIES, data, pair

CPU = torch.device("cpu")


def drawn(program, rank=0, world=1, rows=6, total=6, key=1):
    with keyed_noise(key, rank, world, rows, total, CPU):
        return run(program, data(rows))["z"].value


def normal(batch):
    with pyro.plate("particles", 3, dim=-3), pyro.plate("subset", 2, dim=-2), pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Normal(torch.full((2,), 5.0), 0.1).to_event(1))


def mixture(batch):
    loc = torch.tensor([[0.0], [100.0]])
    with pyro.plate("particles", 4, dim=-3), pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", Mixture(loc, torch.ones(2, 1), torch.tensor([0.25, 0.75])))


@pytest.mark.parametrize("program", [normal, mixture])
def test_a_row_has_its_noise_wherever_it_is(program):
    whole = drawn(program)
    for rank in range(2):
        assert torch.equal(drawn(program, rank, 2, 3, 6), whole[:, :, rank::2])
    assert not torch.equal(drawn(program, key=2), whole) and len(whole.flatten().unique()) == whole.numel()


def test_a_site_drawn_again_in_a_pass_has_other_noise_and_the_same_in_the_next_pass():
    """A guide's latent and the prior's under one name: what compares the two takes them for independent."""

    def twice(rank=0, world=1, rows=6):
        with keyed_noise(1, rank, world, rows, 6, CPU):
            return [run(normal, data(rows))["z"].value for _ in range(2)]

    first, second = twice()
    assert torch.equal(first, drawn(normal)) and not (first == second).any()
    assert torch.equal(twice()[1], second) and torch.equal(twice(1, 2, 3)[1], second[:, :, 1::2])


def test_draws_have_the_distribution():
    z = drawn(normal, rows=4000, total=4000)
    assert abs(z.mean() - 5) < 4 * 0.1 / z.numel() ** 0.5 and abs(z.std() - 0.1) < 4 * 0.1 / (2 * z.numel()) ** 0.5
    z = drawn(mixture, rows=4000, total=4000)
    # Systematic over 4 particles: exactly 3 of every 4 come from the second component.
    assert torch.equal((z > 50).sum(0), torch.full((1, 4000, 1), 3))


def test_the_stream_and_a_latent_of_all_rows_are_left_alone():
    def shared(batch):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    before = torch.get_rng_state()
    assert torch.equal(drawn(shared, 0, 2, 3, 6), drawn(shared, 1, 2, 3, 6))
    assert torch.equal(torch.get_rng_state(), before)


def test_other_latents_are_refused_by_name():
    class Gamma(nn.Module):
        def forward(self, batch):
            with pyro.plate("data", len(batch), dim=-1):
                pyro.sample("z", dist.Gamma(torch.ones(len(batch), 2), 1.0).to_event(1))

    model, _ = pair()
    with pytest.raises(ValueError, match="noise by row: site 'z' is a Gamma"):
        fit(elbo(model, Gamma()), data(), 1, noise_by_row=True, progress=False)


def test_a_compiled_graph_cannot_have_it():
    with pytest.warns(UserWarning, match="only training without noise_by_row is compiled"):
        fit(elbo(*pair()), data(), 1, noise_by_row=True, compile=True, progress=False)


def test_runs_repeat_and_seeds_differ():
    losses = [fit(elbo(*pair()), data(), 1, noise_by_row=True, seed=s, progress=False)["loss"] for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2] and len(MODALITIES) == 3
