"""Priors of one system: likelihoods under a mixture against exact ones, gains by row, and the command."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.cli import main
from pyro_mm.models import FlowPrior, GaussianMixture
from pyro_mm.prior_zoo import OWN, PRIORS, PriorZoo, prior_zoo
from pyro_mm.recipe import Recipe
from pyro_mm.runs import open_run, train_run
from pyro_mm.settings import Settings
from tests.helpers.oracle import LG
from tests.test_post_hoc import trained

Found = tuple[LG, Recipe, Batch, PriorZoo]


@pytest.fixture(scope="module")
def zoo() -> Found:
    lg, recipe, batch = trained()
    priors = {"two parts": GaussianMixture(2, 2).double(), "flow": FlowPrior(2, 2, (16,)).double()}
    options = {"epochs": 40, "lr": 0.05, "batch_size": 50, "progress": False, "accelerator": "cpu"}
    return lg, recipe, batch, prior_zoo(recipe, priors, batch, batch, k=1000, seed=0, **options)


def exact(lg: LG, prior: GaussianMixture, batch: Batch) -> Tensor:
    """log sum_c pi_c N(x_S; W mu_c + b, W Sigma_c W' + s^2 I)."""
    found: list[Tensor] = []
    shares = prior().mixture_distribution.logits.log_softmax(-1)
    for row in range(len(batch)):
        names = [m for m in lg.dims if batch.mask[m][row]]
        w, b = torch.cat([lg.w[m] for m in names]), torch.cat([lg.b[m] for m in names])
        noise = torch.cat([lg.s[m] ** 2 * torch.ones(lg.dims[m], dtype=w.dtype) for m in names])
        x = torch.cat([batch.x[m][row] for m in names])
        parts = [
            MultivariateNormal(w @ loc + b, w @ (scale**2).diag() @ w.T + noise.diag()).log_prob(x)
            for loc, scale in zip(prior.loc, prior.scale, strict=True)
        ]
        found.append((torch.stack(parts) + shares).logsumexp(0))
    return torch.stack(found).detach()


def test_likelihoods_are_those_under_each_prior(zoo: Found) -> None:
    lg, recipe, batch, found = zoo
    rows = batch[batch.present()]
    mixture = found.priors["two parts"]
    for ev, truth in (
        (mixture.evidence, exact(lg, mixture.recipe.model.prior, rows)),
        (found.priors[OWN].evidence, lg.log_marginal(rows)),
    ):
        assert len(ev) == len(rows) < len(batch)  # rows that say nothing do not count
        assert ((ev.estimate - truth).abs() < 5 * ev.se + 0.02).all()
    summary = {s["prior"]: s for s in found.summary()}
    assert list(summary) == [OWN, "two parts", "flow"] and summary[OWN]["gain"] == 0
    gain = exact(lg, mixture.recipe.model.prior, rows) - lg.log_marginal(rows)
    assert summary["two parts"]["gain"] == pytest.approx(gain.mean().item(), abs=0.02) and gain.mean() > 0.5
    assert summary["two parts"]["gain_se"] == pytest.approx((gain.std() / len(rows) ** 0.5).item(), rel=0.1)
    assert summary["flow"]["gain"] > 0.5 and "joint coherence" in repr(found)
    assert recipe.model.prior is found.priors[OWN].recipe.model.prior


def test_mistakes_are_named() -> None:
    lg, recipe, batch = trained()
    with pytest.raises(ValueError, match="no prior is given"):
        prior_zoo(recipe, {}, batch, batch)
    with pytest.raises(ValueError, match="'as trained' is the name of"):
        prior_zoo(recipe, {OWN: GaussianMixture(2, 2)}, batch, batch)
    with pytest.raises(ValueError, match="prior 'unit': StandardNormal has no parameters of its own"):
        prior_zoo(recipe, {"unit": recipe.model.prior}, batch, batch, k=10)
    with pytest.raises(ValueError, match=r"'vamp' is made from the encoders .* jmvae has a JointEncoder"):
        PRIORS["vamp"](variants.jmvae(lg.modalities(), 2), 2, batch)


def test_the_command_fits_priors_to_a_run(tmp_path, capsys) -> None:
    folder = tmp_path / "a"
    train_run(Settings("mmvae", "digits", epochs=1, dim=3, batch_size=256), folder, progress=False, device="cpu")
    before = {n: p.clone() for n, p in open_run(folder).recipe.model.state_dict().items()}
    tiny = ["--epochs", "1", "-k", "20", "--rows", "10", "--device", "cpu", "--no-coherence"]
    assert main(["compare", str(folder), "--priors", "mixture", "flow", "vamp", *tiny]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["prior", "as", "mixture", "flow", "vamp"]
    assert said.count("+-") == 7
    assert all(torch.equal(p, before[n]) for n, p in open_run(folder).recipe.model.state_dict().items())
    assert main(["compare", str(folder), "--priors", "mixtrue", *tiny]) == 2
    assert "mixture" in capsys.readouterr().err
    assert main(["compare", "--priors", "flow", *tiny]) == 2
