"""Terms of an objective run a network once for the same data: losses and gradients are as if it ran every time."""

from __future__ import annotations

from contextlib import nullcontext

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.handlers import frozen, given
from pyro_mm.objectives import elbo, kl
from pyro_mm.sharing import once, shared_networks
from tests.variants.test_contract import MODALITIES, NAMES, make, mixed


class Counting(nn.Module):
    """A layer that counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.runs = nn.Linear(3, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.layer(x)


def asked(net: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return once(net, x, mask, lambda: net(x))


def test_the_same_network_and_tensor_is_run_once_inside_and_each_time_outside() -> None:
    net, x = Counting(), torch.randn(4, 3)
    with shared_networks():
        with shared_networks():  # an objective within an objective
            a = asked(net, x)
        assert asked(net, x) is a and net.runs == 1
    asked(net, x)
    asked(net, x)
    assert net.runs == 3


def test_what_differs_is_run_again() -> None:
    net, x = Counting(), torch.randn(4, 3)
    with shared_networks():
        first = asked(net, x)
        assert asked(net, x.clone()) is not first  # another tensor of equal values
        assert asked(net, x, torch.ones(4).bool()) is not first
        net.eval()
        assert asked(net, x) is not first
        net.train()
        with torch.no_grad():
            assert not asked(net, x).requires_grad
        fixed = torch.func.functional_call(net, {n: p.detach() for n, p in net.named_parameters()}, (x,))
        assert not fixed.requires_grad
        assert asked(net, x) is first and first.requires_grad
    assert net.runs == 6


def test_frozen_programs_do_not_get_the_moving_ones_output() -> None:
    """KL(q || frozen q) has the gradient of its first argument alone, although both look at the same data."""
    recipe = make("mvae")
    batch = mixed()
    whole = Batch({m: v for m, v in batch.x.items()})
    objective = elbo(recipe.model, recipe.guide) + kl(frozen(recipe.guide), given(recipe.guide, "label"))
    found = []
    for shared in (nullcontext, shared_networks):
        recipe.guide.zero_grad()
        torch.manual_seed(0)
        with shared():
            sum(w * term(whole) for w, term in objective.pairs()).backward()  # type: ignore[union-attr, operator]
        found.append([p.grad.clone() for p in recipe.guide.parameters()])  # type: ignore[union-attr]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_networks_with_sample_sites_are_run_each_time() -> None:
    class Bayesian(pyro.nn.PyroModule):
        def forward(self, x: Tensor) -> Tensor:
            return x * pyro.sample("w", pyro.distributions.Normal(0.0, 1.0))

    net, x = Bayesian(), torch.ones(2)
    with shared_networks():
        assert asked(net, x) is not asked(net, x)


@pytest.mark.parametrize("name", NAMES)
def test_every_variants_loss_is_that_of_separate_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr("pyro_mm.objectives.algebra.shared_networks", nullcontext)
        recipe = make(name)
        torch.manual_seed(5)
        loss = recipe.objective(mixed())
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in recipe.objective.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_jmvae_kl_runs_every_layer_once() -> None:
    """Three terms ask for q(z | X): also the layers over what several networks say run once."""
    recipe = variants.jmvae_kl(MODALITIES, 3, width=16)
    layers = {n: p for n, p in recipe.objective.named_modules() if isinstance(p, nn.Linear | nn.Conv2d | nn.Embedding)}
    runs: list[str] = []
    for name, part in layers.items():
        part.register_forward_hook(lambda *_, name=name: runs.append(name))
    recipe.objective(Batch(mixed().x))
    assert len(layers) > 8 and sorted(runs) == sorted(layers)


def test_the_joint_posterior_of_a_surrogate_is_made_once_for_all_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """JMVAE-kl asks for q(z | X) in its bound and in every KL."""
    recipe, batch = make("jmvae_kl"), mixed()
    made, plain = [], type(recipe.guide.joint).posterior
    monkeypatch.setattr(type(recipe.guide.joint), "posterior", lambda self, b: made.append(b) or plain(self, b))
    recipe.objective(batch)
    assert len(made) == 1


def test_sum_pooling_looks_at_every_modality_once_for_all_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, batch = make("sum_pooling"), mixed()
    chi = recipe.guide.net.chi
    ran, plain = [], chi.forward
    monkeypatch.setattr(chi, "forward", lambda x: ran.append(x) or plain(x))
    recipe.objective(batch)
    assert len(ran) == len(batch.names)


def test_muse_runs_a_link_between_latents_once_for_all_subsets() -> None:
    recipe = variants.muse(MODALITIES, 2)
    runs: list[str] = []
    for name, link in recipe.guide.top.encoders.items():
        link.net.register_forward_hook(lambda *_, name=name: runs.append(name))
    recipe.objective(mixed())
    assert sorted(runs) == sorted(m.name for m in MODALITIES)
