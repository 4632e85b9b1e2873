"""JNF's two stages: the published losses, a joint VAE that the second one leaves as it is, and what is generated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mm import data, plots, variants
from pyro_mm.batch import Batch
from pyro_mm.cli import main
from pyro_mm.evaluation import generate
from pyro_mm.judges import Judges
from pyro_mm.metrics import evaluate_metrics
from pyro_mm.models import GaussianMixture
from pyro_mm.post_hoc import with_prior
from pyro_mm.runs import train_run
from pyro_mm.settings import Settings
from pyro_mm.training import State, fit
from tests.helpers.hierarchies import hidden, modalities
from tests.helpers.training import same, values
from tests.variants.test_published_losses import SIZES, likelihood, made

SMALL = Settings("jnf", "digit_halves", epochs=1, dim=3, batch_size=256)


def test_the_stages_are_the_published_ones() -> None:
    """ELBO(X), then -sum_m E_{q(z|X)} log q_m(z|x_m), and log q(z|X) besides, which no flow can change."""
    recipe, batch = made("jnf", width=8, hidden=(8,), beta=0.5)
    batch = hidden(batch, 1)
    for stage in recipe.stages:
        stage.objective.double()
    first, second = (stage.objective for stage in recipe.stages)
    guide, complete = recipe.guide, torch.stack([batch.mask[m] for m in SIZES]).all(0)
    q, prior = guide.joint.posterior(batch), recipe.model.prior()

    def elbo_by_hand() -> Tensor:
        z = q.rsample()
        bound = sum(likelihood(recipe, batch, m, z) for m in SIZES) - 0.5 * kl_divergence(q, prior.expand((30,)))
        return -torch.where(complete, bound, 0.0).mean()

    def flows_by_hand() -> Tensor:
        total: Tensor | float = 0.0
        for m in SIZES:
            z = q.rsample()
            u, volume = guide.flows[m](z)
            total = total + q.log_prob(z) - guide.encoders[m](batch.x[m]).log_prob(u) - volume
        return torch.where(complete, total, 0.0).mean()

    for ours, theirs in ((first, elbo_by_hand), (second, flows_by_hand)):
        torch.manual_seed(3)
        one = ours(batch)
        torch.manual_seed(3)  # the same draws
        torch.testing.assert_close(one, theirs())


def test_the_second_stage_moves_nothing_but_encoders_and_flows() -> None:
    torch.manual_seed(0)
    recipe = variants.jnf(modalities(SIZES), 2, width=8, hidden=(8,))
    data = Batch({m: torch.randn(16, d) for m, d in SIZES.items()})
    parts = {"vae": (recipe.model, recipe.guide.joint), "flows": (recipe.guide.encoders, recipe.guide.flows)}
    for stage, moves in zip(recipe.stages, ("vae", "flows"), strict=True):
        before = {k: values(*v) for k, v in parts.items()}
        fit([stage], data, epochs=1, batch_size=16, seed=0)
        assert [k for k, v in parts.items() if not same(before[k], values(*v))] == [moves]


def test_a_run_that_stops_in_the_second_stage_goes_on(tmp_path) -> None:
    """To the bit: the flows' optimiser, the order of rows and the noise are those of the run that was not stopped."""

    class Stop:
        def on_epoch(self, state: State) -> None:
            if (state.stage, state.epoch) == ("flows", 1):
                raise KeyboardInterrupt

    data = Batch({m: torch.randn(16, d, generator=torch.Generator().manual_seed(1)) for m, d in SIZES.items()})
    ends = []
    for runs in ((), (Stop(),)):
        torch.manual_seed(0)
        recipe = variants.jnf(modalities(SIZES), 2, width=8, hidden=(8,))
        folder, options = tmp_path / str(len(runs)), {"epochs": 3, "batch_size": 8, "seed": 0, "progress": False}
        if runs:
            assert fit(recipe, data, folder=folder, callbacks=runs, **options).interrupted
            torch.manual_seed(0)
            recipe = variants.jnf(modalities(SIZES), 2, width=8, hidden=(8,))
        history = fit(recipe, data, folder=folder, resume=True, **options)
        ends.append((values(recipe.model, recipe.guide), history["loss"]))
    assert same(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1] and len(ends[0][1]) == 6


def test_what_is_generated_comes_from_the_product_of_flows(tmp_path) -> None:
    """In metrics, on the command line and in figures; likelihoods, and what has another prior, keep the guide."""
    run = train_run(SMALL, tmp_path / "a", progress=False, device="cpu")
    recipe, judges = run.recipe, Judges(run.splits.modalities, "label", 10)
    recipe.sampler.effort = replace(recipe.sampler.effort, warmup=3, steps=3, leaps=2, chains=2)
    few, before = run.splits.test[:5], values(recipe.model, recipe.guide)

    def chains_ran() -> bool:
        acceptance, recipe.sampler.acceptance = recipe.sampler.acceptance, torch.empty(0)
        return bool((acceptance > 0).any())

    assert recipe.drawing is recipe.sampler and not chains_ran()
    plots.cross_generation(recipe, few, sets=[("top", "bottom")])
    assert chains_ran()
    plots.interpolation(recipe, few.only("top", "bottom"))
    assert chains_ran()
    plots.traversal(recipe, few)
    assert not chains_ran()
    evaluate_metrics(run, ["coherence"], judges, 5, draws=5)
    assert recipe.sampler.program is recipe.guide and same(before, values(recipe.model, recipe.guide))
    assert with_prior(recipe, GaussianMixture(3, 2)).sampler is None


def test_the_command_line_generates_from_the_product(tmp_path) -> None:
    recipe = train_run(SMALL, tmp_path / "a", progress=False, device="cpu").recipe
    asked = ["--given", "top,bottom", "--rows", "0", "1", "-k", "3", "--seed", "4"]
    assert main(["generate", str(tmp_path / "a"), *asked, "--out", str(tmp_path / "made.npz")]) == 0
    rows = data.digit_halves().test[[0, 1]].only("top", "bottom")
    with np.load(tmp_path / "made.npz") as made:
        for guide, equal in ((recipe.drawing, True), (recipe.guide, False)):
            p = generate(recipe.model, guide, rows, 3, seed=4)["label"].probs.mean(0)
            assert np.allclose(made["probabilities.label"], p.detach().numpy(), atol=1e-5) == equal
