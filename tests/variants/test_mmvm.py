"""MMVM: the paper's divergence, that of the code, and a missing modality's latent, which is another one's."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from pyro_mm.evaluation import generate
from tests.helpers.oracle import z_scores
from tests.variants.exact_rows import BETA, COUNT, LAMBDA, STANDARD, Row, made


@pytest.mark.parametrize("missing", [False, True])
def test_mmvm_has_the_divergence_to_the_mixture_of_the_posteriors(missing: bool) -> None:
    """KL(q_m || h), h = mean of the present posteriors, by quadrature over one latent each."""
    recipe, batch, _ = made("mmvm", missing, dim=1, beta=BETA, weights=LAMBDA)
    grid = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
    truth = torch.zeros((), dtype=torch.float64)
    for i in range(len(batch)):
        row = Row(recipe, batch, i)
        logs = {m: Normal(*row.expert[m]).log_prob(grid) for m in row.seen}
        for m, q in logs.items():
            h = torch.stack(list(logs.values())).logsumexp(0) - torch.tensor(float(len(logs))).log()
            divergence = (q.exp() * (q - h)).sum() * (grid[1] - grid[0])
            truth = truth - (row.likelihood(row.expert[m], m) - BETA * divergence) / len(batch)
    torch.manual_seed(1)
    values = torch.stack([recipe.objective(batch[torch.arange(len(batch)).repeat(100)]).detach() for _ in range(40)])
    assert z_scores(values, truth.detach()).abs() < 4
    assert values.std() / 40**0.5 < 0.01 * truth.abs()


def test_mmvm_gives_a_missing_modality_the_latent_of_another_one() -> None:
    """Present: its own posterior.  Missing: the mean of those that are present.  Nothing present: N(0, I)."""
    recipe, batch, _ = made("mmvm", True)
    rows = [Row(recipe, batch, i) for i in range(len(batch))]
    z = torch.randn(len(batch), 2, dtype=torch.float64)
    for m, q in recipe.guide.posteriors(batch).items():
        found = q.log_prob(z)
        for i, row in enumerate(rows):
            experts = [row.expert[m]] if m in row.seen else row.present() or [STANDARD]
            each = torch.stack([Normal(*e).log_prob(z[i]).sum() for e in experts])
            torch.testing.assert_close(found[i], each.logsumexp(0) - torch.tensor(float(len(experts))).log())
    # What is generated of c from a alone is decoded from q_a's draws.
    made_of = generate(recipe.model, recipe.guide, batch.only("a"), 4000, seed=0)["c"].mean.mean(0)
    decoder = recipe.model.decoders["c"].net[0]
    for row, found in zip(rows, made_of, strict=True):
        if "a" in row.seen:
            torch.testing.assert_close(found, decoder(row.expert["a"][0]), atol=0.15, rtol=0)


def test_the_pairwise_divergence_of_mmvm_has_no_limit_where_the_papers_does() -> None:
    """KL(q_m || h) is at most log M; posteriors far apart make the mean pairwise KL as large as one likes."""
    found = []
    for name in ("mmvm", "mmvm_pairwise"):
        recipe, batch, _ = made(name, False)
        with torch.no_grad():
            for i, encoder in enumerate(recipe.guide.encoders.values()):
                encoder.net[1].bias[:2] = 30.0 * i
        found.append(recipe.objective.terms[1](batch).item())
    assert found[0] <= COUNT * torch.tensor(float(COUNT)).log() + 0.05
    assert found[1] > 100
