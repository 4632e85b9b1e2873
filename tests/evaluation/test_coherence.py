"""Accuracy of what is generated, on pairs and judges whose right answers are known."""

from __future__ import annotations

from itertools import combinations
from math import sqrt

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import TokenSequence
from pyro_mm.evaluation.coherence import conditions, cross_accuracy, generated, joint_coherence, typical
from pyro_mm.evaluation.generation import generate
from pyro_mm.likelihoods import Categorical, Normal
from pyro_mm.modality import Modality

CLASSES, N = 5, 600
NAMES = ("a", "b", "c", "label")
MODALITIES = (*(Modality(m, (2,), Normal(1.0)) for m in "abc"), Modality("label", (), Categorical(CLASSES)))


def written(classes: Tensor) -> Tensor:
    """Classes as points `(..., 2)`: the class, and its negative."""
    x = classes.to(torch.get_default_dtype())
    return torch.stack([x, -x], -1)


class Reads:
    """Reads the class off a point, without an error, and shifted by one in modality `c`."""

    label = "label"

    def classify(self, name: str, x: Tensor) -> Tensor:
        found = (x[:, 0].round().long() + (name == "c")) % CLASSES
        return nn.functional.one_hot(found, CLASSES).to(x.dtype)

    def features(self, name: str, x: Tensor) -> Tensor:
        return x


class Fair(Reads):
    """Reads every modality as it is."""

    def classify(self, name: str, x: Tensor) -> Tensor:
        return super().classify("b", x)


class Copies(nn.Module):
    """z is a class, uniform a priori; every modality writes it down, `a` at `right` (z, or else z + 1)."""

    names = NAMES

    def __init__(self, right: float = 1.0) -> None:
        super().__init__()
        self.right = right

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Categorical(torch.ones(CLASSES)))
            slip = pyro.sample("slip", dist.Bernoulli(torch.tensor(1 - self.right)))
            for m in "abc":
                loc = written((z + slip * (m == "a")) % CLASSES)
                with poutine.mask(mask=batch.mask[m]):
                    pyro.sample(m, dist.Normal(loc, 0.01).to_event(1), obs=batch.x[m])
            with poutine.mask(mask=batch.mask["label"]):
                logits = 9 * nn.functional.one_hot(z.long(), CLASSES).to(torch.get_default_dtype())
                pyro.sample("label", dist.Categorical(logits=logits), obs=batch.x["label"])


class Follows(nn.Module):
    """z ~ the class of the first modality that is present, with probability `sure[m]`, else the next class."""

    def __init__(self, **sure: float) -> None:
        super().__init__()
        self.sure = {m: sure.get(m, 1.0) for m in NAMES}

    def forward(self, batch: Batch) -> None:
        p = torch.full((len(batch), CLASSES), 1 / CLASSES)
        for m in reversed(NAMES):
            x = batch.x[m]
            truth = x.long() if m == "label" else x[:, 0].round().long()
            hot, wrong = (nn.functional.one_hot(t % CLASSES, CLASSES) for t in (truth, truth + 1))
            told = self.sure[m] * hot + (1 - self.sure[m]) * wrong
            p = torch.where(batch.mask[m].unsqueeze(-1), told, p)
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Categorical(p))


def rows(n: int = N, hide: dict[str, Tensor] | None = None) -> Batch:
    """The class in `c` is written as its judge reads it, one below."""
    y = torch.arange(n) % CLASSES
    x = {"a": written(y), "b": written(y), "c": written(y), "label": y}
    mask = {m: torch.ones(n, dtype=torch.bool) for m in NAMES} | (hide or {})
    return Batch(x, mask)


def test_conditions_are_all_non_empty_subsets_of_the_others() -> None:
    assert conditions(NAMES, "b") == [
        ("a",), ("c",), ("label",), ("a", "c"), ("a", "label"), ("c", "label"), ("a", "c", "label")
    ]  # fmt: skip
    assert [len(conditions("abcdef", "a")), conditions(["a"], "a")] == [31, []]


def test_every_target_and_set_has_its_known_accuracy() -> None:
    """`b` and the label are copied, `c` is read wrongly, and 28 pairs of target and set are there, each with its n."""
    found = cross_accuracy(Copies(), Follows(), Reads(), rows(), "label").found
    assert list(found) == [(m, s) for m in NAMES for s in conditions(NAMES, m)]
    assert len(found) == 28
    for (m, _), p in found.items():
        assert (p.value, p.n) == (0.0 if m == "c" else 1.0, N)
        assert p.se == 0


@pytest.mark.parametrize("k", [1, 4])
def test_a_known_probability_of_error_is_found(k: int) -> None:
    """From b alone z is right at 0.7; `a` slips at 0.2 besides: right at 0.7 x 0.8 (two errors make 2)."""
    found = cross_accuracy(Copies(0.8), Follows(b=0.7), Reads(), rows(3000), "label", [("b",), ("c",)], k)
    exact = {("a", ("b",)): 0.56, ("label", ("b",)): 0.7, ("a", ("c",)): 0.8, ("label", ("c",)): 1.0}
    for key, p in exact.items():
        assert found[key].value == pytest.approx(p, abs=4 * sqrt(p * (1 - p) / (3000 * k)) + 1e-12)
        q = found[key].value
        assert found[key].se == pytest.approx(sqrt(q * (1 - q) / 3000))
    assert found.mean("label", 1) == (found["label", ("b",)].value + found["label", ("c",)].value) / 2
    assert found.mean("label", 3) != found.mean("label", 3)  # nan


def test_rows_that_lack_the_label_or_a_source_do_not_count() -> None:
    """And rows that lack the target do: it is generated anyway."""
    i = torch.arange(N)
    hide = {"a": i % 2 == 0, "b": i % 3 == 0, "label": i < 500}
    batch = rows(hide=hide)
    batch.x["b"][~hide["b"]] = written(torch.tensor(99))  # would be judged wrong everywhere
    found = cross_accuracy(Copies(), Follows(), Reads(), batch, "label").found
    for (m, given), p in found.items():
        seen = torch.stack([batch.mask[s] for s in (*given, "label")]).all(0)
        assert (p.n, p.value) == (int(seen.sum()), 0.0 if m == "c" else 1.0)
    assert found["c", ("a", "b")].n == int((i[:500] % 6 == 0).sum())


def test_the_target_and_what_is_not_given_stay_hidden() -> None:
    """A guide that trusts `a` first, and `a` holds a wrong class: only sets with `a` in them may suffer."""
    batch = rows()
    batch = Batch({**batch.x, "a": written((batch.x["label"] + 1) % CLASSES)}, batch.mask)
    found = cross_accuracy(Copies(), Follows(), Reads(), batch, "label").found
    for m, given in found:
        if m in ("b", "label"):
            assert found[m, given].value == (0.0 if "a" in given else 1.0)


def test_chunks_change_nothing_where_nothing_is_drawn_and_share_no_noise_where_it_is() -> None:
    sure = [cross_accuracy(Copies(), Follows(), Reads(), rows(12), "label", chunk=c).found for c in (1, 5, 12, 99)]
    assert sure[0] == sure[1] == sure[2] == sure[3]
    parts = generated(Copies(), Follows(b=0.5), rows(400).only("b"), ["label"], 3, chunk=300)
    where, made = zip(*parts, strict=True)
    assert [(s.start, s.stop) for s in where] == [(0, 100), (100, 200), (200, 300), (300, 400)]
    assert all(v["label"].shape == (3, 100) for v in made)
    wrong = [v["label"] != torch.arange(400)[s] % CLASSES for s, v in zip(where, made, strict=True)]
    assert not any(torch.equal(x, y) for x, y in combinations(wrong, 2))


def test_a_seed_repeats_and_the_callers_random_state_stays() -> None:
    args = (Copies(0.6), Follows(a=0.5, b=0.5), Reads(), rows(), "label")
    before = torch.random.get_rng_state()
    for sample in (False, True):
        found = [cross_accuracy(*args, sample=sample, seed=s).found for s in (3, 3, 4)]
        assert found[0] == found[1] != found[2]
        joint = [
            joint_coherence(Copies(0.6), Follows(), Fair(), MODALITIES, 300, sample=sample, seed=s) for s in (3, 3, 4)
        ]
        assert joint[0] == joint[1] != joint[2]
    assert torch.equal(before, torch.random.get_rng_state())


class Broad(Copies):
    """One modality x ~ N(z, 30): its mean says the class, its draws say nothing."""

    names = ("a", "label")

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Categorical(torch.ones(CLASSES)))
            pyro.sample("slip", dist.Bernoulli(torch.tensor(0.0)))
            pyro.sample("a", dist.Normal(written(z), 30.0).to_event(1))
            pyro.sample("label", dist.Categorical(torch.ones(CLASSES)))


def test_the_mean_is_judged_and_a_draw_on_request() -> None:
    mean, draw = (
        cross_accuracy(Broad(), Follows(), Reads(), rows(2000), "label", [("label",)], sample=s)["a", ("label",)].value
        for s in (False, True)
    )
    assert mean == 1.0
    assert draw == pytest.approx(1 / CLASSES, abs=4 * sqrt(0.16 / 2000) + 0.01)


def test_typical_values_are_means_of_numbers_and_modes_of_names() -> None:
    """Pixels keep their grey mean; a Bernoulli or Binomial is no label, though its values can be listed."""
    p = torch.tensor([0.2, 0.7])
    assert torch.equal(typical(dist.Bernoulli(p).to_event(1)), p)
    torch.testing.assert_close(typical(dist.Binomial(16, p).to_event(1)), 16 * p)
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, -1.0, -2.0]])
    assert typical(dist.Categorical(logits=logits)).tolist() == [1, 0]
    assert typical(dist.Categorical(logits=logits).to_event(1)).tolist() == [1, 0]
    assert typical(dist.OneHotCategorical(logits=logits)).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert typical(TokenSequence(logits)).tolist() == [1, 0]


class Chain(nn.Module):
    """z ~ N(0, 1), z_a ~ N(z, 1), a ~ N(z_a, 1)."""

    names = ("a",)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            z_a = pyro.sample("z_a", dist.Normal(z, 1.0))
            pyro.sample("a", dist.Normal(z_a, 1.0))


def test_means_are_handed_on() -> None:
    """The decoder's mean z_a has variance 2, at the mean of p(z_a | z) only 1; both are what `generate` gives."""
    batch = Batch({"a": torch.zeros(4000)}).only()
    for means, variance in (((), 2.0), (("z_a",), 1.0)):
        parts = [v["a"] for _, v in generated(Chain(), lambda b: None, batch, ["a"], means=means, chunk=1000)]
        assert torch.cat(parts, 1).var().item() == pytest.approx(variance, rel=4 * sqrt(2 / 4000))
        whole = generate(Chain(), lambda b: None, batch[:1000], means=means, seed=0)["a"].mean
        assert torch.equal(parts[0], whole)


def test_joint_coherence_is_the_share_of_draws_that_agree() -> None:
    n = 2000
    for right in (1.0, 0.7):
        found = joint_coherence(Copies(right), Follows(), Fair(), MODALITIES, n)
        assert found.value == pytest.approx(right, abs=4 * sqrt(right * (1 - right) / n))
        assert (found.n, found.se) == (n, sqrt(found.value * (1 - found.value) / n))
    assert joint_coherence(Copies(), Follows(), Reads(), MODALITIES, 50).value == 0.0  # `c` is always read wrongly


def test_one_hot_labels_count_as_the_classes_they_are() -> None:
    class OneHot(Copies):
        names = ("b", "label")

        def forward(self, batch: Batch) -> None:
            with pyro.plate("data", len(batch), dim=-1):
                z = pyro.sample("z", dist.Categorical(torch.ones(CLASSES)))
                pyro.sample("slip", dist.Bernoulli(torch.tensor(0.0)))
                pyro.sample("b", dist.Normal(written(z), 1.0).to_event(1))
                hot = nn.functional.one_hot(z, CLASSES).to(torch.get_default_dtype())
                pyro.sample("label", dist.OneHotCategorical(logits=9 * hot))

    class Guide(nn.Module):
        def forward(self, batch: Batch) -> None:
            seen = torch.where(batch.mask["b"], batch.x["b"][:, 0].long(), batch.x["label"].argmax(-1))
            with pyro.plate("data", len(batch), dim=-1):
                pyro.sample("z", dist.Categorical(nn.functional.one_hot(seen, CLASSES).double()))

    y = torch.arange(20) % CLASSES
    batch = Batch({"b": written(y), "label": nn.functional.one_hot(y, CLASSES).to(torch.get_default_dtype())})
    found = cross_accuracy(OneHot(), Guide(), Reads(), batch, "label").found
    assert {key: p.value for key, p in found.items()} == {("b", ("label",)): 1.0, ("label", ("b",)): 1.0}


def test_errors_say_what_is_missing() -> None:
    pair = (Copies(), Follows(), Reads())
    with pytest.raises(ValueError, match=r"label 'digit'; the batch has \['a', 'b', 'c', 'label'\]"):
        cross_accuracy(*pair, rows(5), "digit")
    for bad in (("a", "x"), (), "ab"):
        with pytest.raises(ValueError, match=r"names out of \['a', 'b', 'c', 'label'\]"):
            cross_accuracy(*pair, rows(5), "label", [bad])
    with pytest.raises(ValueError, match="from nothing else in these rows"):
        cross_accuracy(*pair, rows(5, {"label": torch.zeros(5).bool()}), "label")
    alone = Chain()
    with pytest.raises(ValueError, match=r"two modalities or more; this one is of \['a'\]"):
        joint_coherence(alone, lambda b: None, Reads(), MODALITIES[:1])
    with pytest.raises(ValueError, match=r"generates no \['b'\]"):
        next(generated(alone, lambda b: None, Batch({"a": torch.zeros(3)}), ["b"]))
