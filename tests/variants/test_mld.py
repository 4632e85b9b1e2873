"""MLD: which parts are given in training, what counts, and that codes of one modality bring those of another."""

from __future__ import annotations

import pytest
import torch

from pyro_mm import likelihoods, networks, variants
from pyro_mm.batch import Batch
from pyro_mm.evaluation import NoLikelihood, encode, generate, log_marginal
from pyro_mm.modality import Modality
from pyro_mm.models.standardised import Scaler
from pyro_mm.objectives import masked_denoising
from pyro_mm.training import fit

SIZES = {"a": 1, "b": 2, "c": 3}


class Noted(torch.nn.Module):
    """A velocity that is 0, and keeps what it was asked."""

    def forward(self, z: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        self.z, self.angles = z, angles
        return torch.zeros_like(z)


class Codes(torch.nn.Module):
    def __init__(self, z: torch.Tensor, there: torch.Tensor) -> None:
        super().__init__()
        self.z, self.there = z, there

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return self.z, self.there


def test_parts_are_given_by_the_papers_law() -> None:
    """In a share of the rows a proper part of what is there, of every size alike; never all, never what is missing."""
    torch.manual_seed(0)
    n = 12_000
    there = torch.tensor([[True, True, True], [True, False, True], [False, True, False]]).repeat(n // 3, 1)
    z, velocity = torch.randn(n, 6), Noted()
    masked_denoising(Codes(z, there), velocity, SIZES, 0.8)(Batch({"x": z}))
    given = velocity.angles == 0
    assert not (given & ~there).any() and not (given.sum(-1) == there.sum(-1)).any()
    assert (velocity.angles[~there] == torch.pi / 2).all()
    complete, pairs, alone = (given[i::3].sum(-1) for i in range(3))
    error = 4 * (0.25 / (n / 3)) ** 0.5
    assert abs((complete == 0).float().mean() - 0.2) < error
    assert abs((complete == 1).float().mean() - 0.4) < error and abs((complete == 2).float().mean() - 0.4) < error
    assert abs((pairs == 1).float().mean() - 0.8) < error and not alone.any()
    each = given[0::3].float().mean(0)  # sizes 1 and 2 alike: every part is given in 0.4 (1/3 + 2/3) of the rows
    assert ((each - 0.4).abs() < error).all()
    wide = given.repeat_interleave(torch.tensor([1, 2, 3]), -1)
    assert torch.equal(velocity.z[wide], z[wide])
    free = velocity.angles[there & ~given]
    assert free.min() >= 0 and abs(free.mean() - torch.pi / 4) < 0.02


def test_the_error_counts_over_what_is_diffused_times_its_share() -> None:
    """With v = 0 the loss is the mean of D / |B| sum_B v_phi^2, about D in every row; absent parts have no say."""
    torch.manual_seed(0)
    n = 20_000
    z = torch.randn(n, 6)
    for there in ([True, True, True], [True, False, True]):
        rows = torch.tensor(there).expand(n, 3)
        loss = masked_denoising(Codes(z, rows), Noted(), SIZES, 0.5)(Batch({"x": z}))
        assert abs(loss - 6) < 0.15
    junk = z.clone()
    junk[:, 1:3] = 1e6
    losses = []
    for value in (z, junk):
        torch.manual_seed(1)
        losses.append(masked_denoising(Codes(value, rows), Noted(), SIZES, 0.5)(Batch({"x": z})))
    assert torch.equal(*losses)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\], got 2"):
        masked_denoising(Codes(z, rows), Noted(), SIZES, 2.0)


def test_codes_are_brought_to_mean_0_and_variance_1() -> None:
    torch.manual_seed(0)
    scaler, parts = Scaler(2), [torch.randn(n, 2) * torch.tensor([3.0, 0.1]) + 5 for n in (7, 1, 40)]
    rows = [torch.rand(len(p)) < 0.8 for p in parts]
    for part, kept in zip(parts, rows, strict=True):
        scaler.learn(torch.where(kept[:, None], part, torch.nan), kept)
    seen = torch.cat([p[k] for p, k in zip(parts, rows, strict=True)])
    torch.testing.assert_close(scaler.mean, seen.mean(0))
    torch.testing.assert_close(scaler.scale, seen.std(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scaler.restored(scaler(seen)), seen)
    scaler.learn(seen, torch.zeros(len(seen), dtype=torch.bool))
    torch.testing.assert_close(scaler.mean, seen.mean(0))


def test_older_rows_fade_where_memory_is_short() -> None:
    scaler, parts = Scaler(1), torch.randn(3, 100, 1) * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    for part in parts:
        scaler.learn(part, torch.ones(100, dtype=torch.bool), 50)
    # Of each earlier lot half of the weight is left, then half of 100 + 50 rows' ...
    squares = [(p - p.mean()).square().sum() for p in parts]
    first = (0.5 * squares[0] + squares[1], 0.5 * parts[0].sum() + parts[1].sum(), torch.tensor(150.0))
    between = (parts[0].mean() - parts[1].mean()).square() * 50 * 100 / 150
    total, mean = first[0] + between, first[1] / first[2]
    both = total / 3 + squares[2] + (mean - parts[2].mean()).square() * 50 * 100 / 150
    torch.testing.assert_close(scaler.scale, (both / 149).sqrt().view(1))
    scaler.learn(parts[0], torch.ones(100, dtype=torch.bool), 0)
    torch.testing.assert_close(scaler.scale, parts[0].std(0))


MODALITIES = [
    Modality("a", (2,), likelihoods.Normal(0.1), networks.MLP((16,))),
    Modality("b", (3,), likelihoods.Normal(0.1), networks.MLP((16,))),
]


def pairs(n: int, missing: bool = True) -> tuple[Batch, torch.Tensor]:
    """Two classes; a tells the class, and so does b, with a direction of its own that nothing else tells."""
    torch.manual_seed(3)
    side = torch.randint(0, 2, (n,)) * 2.0 - 1
    a = torch.stack([side, -side], -1) + 0.15 * torch.randn(n, 2)
    b = torch.stack([side, side, torch.zeros(n)], -1) + 0.15 * torch.randn(n, 3)
    b[:, 2] += torch.randn(n)
    rows = torch.arange(n)
    return Batch({"a": a, "b": b}, {"a": rows % 7 != 0, "b": rows % 5 != 0} if missing else None), side


def test_through_fit_one_modality_brings_the_other_and_a_run_resumes(tmp_path) -> None:
    torch.manual_seed(0)
    batch, _ = pairs(2000)
    recipe = variants.mld(MODALITIES, {"a": 1, "b": 2}, width=64, blocks=2, steps=8)
    options = {"lr": 5e-3, "batch_size": 100, "progress": False, "seed": 0}
    fit(recipe, batch, 15, folder=tmp_path / "run", **options)
    complete, side = pairs(400, missing=False)
    for given, wanted in (("a", "b"), ("b", "a")):
        made = generate(recipe.model, recipe.guide, complete.only(given), 1, seed=0)[wanted].mean[0]
        assert (made[:, 0].sign() == side).float().mean() > 0.97
    free = generate(recipe.model, recipe.guide, complete.only("a"), 1, seed=0)["b"].mean[0, :, 2]
    assert 0.7 < free.std() < 1.3  # what a does not tell is drawn, not averaged
    nothing = generate(recipe.model, recipe.guide, Batch.missing(MODALITIES, 500), 1, seed=0)
    agree = nothing["a"].mean[0, :, 0].sign() == nothing["b"].mean[0, :, 0].sign()
    assert agree.float().mean() > 0.9
    whole = encode(recipe.guide, complete, seed=0).draws["z"]
    assert (whole.std(1) - 1).abs().max() < 0.2
    with torch.no_grad():  # the second stage has scalers of its rows alone, and noise was of this size before it too
        raw = recipe.guide.codes.raw(batch)
    for m, code in raw.items():
        torch.testing.assert_close(recipe.guide.codes.scalers[m].scale, code[batch.mask[m]].std(0), rtol=2e-3, atol=0)
    with pytest.raises(NoLikelihood, match="MLD's autoencoders are trained to rebuild x"):
        log_marginal(recipe.model, recipe.guide, complete, 10)
    again = variants.mld(MODALITIES, {"a": 1, "b": 2}, width=64, blocks=2, steps=8)
    history = fit(again, batch, 15, folder=tmp_path / "run", resume=True, **options)
    assert len(history.rows) == 30
    state = recipe.guide.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in again.guide.state_dict().items())
