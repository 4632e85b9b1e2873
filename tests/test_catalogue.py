"""The catalogue says what the pages and programs are, and its file is what it says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from pyro_mm import variants
from pyro_mm.catalogue import FAMILIES, TOY, Entry, entries, family_of, in_families, markdown, number_of

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
    assert e["mvae"].partial and not e["vcca"].partial  # the guide of which sees the first modality only


def test_the_file_is_current() -> None:
    """All but the checked numbers, which differ in their last digits from machine to machine."""
    without = re.sub(r"^\* checked: .*$", "", PAGE.read_text(), flags=re.MULTILINE)
    fresh = markdown(list(found().values()))
    assert [x for x in without.splitlines() if x] == [x for x in fresh.splitlines() if x], (
        "run: pyro-mm list --markdown > docs/catalogue.md"
    )


@pytest.mark.parametrize("name", ["mvae", "mopoe", "jmvae_kl"])
def test_the_checked_number_is_in_the_file_and_right(name: str) -> None:
    recipe = getattr(variants, name)(TOY.modalities, 2)
    for module in recipe.modules.values():
        module.double()
    fresh = number_of(recipe, TOY.sample(50, seed=2))
    shown = re.search(rf"^### {name.replace('_', '-')}$.*?^\* checked: (.*?)$", PAGE.read_text(), re.M | re.S)
    assert shown is not None
    for text in (fresh, shown[1]):
        estimate, exact, largest = map(float, re.findall(r"-?\d+\.\d+", text)[:3])
        assert abs(estimate - exact) < 0.02 and largest < 0.15


def test_a_page_is_one_page() -> None:
    pages = Path(variants.__file__).parent.glob("*.py")
    assert {p.name: n for p in pages if (n := len(p.read_text().splitlines())) > 120} == {}
