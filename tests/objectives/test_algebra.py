"""Objectives add and scale like formulas, and print as them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.guides import Experts, mixture_of_products, product_of_experts
from pyro_mm.handlers import RandomSubsets, frozen, given, in_subsets, particles
from pyro_mm.modality import encoders
from pyro_mm.objectives import Objective, Term, Warmup, componentwise_elbo, dreg, elbo, iwae, kl, looser, nll
from pyro_mm.objectives.formula import tex
from tests.helpers.oracle import LG, gradients

BATCH = Batch({"x": torch.zeros(2)})


class Number(Term):
    """A loss that is one parameter squared."""

    def __init__(self, value: float, label: str = "f", sign: int = -1) -> None:
        super().__init__()
        self.value, self.label, self.sign = nn.Parameter(torch.tensor(value)), label, sign

    def forward(self, batch: Batch) -> Tensor:
        self.report = {"": self.sign * self.value.detach() ** 2, "part": self.value.detach()}
        return self.value**2


def number(value: float, label: str = "f", sign: int = -1) -> Objective:
    return Objective([(1.0, Number(value, label, sign))])


def test_sums_products_and_differences_are_what_they_say():
    a, b, c = number(2.0), number(3.0), number(5.0)
    for objective, value in (
        (a + b, 13.0),
        (a - b, -5.0),
        (2 * a, 8.0),
        (a * 0.5 + b, 11.0),
        (-(a + b), -13.0),
        (a / 4, 1.0),
        (2 * (a + 3 * b) - c / 5, 57.0),
        (sum([a, b, c]), 38.0),
        (a + 0.1 * sum([]), 4.0),
        (0.5 * sum([2 * a, b - c]), -4.0),
        (a + a, 8.0),
        (np.float64(2.0) * a, 8.0),
        (np.float32(2.0) * a, 8.0),
        (a * True, 4.0),
    ):
        assert isinstance(objective, Objective)
        assert objective(BATCH).item() == pytest.approx(value)


def test_gradients_carry_the_weights():
    a, b = number(2.0), number(3.0)
    objective = 2 * (a - 4 * b) + a
    found = gradients(objective(BATCH), nn.ModuleList([a, b]))
    assert [g.item() for g in found.values()] == [3 * 4.0, -8 * 6.0]
    assert len(list(objective.parameters())) == 2  # a term that occurs twice trains once


@pytest.mark.parametrize(
    "bad",
    [
        lambda a: a * a,
        lambda a: a + 1,
        lambda a: a - 1,
        lambda a: "2" * a,
        lambda a: a / a,
        lambda a: [1] * a,
        lambda a: a + torch.ones(()),
    ],
    ids=["a*a", "a+1", "a-1", "str*a", "a/a", "list*a", "a+tensor"],
)
def test_what_is_no_formula_is_a_type_error(bad):
    with pytest.raises(TypeError):
        bad(number(2.0))


def test_schedules_multiply_and_move_together():
    a, b = number(2.0), number(3.0)
    slow, fast = Warmup(4), Warmup(2, 1.0, 3.0)
    objective = slow * a + fast * (0.5 * b) - slow * (fast * a)
    for epochs, s, f in ((0, 0.0, 1.0), (1, 0.25, 2.0), (2, 0.5, 3.0), (9, 1.0, 3.0)):
        objective.set_progress(epochs)
        assert objective(BATCH).item() == pytest.approx(s * 4 + f * 0.5 * 9 - s * f * 4)
    assert objective.state_dict().keys() == {"terms.0.value", "terms.1.value", "terms.2.value"}


def test_schedules_deep_inside_are_moved_too():
    lg = LG()
    model, guide = lg.model(), Experts(encoders(lg.modalities(), 2), product_of_experts).double()
    beta, weight, whole = Warmup(4), Warmup(2, 1.0, 5.0), Warmup(8)
    objective = whole * (elbo(model, guide, beta=beta, weights={"a": weight}) + iwae(model, guide, 2, beta=beta))
    objective.set_progress(1)
    assert [w.value.item() for w in (beta, weight, whole)] == [0.25, 3.0, 0.125]


def test_the_report_names_every_term_once():
    objective = number(2.0) + 3 * number(3.0) - number(1.0, "g", 1) + number(4.0)
    value = objective(BATCH).item()
    report = objective.report()
    assert report == {
        "f": -4.0, "f/part": 2.0, "f_2": -9.0, "f_2/part": 3.0, "g": 1.0, "g/part": 1.0, "f_3": -16.0, "f_3/part": 4.0,
    }  # fmt: skip
    assert objective.keys() == ["f", "f_2", "g", "f_3"]
    assert value == 4 + 27 - 1 + 16  # weights are in the loss, not in the report
    assert [t.label for t in objective] == ["f", "f", "g", "f"]


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (number(1.0), "f"),
        (-number(1.0), "-f"),
        (number(1.0, "g", 1), "-g"),
        (-number(1.0, "g", 1), "g"),
        (number(1.0) + 0.5 * number(1.0, "g", 1), "f - 0.5 g"),
        (number(1.0) - 0.5 * number(1.0, "g", 1), "f + 0.5 g"),
        (2 * number(1.0) - number(1.0) / 4, "2 f - 0.25 f"),
        (number(1.0) + Warmup(3) * number(1.0, "g", 1), "f - w(t) g"),
        (number(1.0) - Warmup(3) * number(1.0), "f - w(t) f"),
        (number(1.0) - Warmup(3) * (2 * number(1.0, "g", 1)), "f + w(t) g"),
        (-(Warmup(3) * (-number(1.0))), "w(t) f"),
    ],
)
def test_signs_and_weights_in_print(objective, text):
    assert repr(objective) == "maximise  " + text


def parts() -> tuple[nn.Module, Experts, Experts]:
    lg = LG({"a": 2, "b": 2})
    heads = encoders(lg.modalities(), 2)
    return lg.model(), Experts(heads, product_of_experts).double(), Experts(heads, mixture_of_products).double()


MODEL, GUIDE, MIXTURE = parts()
QAB = r"q(z \mid a, b)"


@pytest.mark.parametrize(
    ("objective", "text", "latex"),
    [
        (elbo(MODEL, GUIDE), "ELBO(a, b; q(z | a, b))", rf"\mathrm{{ELBO}}(a, b; {QAB})"),
        (
            elbo(given(MODEL, "b"), given(GUIDE, "a")),
            "ELBO(b; q(z | a))",
            r"\mathrm{ELBO}(b; q(z \mid a))",
        ),
        (
            elbo(MODEL, GUIDE, beta=2.0, weights={"b": 50.0}),
            "(E_q(z | a, b)[log p(a | z) + 50 log p(b | z)] - 2 KL(q(z | a, b) || p(z)))",
            rf"(\mathbb{{E}}_{{{QAB}}}[\log p(a \mid z) + 50 \log p(b \mid z)] "
            rf"- 2 \mathrm{{KL}}({QAB} \,\|\, p(z)))",
        ),
        (
            elbo(MODEL, GUIDE, beta=Warmup(3), weights={"a": Warmup(2)}),
            "(E_q(z | a, b)[lambda(t) log p(a | z) + log p(b | z)] - beta(t) KL(q(z | a, b) || p(z)))",
            rf"(\mathbb{{E}}_{{{QAB}}}[\lambda(t) \log p(a \mid z) + \log p(b \mid z)] "
            rf"- \beta(t) \mathrm{{KL}}({QAB} \,\|\, p(z)))",
        ),
        (
            elbo(MODEL, GUIDE) - 0.1 * kl(GUIDE, given(GUIDE, "a")) * -1,
            "ELBO(a, b; q(z | a, b)) - 0.1 KL(q(z | a, b) || q(z | a))",
            rf"\mathrm{{ELBO}}(a, b; {QAB}) - 0.1\,\mathrm{{KL}}({QAB} \,\|\, q(z \mid a))",
        ),
        (nll(MODEL, GUIDE), "E_q(z | a, b)[log p(a | z) + log p(b | z)]",
         rf"\mathbb{{E}}_{{{QAB}}}[\log p(a \mid z) + \log p(b \mid z)]"),
        (iwae(MODEL, GUIDE, 10), "IWAE_10(a, b; q(z | a, b))", rf"\mathrm{{IWAE}}_{{10}}(a, b; {QAB})"),
        (
            dreg(given(MODEL, "a"), frozen(given(GUIDE, "b")), 5),
            "IWAE_5(a; q(z | b)) [DReG]",
            r"\mathrm{IWAE}_{5}(a; q(z \mid b)) [\mathrm{DReG}]",
        ),
        (
            looser(MODEL, MIXTURE, 3),
            "looser IWAE_3(a, b; q(z | a, b))",
            rf"\mathrm{{looser}} \mathrm{{IWAE}}_{{3}}(a, b; {QAB})",
        ),
        (
            componentwise_elbo(MODEL, MIXTURE, beta=2.5),
            "(E_q(z | a, b)[log p(a | z) + log p(b | z)] - 2.5 mean_j KL(q(z | a, b)_j || p(z)))",
            rf"(\mathbb{{E}}_{{{QAB}}}[\log p(a \mid z) + \log p(b \mid z)] "
            rf"- 2.5 \operatorname{{mean}}_j \mathrm{{KL}}({QAB}_j \,\|\, p(z)))",
        ),
        (
            elbo(in_subsets(MODEL, ["ab", "a"]), in_subsets(GUIDE, ["ab", "a"])),
            "sum_S ELBO(x_S; q(z | x_S)), S in {a, b}, {a}",
            r"\sum_S \mathrm{ELBO}(x_S; q(z \mid x_S)), S \in \{a, b\}, \{a\}",
        ),
        (elbo(nn.Identity(), particles(nn.Identity(), 2)), "ELBO(x; q(z | x))", r"\mathrm{ELBO}(x; q(z \mid x))"),
    ],
    ids=["elbo", "given", "weights", "schedules", "kl", "nll", "iwae", "dreg", "looser", "parts", "subsets", "plain"],
)  # fmt: skip
def test_objectives_print_as_the_papers_formula(objective, text, latex):
    assert repr(objective) == "maximise  " + text
    assert objective._repr_latex_() == f"${latex}$"


def test_random_subsets_print_their_law_not_their_draw():
    """A run is told from another by its formula: it may not change from call to call."""
    subsets = RandomSubsets("abc", 2, ["a"])
    objective = elbo(in_subsets(MODEL, subsets), in_subsets(GUIDE, subsets))
    before = repr(objective)
    assert before == "maximise  sum_S ELBO(x_S; q(z | x_S)), S in {a}, 2 drawn from {a, b, c}"
    for _ in range(20):
        subsets.redraw()
        assert repr(objective) == before


def test_words_in_latex():
    assert tex("log p(image | z)") == r"\log p(\mathrm{image} \mid z)"
    assert tex("KL(q(z | left_ear) || p(z))") == r"\mathrm{KL}(q(z \mid \mathrm{left\_ear}) \,\|\, p(z))"
    assert tex("log p(view_2 | z)") == r"\log p(\mathrm{view}_{2} \mid z)"


def test_a_guide_may_have_a_symbol_of_its_own():
    class Encoder(nn.Module):
        symbol, names = "r", ("a",)

    assert repr(elbo(MODEL, Encoder())) == "maximise  ELBO(a, b; r(z | a))"
    assert elbo(MODEL, Encoder(), beta=0.5)._repr_latex_().startswith(r"$(\mathbb{E}_{r(z \mid a)}[")


def test_objectives_are_pure_in_their_operands():
    a, b = number(2.0), number(3.0)
    whole = 2 * (a + b)
    assert a(BATCH).item() == 4.0
    assert [w for w, _ in a.pairs()] == [1.0]
    assert [w for w, _ in whole.pairs()] == [2.0, 2.0]


def test_a_copy_of_an_objective_is_its_own():
    """Its counted rows follow its own random subsets, and it can be pickled."""
    subsets = RandomSubsets("ab", 2)
    objective = elbo(in_subsets(MODEL, subsets), in_subsets(given(GUIDE, "a"), subsets))
    batch = LG({"a": 2, "b": 2}).data(6)
    other = copy.deepcopy(objective)
    for _ in range(8):
        torch.manual_seed(1)
        subsets.redraw()  # the original's, which the copy must not look at
        torch.manual_seed(2)
        value = other(batch)
        torch.manual_seed(2)
        torch.testing.assert_close(pickle.loads(pickle.dumps(other))(batch), value)
        torch.manual_seed(2)
        torch.testing.assert_close(objective(batch), value)


def test_abstract_terms_say_so():
    with pytest.raises(NotImplementedError, match="Term has no loss"):
        Term()(BATCH)
    assert Term().latex() == r"\mathrm{term}"


def test_a_frozen_program_whose_parts_have_two_names_comes_back_as_it_was() -> None:
    """torch's functional_call would leave constants in the place of the parameters."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = nn.Linear(1, 1)
            self.tied = nn.Linear(1, 1)
            self.tied.weight = self.one.weight

        def forward(self, batch: Batch) -> Tensor:
            return self.other(batch.x["a"][:, :1]) + self.tied(batch.x["a"][:, :1])

    program, batch = Twice(), Batch({"a": torch.ones(2, 1)})
    before = dict(program.named_parameters())
    assert not frozen(program)(batch).requires_grad
    assert all(p is before[n] for n, p in program.named_parameters())
    program(batch).sum().backward()
    assert all(p.grad is not None for p in before.values())
