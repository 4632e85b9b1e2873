"""Retrieval by hand, by a perfect and by a random model."""

import json
from functools import partial

import pytest
import torch

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation.retrieval import retrieve
from pyro_mm.evaluation.retrieval_density import by_likelihood
from pyro_mm.evaluation.retrieval_scores import by_cosine, by_kl, by_wasserstein

N = 60


def fixed(scores):
    return lambda model, guide, queries, gallery, of, given: scores


def batch(n=4, **masks):
    x = {"a": torch.arange(float(n)).unsqueeze(1), "b": torch.arange(float(n)).unsqueeze(1)}
    return Batch({**x, "label": torch.arange(n) % 2}, masks)


SCORES = torch.tensor([[4.0, 3.0, 2.0, 1.0], [9.0, 5.0, 5.0, 5.0], [1.0, 1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0]])


def test_by_hand():
    rows = batch()
    found = retrieve(None, None, rows, rows, of="b", given="a", score=fixed(SCORES), label="label", at=(1, 2, 4))
    # The own rows are first; second to fourth; fourth; anywhere.
    assert {k: m.value for k, m in found.recall.items()} == pytest.approx(
        {1: (1 + 0 + 0 + 1 / 4) / 4, 2: (1 + 1 / 3 + 0 + 1 / 2) / 4, 4: 1.0}
    )
    assert {k: m.chance for k, m in found.recall.items()} == {1: 0.25, 2: 0.5, 4: 1.0}
    assert found.median_rank.value == (2.5 + 3.0) / 2 and found.median_rank.chance == 2.5
    # Of class 0 the places are 1 and 3; and, of the third query, 4 and one of 2 and 3.
    third = (1 / 2 * (1 / 2 + 2 / 4) + 1 / 2 * (1 / 3 + 2 / 4)) / 2
    assert found.precision[0].value == pytest.approx(((1 + 2 / 3) / 2 + third) / 2)
    # Of class 1: two of places 2 to 4, and two of 1 to 4, at random.
    second = sum((1 / i + 2 / j) / 2 for i, j in ((2, 3), (2, 4), (3, 4))) / 3
    fourth = sum((1 / i + 2 / j) / 2 for i, j in ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))) / 6
    assert found.precision[1].value == pytest.approx((second + fourth) / 2)
    assert found.mean_precision.value == pytest.approx((found.precision[0].value + found.precision[1].value) / 2)
    assert found.mean_precision.chance == pytest.approx(fourth)
    assert found.best(2).tolist() == [[0, 1], [0, 1], [3, 0], [0, 1]]


@pytest.fixture(scope="module")
def truth():
    return LinearGaussian.random({"a": 8, "b": 8}, 4, seed=1, scales=0.01)


@pytest.mark.parametrize("score", [by_cosine, by_kl, by_wasserstein])
def test_an_exact_model_of_nearly_noiseless_views_finds_every_row(truth, score):
    rows = truth.sample(N, seed=2)
    found = retrieve(truth.model(), truth.exact_guide(), rows, rows, of="b", given="a", score=score)
    assert [m.value for m in found.recall.values()] == [1.0] * 3
    assert (found.median_rank.value, found.median_rank.low, found.median_rank.high) == (1.0, 1.0, 1.0)


def test_the_likelihood_ranks_as_the_oracle_does():
    truth = LinearGaussian.random({"a": 3, "b": 3}, 2, seed=1)
    rows = truth.sample(8, seed=2)
    i, j = torch.arange(8).repeat_interleave(8), torch.arange(8).repeat(8)
    exact = truth.log_conditional(Batch({"a": rows.x["a"][i], "b": rows.x["b"][j]}), "b", "a").view(8, 8)
    ask = partial(retrieve, truth.model(), truth.exact_guide(), rows, rows, of="b", given="a")
    found, oracle = ask(score=partial(by_likelihood, k=20_000)), ask(score=fixed(exact))
    assert {k: m.value for k, m in found.recall.items()} == {k: m.value for k, m in oracle.recall.items()}
    assert found.median_rank == oracle.median_rank and 0 < oracle.recall[1].value < 1
    assert found.score == "by_likelihood"


def test_a_model_that_ignores_its_input_gets_exactly_what_chance_gets():
    truth = LinearGaussian({m: torch.zeros(2, 2) for m in "ab"})
    rows = truth.sample(N, seed=2)
    rows = Batch({**rows.x, "label": torch.arange(N) % 3})
    for score in (by_cosine, by_kl, by_wasserstein):
        found = retrieve(None, truth.exact_guide(), rows, rows, of="b", given="a", score=score, label="label")
        for k, m in found.recall.items():
            assert (m.value, m.chance) == (pytest.approx(k / N), pytest.approx(k / N))
        for m in found.measures().values():
            assert m.value == pytest.approx(m.chance)
        assert found.median_rank.value == (N + 1) / 2


def test_random_scores_have_chance_in_their_intervals():
    noise = torch.rand(200, 200, generator=torch.Generator().manual_seed(3))
    rows = batch(200)
    found = retrieve(None, None, rows, rows, of="b", given="a", score=fixed(noise), label="label", level=0.99)
    assert found.recall[10].chance == 0.05
    for m in found.measures().values():
        assert m.low <= m.chance <= m.high


def test_the_order_of_gallery_and_queries_changes_nothing(truth):
    rows = truth.sample(6, seed=2)
    rows = Batch({**rows.x, "label": torch.arange(6) % 3}, {"b": torch.arange(6) != 1})
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    noisy = Batch(
        {**rows.x, "b": rows.x["b"] + torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).double()}, rows.mask
    )
    ask = partial(retrieve, truth.model(), truth.exact_guide(), of="b", given="a", label="label")
    found, other = ask(rows, noisy), ask(rows, noisy[order], pairs=order.argsort())
    for name, m in found.measures().items():
        assert other.measures()[name].to_json() == pytest.approx(m.to_json())
    both = ask(rows[order], noisy[order])
    assert {k: m.value for k, m in both.measures().items()} == pytest.approx(
        {k: m.value for k, m in found.measures().items()}
    )
    assert found.left_out == (0, 1) and found.paired == 5


def test_rows_that_lack_something_are_left_out():
    rows = batch(a=torch.tensor([True, True, True, False]), b=torch.tensor([True, False, True, True]))
    seen = {}

    def score(model, guide, queries, gallery, of, given):
        seen.update(q=queries, g=gallery)
        return -(queries.x["a"] - gallery.x["b"].mT).abs()

    found = retrieve(None, None, rows, rows, of="b", given="a", score=score, label="label")
    assert (found.queries, found.gallery, found.paired, found.left_out) == (3, 3, 2, (1, 1))
    assert found.recall[1].value == 1.0 and found.best(1).flatten().tolist()[::2] == [0, 2]
    assert not seen["q"].mask["b"].any() and not seen["g"].mask["a"].any()  # nothing leaks
    assert "left out for lack of a modality: 1 queries, 1 gallery rows" in repr(found)
    nowhere = batch(a=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"no query row has all of \['a'\]"):
        retrieve(None, None, nowhere, rows, of="b", given="a", score=score)


def test_classes_alone_need_no_pairs():
    rows = batch(label=torch.tensor([True, True, False, True]))
    found = retrieve(None, None, rows[:3], rows, of="b", given="a", score=fixed(SCORES[:3]), label="label")
    assert found.recall == {} and found.median_rank is None and found.paired == 0
    assert found.precision[0].value == 1.0  # the gallery has one such row left
    assert found.precision[1].value == pytest.approx(sum((1 / i + 2 / j) / 2 for i, j in ((2, 3), (2, 4), (3, 4))) / 3)


def test_it_prints_and_saves():
    rows = batch()
    found = retrieve(None, None, rows, rows, of="b", given="a", score=fixed(SCORES), label="label", at=(1,))
    lines = repr(found).splitlines()
    assert lines[0] == "b given a, <lambda>: 4 queries (4 with their own row) in a gallery of 4"
    assert lines[1].split() == ["measure", "value", "95%", "interval", "chance"]
    assert lines[2].startswith("R@1") and lines[2].endswith("25.0 %") and lines[-1].startswith("mAP of class 1")
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["recall"]["1"]["value"] == found.recall[1].value and plain["of"] == ["b"]
    assert set(plain["precision"]) == {"0", "1"} and "scores" not in plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"of": "a"}, "of some modalities given others"),
        ({"of": ()}, "of some modalities given others"),
        ({"given": "sound"}, r"the queries have no \['sound'\]"),
        ({"of": "sound"}, r"the gallery have no \['sound'\]"),
        ({"label": "sound"}, "have no 'sound' to take classes from"),
        ({"pairs": ()}, "give `pairs`"),
        ({"pairs": [0, 1, 2, 4]}, "0 to 3, or -1, for each of 4 queries"),
        ({"pairs": [0]}, "0 to 3, or -1, for each of 4 queries"),
        ({"score": fixed(SCORES[:2])}, r"must give numbers \(4, 4\)"),
        ({"score": fixed(SCORES.log().neg().log())}, "of them NaN"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    rows = batch()
    with pytest.raises(ValueError, match=message):
        retrieve(None, None, rows, rows, **{"of": "b", "given": "a", "score": fixed(SCORES), **change})
