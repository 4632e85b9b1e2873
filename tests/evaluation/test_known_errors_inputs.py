"""Mistakes in what enters a likelihood (docs/traps.md): the wrong rows, and densities of another width."""

from __future__ import annotations

import hashlib
import inspect
from functools import cache
from pathlib import Path

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from pyro_mm import likelihoods as L
from pyro_mm.batch import Batch
from pyro_mm.data import Binarised, Splits, available, mnist_grey
from pyro_mm.distributions import Mixture
from tests.helpers.estimates import lme

# E12: which rows are scored.


def hashes(batch: Batch, *names: str) -> set[str]:
    """Of every row's present values in these modalities (default: all)."""
    chosen = names or batch.names
    found = set()
    for row in range(len(batch)):
        digest = hashlib.sha256()
        for m in chosen:
            digest.update(batch.x[m][row].numpy().tobytes() if batch.mask[m][row] else b"missing")
        found.add(digest.hexdigest())
    return found


BINARY = ("mnist", "mnist_halves", "mnist_quadrants")  # the rows of mnist_grey, drawn as black or white


def parts(splits: Splits) -> dict[str, Batch]:
    train = splits.train.batch if isinstance(splits.train, Binarised) else splits.train_batch()
    return {"train": train, "validation": splits.validation, "test": splits.test}


def test_e12_a_truthy_string_chooses_the_training_rows() -> None:
    """multi-view-AE's benchmark: `load(train=...)` was given "train" or "test", and both are true."""
    splits = available()["digits"]()

    def load(train: object) -> Batch:
        return splits.train_batch() if train else splits.test

    memory, wrong, right = (b.x["image"].flatten(1).double() for b in (splits.train_batch(), load("test"), splits.test))
    assert hashes(load("test")) == hashes(splits.train_batch()), "all of it was trained on"

    def remembered(x: Tensor) -> float:
        """Mean log-density of a Parzen window round every training row, what a model that overfits is like."""
        window = dist.Normal(memory, 2.0).to_event(1)
        return torch.stack([lme(window.log_prob(row)) for row in x[:200]]).mean().item()

    assert remembered(wrong) - remembered(right) > 20
    assert hashes(splits.test).isdisjoint(hashes(splits.train_batch()))


MADE = {n for n in available() if n.startswith(("mhd", "farsi", "poly"))}  # paired and drawn, not read: tests/data


ABSENT = {"celeba", "fashion_mnist", "fashion_mnist_grey", "kmnist"}  # in miniature: tests/data


@pytest.mark.parametrize("name", [n for n in available() if n not in MADE | ABSENT])
def test_e12_no_row_is_in_two_splits(name: str, request: pytest.FixtureRequest) -> None:
    """Of the binarised sets: their rows are those of the grey one, in the same split and order."""
    make = available()[name]
    if "root" not in inspect.signature(make).parameters:
        found = parts(make())
    else:
        root: Path = request.getfixturevalue("data_root") / {"kannada_mnist": name}.get(name, "mnist")
        found = parts(make(root))
        if name in BINARY:
            grey = grey_rows(root)
            for split, batch in found.items():
                assert_same_rows(batch, grey[split])
            return
    rows = {split: hashes(b, *(m for m in b.names if m != "label")) for split, b in found.items()}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert rows[one].isdisjoint(rows[other]), (one, other)
    assert min(map(len, rows.values())) > 100


@cache
def grey_rows(root: Path) -> dict[str, Batch]:
    return parts(mnist_grey(root))


def assert_same_rows(cut: Batch, grey: Batch) -> None:
    """Labels agree, black stays black and white white, wherever the pieces of an image were stored."""
    assert torch.equal(cut.x["label"], grey.x["label"])
    pieces = [cut.x[m] for m in cut.names if m != "label"]
    if len(pieces) == 4:
        pieces = [torch.cat(pieces[:2], -1), torch.cat(pieces[2:], -1)]
    image, whole = torch.cat(pieces, -2).float(), grey.x["image"]
    top = image.max().item()
    assert bool((image[whole == 0] == 0).all()) and bool((image[whole == 1] == top).all())


# E17: densities whose width is read wrongly.

RAW = torch.tensor([0.8, -0.4, 1.1]).double()
X = RAW + torch.tensor([0.1, -0.2, 0.3])
LEARNT = torch.tensor([-0.7, -0.2, -0.5]).double()


def logp(likelihood: L.Likelihood, raw: Tensor, x: Tensor, shape: tuple[int, ...] = (3,), **learnt: Tensor) -> float:
    return likelihood(raw, shape, **learnt).log_prob(x).item()


WIDE = {
    "fixed normal": (L.Normal(0.4), {}, 0.4, scipy.stats.norm),
    "learnt normal": (L.Normal(), {"log_scale": LEARNT[0]}, LEARNT[0].exp(), scipy.stats.norm),
    "normal, one per element": (L.Normal(shared=False), {"log_scale": LEARNT}, LEARNT.exp(), scipy.stats.norm),
    "fixed Laplace": (L.Laplace(0.75), {}, 0.75, scipy.stats.laplace),
    "learnt Laplace": (L.Laplace(None), {"log_scale": LEARNT[0]}, LEARNT[0].exp(), scipy.stats.laplace),
    "Laplace, one per element": (L.Laplace(None, False), {"log_scale": LEARNT}, LEARNT.exp(), scipy.stats.laplace),
}


@pytest.mark.parametrize("name", WIDE)
def test_e17_scale_is_neither_covariance_nor_variance_nor_its_logarithm(name: str) -> None:
    """multi-view-AE took a scale for a covariance (-3.031 for -3.474), the toolkit of Sejnova et al. a variance for
    its logarithm.
    """
    likelihood, learnt, scale, family = WIDE[name]
    exact = family.logpdf(X, RAW, scale).sum()
    assert logp(likelihood, RAW, X, **learnt) == pytest.approx(exact, abs=1e-6)
    s = torch.as_tensor(scale).double()
    for misread in (s.sqrt(), (0.5 * s**2).exp()):
        assert abs(family.logpdf(X, RAW, misread).sum() - exact) > 0.1


def test_e17_every_likelihood_with_a_scale_is_here() -> None:
    scaled = {n for n in L.__all__ if "scale" in getattr(getattr(L, n), "__dataclass_fields__", {})}
    assert scaled == {type(likelihood).__name__ for likelihood, *_ in WIDE.values()}


def test_e17_other_likelihoods_are_their_textbook_densities() -> None:
    count, rate = torch.tensor([2.0, 0.0, 5.0]).double(), nn.functional.softplus(RAW) + 1e-6
    binary, share = torch.tensor([1.0, 0.0, 1.0]).double(), RAW.sigmoid()
    size = LEARNT.exp()
    cases = [
        (logp(L.Bernoulli(), RAW, binary), scipy.stats.bernoulli.logpmf(binary, share).sum()),
        (logp(L.Binomial(9), RAW, count), scipy.stats.binom.logpmf(count, 9, share).sum()),
        (logp(L.Poisson(), RAW, count), scipy.stats.poisson.logpmf(count, rate).sum()),
        (
            logp(L.NegativeBinomial(), RAW, count, log_r=LEARNT),
            scipy.stats.nbinom.logpmf(count, size, size / (size + rate)).sum(),
        ),
        (logp(L.Categorical(3), RAW, torch.tensor(2), ()), RAW.log_softmax(-1)[2].item()),
        (logp(L.OneHotCategorical(), RAW, torch.tensor([0.0, 1, 0]).double()), RAW.log_softmax(-1)[1].item()),
    ]
    for found, exact in cases:
        assert found == pytest.approx(float(exact), abs=1e-6)


@pytest.mark.parametrize(("family", "textbook"), [(dist.Normal, scipy.stats.norm), (dist.Laplace, scipy.stats.laplace)])
def test_e17_a_mixture_has_the_width_it_is_given(family: type, textbook: object) -> None:
    torch.manual_seed(0)
    loc, scale, z = torch.randn(4, 3).double(), 0.2 + torch.rand(4, 3).double(), torch.randn(50, 3).double()
    share = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)

    def density(width: Tensor) -> Tensor:
        each = textbook.logpdf(z[:, None], loc, width).sum(-1)  # type: ignore[attr-defined]
        return torch.logsumexp(torch.as_tensor(each) + share.log(), -1)

    torch.testing.assert_close(Mixture(loc, scale, share, family).log_prob(z), density(scale), rtol=0, atol=1e-10)
    for misread in (scale.sqrt(), (0.5 * scale**2).exp()):
        assert (density(misread) - density(scale)).abs().mean().item() > 0.3
