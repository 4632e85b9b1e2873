"""Priors fitted after training: to the aggregated posterior, with everything else held still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.distributions import MixtureOf
from pyro_mm.evaluation import by_cosine, by_kl, by_wasserstein, encode, generate, log_marginal
from pyro_mm.guides import product_of_experts
from pyro_mm.models import DiffusionPrior, FlowPrior, GaussianMixture, VampPrior
from pyro_mm.post_hoc import with_prior
from pyro_mm.recipe import Recipe
from pyro_mm.storage import load, save
from pyro_mm.training import fit
from tests.helpers.oracle import LG, set_to_exact_experts

D = torch.float64


def trained() -> tuple[LG, Recipe, Batch]:
    """MVAE with an exact model and nearly exact posteriors; data of a prior that is not the model's."""
    torch.manual_seed(0)
    lg = LG({"a": 3, "b": 2})
    recipe = variants.mvae(lg.modalities(), 2)
    for module in recipe.modules.values():
        module.double()
    for m, decoder in lg.model().decoders.items():
        recipe.model.decoders[m].load_state_dict(decoder.state_dict())
    set_to_exact_experts(lg, recipe.guide.encoders)
    noise = torch.Generator().manual_seed(1)
    z = 2.0 * torch.sign(torch.randn(200, 1, generator=noise, dtype=D)) + 0.3 * torch.randn(
        200, 2, generator=noise, dtype=D
    )
    x = {
        m: z @ lg.w[m].T + lg.b[m] + lg.s[m] * torch.randn(200, d, generator=noise, dtype=D) for m, d in lg.dims.items()
    }
    rows = torch.arange(200)
    return lg, recipe, Batch(x, {"a": rows % 4 != 0, "b": rows % 10 != 0})


def steps(recipe: Recipe, batch: Batch, count: int, lr: float) -> None:
    """Full-batch steps of the recipe's stage, as `fit` would take them."""
    (stage,) = recipe.stages
    with stage.only_moving():
        optimiser = torch.optim.Adam(stage.moving(), lr)
        for i in range(count):
            optimiser.param_groups[0]["lr"] = lr * (1 - i / count)
            optimiser.zero_grad()
            stage.objective(batch).backward()
            optimiser.step()


def test_one_gaussian_takes_the_moments_of_the_aggregated_posterior() -> None:
    """argmin_p E_x KL(q(z|x) || p) over Gaussians: mean of means, mean of variances plus variance of means; rows with
    nothing present, whose posterior is the prior itself, do not count.
    """
    _, recipe, batch = trained()
    prior = GaussianMixture(2, 1).double()
    with torch.no_grad():
        prior.loc.zero_()
    new = with_prior(recipe, prior)
    steps(new, batch[torch.arange(200).repeat(4)], 100, 0.1)
    with torch.no_grad():
        q = recipe.guide.posterior(batch).base_dist
        loc, scale = q.loc[batch.present()], q.scale[batch.present()]
        mean = loc.mean(0)
        sd = ((scale**2).mean(0) + (loc - mean).square().mean(0)).sqrt()
    torch.testing.assert_close(new.model.prior.loc[0].detach(), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(new.model.prior.log_scale[0].detach().exp(), sd, atol=0.05, rtol=0)


def priors(recipe: Recipe) -> dict[str, nn.Module]:
    encoders: Any = dict(recipe.guide.encoders.items())
    return {
        "mixture": GaussianMixture(2, 4),
        "flow": FlowPrior(2, 2, (16,)),
        "vamp": VampPrior(encoders, product_of_experts, 8),
        "diffusion": DiffusionPrior(2, width=32, blocks=1, steps=8),
    }


@pytest.mark.parametrize("kind", ["mixture", "flow", "vamp", "diffusion"])
def test_the_prior_moves_alone_and_the_data_become_likelier(kind: str) -> None:
    _, recipe, batch = trained()
    before = {n: p.clone() for part in recipe.modules.values() for n, p in part.named_parameters()}
    new = with_prior(recipe, priors(recipe)[kind].double())
    k = 20 if kind == "diffusion" else 500  # its density is dear
    start = log_marginal(new.model, new.guide, batch, k, seed=0).estimate.mean()
    steps(new, batch, *((500, 0.01) if kind == "diffusion" else (60, 0.05)))
    after = {n: p for part in recipe.modules.values() for n, p in part.named_parameters()}
    assert all(torch.equal(before[n], after[n]) for n in before)
    ev = log_marginal(new.model, new.guide, batch, k, seed=0)
    assert ev.estimate.mean() > start + 0.2
    assert ev.estimate[~batch.present()].abs().max() < 1e-12
    assert new.model.decoders["a"] is recipe.model.decoders["a"] and recipe.model.prior is not new.model.prior


def test_fit_runs_its_stage_and_the_old_recipe_is_what_it_was(tmp_path: Path) -> None:
    lg, recipe, batch = trained()
    exact = lg.log_marginal(batch)
    new = with_prior(recipe, GaussianMixture(2, 3).double(), epochs=2)
    loc = new.model.prior.loc.detach().clone()
    fit(new, batch, batch_size=50, progress=False)
    assert not torch.equal(new.model.prior.loc, loc)
    old = log_marginal(recipe.model, recipe.guide, batch, 2000, seed=0)
    assert (old.estimate - exact).abs().mean() < 0.1
    save(new, tmp_path)
    again = with_prior(variants.mvae(lg.modalities(), 2), GaussianMixture(2, 3), epochs=2)
    for module in again.modules.values():
        module.double()
    load(tmp_path, recipe=again)
    one, two = (log_marginal(r.model, r.guide, batch, 50, seed=3).estimate for r in (new, again))
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match="'mvae with GaussianMixture' is no variant"):
        load(tmp_path)


def test_private_latents_stay_where_they_are() -> None:
    """DMVAE: the new prior is that of z; a mixture of one standard normal changes no likelihood."""
    torch.manual_seed(0)
    lg = LG({"a": 3, "b": 2})
    recipe = variants.dmvae(lg.modalities(), 2, private=1)
    for module in recipe.modules.values():
        module.double()
    prior = GaussianMixture(2, 1).double()
    with torch.no_grad():
        prior.loc.zero_()
    new, batch = with_prior(recipe, prior), lg.data(20, missing=True)
    one = log_marginal(recipe.model, recipe.guide, batch, 2000, seed=0)
    two = log_marginal(new.model, new.guide, batch, 2000, seed=1)
    error = (one.estimate - two.estimate).abs()
    assert (error <= 5 * (one.se.square() + two.se.square()).sqrt() + 1e-9).all()
    steps(new, batch, 2, 0.1)
    assert bool((prior.loc != 0).all()) and set(generate(new.model, new.guide, batch, 2)) == {"a", "b"}


def test_what_cannot_be_done_is_said() -> None:
    lg = LG({"a": 3, "b": 2})
    recipe = variants.mvae(lg.modalities(), 2)
    with pytest.raises(ValueError, match="StandardNormal has no parameters of its own"):
        with_prior(recipe, recipe.model.prior)
    with pytest.raises(TypeError, match="Independent has no module `prior`"):
        with_prior(variants.mmvm(lg.modalities(), 2), GaussianMixture(2, 2))


@pytest.mark.parametrize("prior", [DiffusionPrior(2, width=8), FlowPrior(2)], ids=["diffusion", "flow"])
def test_rows_with_something_present_keep_their_posteriors(prior: nn.Module) -> None:
    """Means, and every score of retrieval, to the bit: the new prior stands where nothing is given, nowhere else."""
    _, recipe, batch = trained()
    rows = batch[batch.present()][:20]
    rows = Batch(rows.x)
    better = with_prior(recipe, prior.double())
    torch.testing.assert_close(
        encode(better.guide, rows, 3, seed=0).mean["z"], encode(recipe.guide, rows, 3, seed=1).mean["z"], rtol=0, atol=0
    )
    for score in (by_cosine, by_kl, by_wasserstein):
        old, new = (score(r.model, r.guide, rows, rows, ("b",), ("a",)) for r in (recipe, better))
        torch.testing.assert_close(new, old, rtol=0, atol=0)


def test_a_posterior_that_knows_its_mean_in_part_is_averaged_over_draws() -> None:
    _, recipe, batch = trained()
    better = with_prior(recipe, DiffusionPrior(2, width=8).double())
    with pytest.raises(NotImplementedError):
        _ = MixtureOf([better.model.prior(), better.model.prior()], torch.ones(2)).mean
    assert encode(better.guide, batch, 3, seed=0).mean["z"].isfinite().all()  # rows with nothing are among them


def test_nothing_is_drawn_from_a_prior_where_the_guide_knows_z() -> None:
    """What a diffusion would make is not asked for: its network is not run when z is the guide's in every row."""
    _, recipe, batch = trained()
    prior = DiffusionPrior(2, width=8).double()
    better, calls = with_prior(recipe, prior), []
    prior.velocity.register_forward_hook(lambda *_: calls.append(1))
    rows = batch[batch.present()]
    found = generate(better.model, recipe.guide, rows, 4, seed=0)
    assert not calls
    torch.testing.assert_close(found["a"].mean, generate(recipe.model, recipe.guide, rows, 4, seed=0)["a"].mean)
