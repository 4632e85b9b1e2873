"""The catalogue says what the pages and programs are, and its file is what it says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from pyro_mm import variants
from pyro_mm.catalogue import FAMILIES, NEEDS, Entry, _on_data, entries, family_of, in_families, markdown, number_of

PAGE = Path(__file__).parents[1] / "docs" / "catalogue.md"


@cache
def found() -> dict[str, Entry]:
    return {e.name: e for e in entries(numbers=False)}


def test_every_page_is_in_one_family_of_the_survey() -> None:
    listed = [n for _, names in in_families() for n in names]
    assert sorted(listed) == sorted(variants.__all__)
    for name in listed:
        assert family_of(name).startswith(FAMILIES), f"{name}: {family_of(name)}"


def test_every_page_names_its_paper_and_its_programs() -> None:
    for e in found().values():
        assert e.paper is not None and e.paper.year > 2012, e.name
        assert e.model.startswith("p(") and e.guide.startswith("q("), e.name
        assert all(e.objective), e.name


def test_the_entries_are_those_of_the_programs() -> None:
    e = found()
    assert e["mvae"].model == "p(z) p(a | z) p(b | z) p(c | z)" and e["mvae"].guide == "q(z | a, b, c)"
    assert e["dmvae"].model.startswith("p(z) p(w_a) p(a | z, w_a)")
    assert "q(w_a | a)" in e["dmvae"].guide
    assert (e["scan"].stages, e["jnf"].stages, e["mvae"].stages) == (2, 2, 1)


def test_which_rows_train_is_what_gradients_say() -> None:
    """Of every pattern of an image, a text and a label; the table that `pyro-mm list` reads agrees."""
    rows = {name: e.rows for name, e in found().items()}
    assert rows == {name: NEEDS.get(name, "any") for name in rows}
    assert rows["mvae"] == rows["jmvae"] == rows["telbo"] == "any"
    assert rows["cvae"] == rows["jnf"] == rows["jmvae_zero"] == "complete rows only"
    assert rows["vcca"] == "needs image"  # the guide of which sees the first modality only
    assert rows["m2"] == "needs image or text; label may be missing"  # semi-supervised, in other words
    assert rows["scan"] == "stage 1: needs image; stage 2: needs text or label"


def test_the_file_is_current() -> None:
    """All but what was checked, whose numbers differ in their last digits from machine to machine."""
    without = re.sub(r"^\* checked: .*$", "", PAGE.read_text(), flags=re.MULTILINE)
    fresh = markdown(list(found().values()))
    assert [x for x in without.splitlines() if x] == [x for x in fresh.splitlines() if x], (
        "run: pyro-mm list --markdown > docs/catalogue.md"
    )
    assert all(checked_in_the_file(name) for name in found())


NUMBER = re.compile(r"-?\d+\.\d+")
NO_LIKELIHOOD = ["cada_vae", "cvae", "jmvae_gan", "meme", "mfm", "mld", "mmvm", "mmvm_pairwise"]
CHEAP = ["avae", "codevae", "jmvae_kl", "mmvae", "mmvaeplus", "mopoe", "mvae", "mvtcae", "vae", "vcca", "wbvae"]


def checked_in_the_file(name: str) -> str:
    entry = rf"^### {name.replace('_', '-')}$(?:(?!^### ).)*?^\* checked: (.*?)$"
    shown = re.search(entry, PAGE.read_text(), re.M | re.S)
    assert shown is not None, name
    return shown[1]


def checked_now(name: str) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return number_of(*_on_data(getattr(variants, name)))


@pytest.mark.parametrize("name", NO_LIKELIHOOD)
def test_why_there_is_no_likelihood_is_in_the_file_word_for_word(name: str) -> None:
    assert checked_now(name) == checked_in_the_file(name)
    assert checked_in_the_file(name).startswith("no likelihood: ")


def test_all_others_have_a_number_in_the_file() -> None:
    for name in set(variants.__all__) - set(NO_LIKELIHOOD):
        assert NUMBER.search(checked_in_the_file(name)), name


@pytest.mark.parametrize("name", CHEAP)
def test_the_checked_numbers_are_in_the_file_and_right(name: str) -> None:
    """The text as it stands, its numbers to what another machine may make of the same seeds."""
    fresh, shown = checked_now(name), checked_in_the_file(name)
    assert NUMBER.sub("#", fresh) == NUMBER.sub("#", shown)
    numbers, others = ([float(x) for x in NUMBER.findall(text)] for text in (fresh, shown))
    assert numbers == pytest.approx(others, abs=0.02)
    if "exact" in fresh:
        estimate, exact, largest = numbers
        assert abs(estimate - exact) < 0.02 and largest < 0.15
    else:
        lower, upper = numbers
        assert lower <= upper + 0.02 < lower + 0.6


def test_a_page_is_one_page() -> None:
    pages = Path(variants.__file__).parent.glob("*.py")
    assert {p.name: n for p in pages if (n := len(p.read_text().splitlines())) > 120} == {}
