"""Printed objectives are those that are trained: weights, betas, priors, components and latents by their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_mm import likelihoods, variants
from pyro_mm.handlers import in_subsets, particles
from pyro_mm.modality import Modality
from pyro_mm.networks import Linear
from pyro_mm.objectives import Warmup, dreg, iwae, looser, nll

TWO = [Modality(m, (2,), likelihoods.Normal(), Linear()) for m in ("a", "b")]
LABELLED = [Modality("image", (2,), likelihoods.Normal(), Linear()), Modality("label", (), likelihoods.Categorical(3))]
HARD: dict[str, Any] = {"beta": 2.5, "weights": {"a": 3.0}}


def printed(name: str, modalities: list[Modality] = TWO, **options: Any) -> str:
    torch.manual_seed(0)
    return repr(getattr(variants, name)(modalities, 2, **options).objective).removeprefix("maximise  ")


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("mmvae_iwae", {"k": 5}, "IWAE_10(a, b; q(z | a, b))"),
        (
            "mmvae_iwae",
            {"k": 5, "beta": 2.5},
            "E_q(z | a, b) log mean_10 exp[log p(a | z) + log p(b | z) - 2.5 log(q(z | a, b) / p(z))]",
        ),
        (
            "mmvae_iwae",
            {"k": 1, "weights": {"b": Warmup(3)}},
            "E_q(z | a, b) log mean_2 exp[log p(a | z) + lambda(t) log p(b | z) - log(q(z | a, b) / p(z))]",
        ),
        ("mmvae_dreg", {"k": 5}, "looser IWAE_5(a, b; q(z | a, b)) [DReG]"),
        (
            "mmvae_dreg",
            {"k": 5, "beta": 2.0},
            "mean_m E_q(z | x_m) log mean_5 exp[log p(a | z) + log p(b | z) - 2 log(q(z | a, b) / p(z))] [DReG]",
        ),
        ("mmvaeplus", {}, "looser IWAE_1(a, b; q(z, w_a, w_b | a, b)), w_n ~ r_n(w_n), n != m"),
        (
            "mmvaeplus",
            HARD,
            "mean_m E_q(z, w_m | x_m) log mean_1 exp[3 log p(a | z, w_a) + log p(b | z, w_b) "
            "- 2.5 log(q(z | a, b) q(w_m | x_m) / p(z, w_m))], w_n ~ r_n(w_n), n != m",
        ),
        (
            "mmjsd",
            {"beta": 2.0},
            "E_q(z | a, b)[log p(a | z) + log p(b | z)] "
            "- 2 mean_r KL(r || f(z | a, b)), r in {q(z | a), q(z | b), p(z)}",
        ),
        (
            "mmvm",
            HARD,
            "E_q(z_a, z_b | a, b)[3 log p(a | z_a) + log p(b | z_b)] - 2.5 sum_m KL(q(z_m | x_m) || h(z_m | a, b))",
        ),
        (
            "mmvm_pairwise",
            {},
            "E_q(z_a, z_b | a, b)[log p(a | z_a) + log p(b | z_b)] "
            "- sum_m mean_r KL(q(z_m | x_m) || r), r in {q(z_m | a), q(z_m | b)}",
        ),
        (
            "meme",
            {"weight": 1.0},
            "(E_q(z | a)[w (log p(a | z) - log p(b | z) - KL(q(z | a) || q(z | b)))] + log q(b | a)) "
            "+ (E_q(z | b)[w (log p(b | z) - log p(a | z) - KL(q(z | b) || q(z | a)))] + log q(a | b)) "
            "+ (E_q(z | a)[log p(a | z)] - KL(q(z | a) || p_b(z))) "
            "+ (E_q(z | b)[log p(b | z)] - KL(q(z | b) || p_a(z)))",
        ),
        (
            "dmvae",
            {},
            "ELBO(a, b; q(z, w_a, w_b | a, b)) + ELBO(a, b; q(z | a) q(w_a, w_b | a, b)) "
            "+ ELBO(a, b; q(z | b) q(w_a, w_b | a, b))",
        ),
        (
            "vcca_private",
            {"beta": 2.0},
            "(E_(q(z | a) q(w_a, w_b | a, b))[log p(a | z, w_a) + log p(b | z, w_b)] "
            "- 2 KL(q(z | a) q(w_a, w_b | a, b) || p(z, w_a, w_b)))",
        ),
        (
            "mhvae_2020",
            {"beta": 2.0},
            "(E_q(z, z_a, z_b | a, b)[log p(a | z_a) + log p(b | z_b)] "
            "- 2 KL(q(z, z_a, z_b | a, b) || p(z, z_a, z_b)))",
        ),
        (
            "mvae",
            HARD,
            "sum_S (E_q(z | x_S)[sum_(m in S) lambda_m log p(x_m | z)] - 2.5 KL(q(z | x_S) || p(z))), "
            "S in {a, b}, {a}, {b}, lambda_a = 3, lambda_b = 1",
        ),
        (
            "mvae",
            {"beta": 2.0},
            "sum_S (E_q(z | x_S)[log p(x_S | z)] - 2 KL(q(z | x_S) || p(z))), S in {a, b}, {a}, {b}",
        ),
        (
            "nexus",
            {},
            "(E_q(z_a | a)[log p(a | z_a)] - beta(t) KL(q(z_a | a) || p(z_a))) "
            "+ (E_q(z_b | b)[log p(b | z_b)] - beta(t) KL(q(z_b | b) || p(z_b))) "
            "+ E_q(z_m | x_m)[(E_q(z | a, b)[log p(a | z) + log p(b | z)] - beta(t) KL(q(z | a, b) || p(z))), "
            "x_m := z_m]",
        ),
        ("cvae", {}, "ELBO(a | b; q(z | a, b))"),
        ("cvae", {"beta": 2.0}, "(E_q(z | a, b)[log p(a | z, b)] - 2 KL(q(z | a, b) || p(z)))"),
    ],
)
def test_formulas(name: str, options: dict[str, Any], text: str) -> None:
    assert printed(name, **options) == text


def test_formulas_with_a_label() -> None:
    assert printed("m2", LABELLED) == "ELBO(image, label; q(c, z | image, label)) + 10 log q(label | image)"
    assert printed("m2", LABELLED, weights={"image": 2.0}, alpha=1.0) == (
        "(E_q(c, z | image, label)[2 log p(image | z, c) + log p(label | c)] "
        "- KL(q(c, z | image, label) || p(c, z))) + log q(label | image)"
    )
    assert printed("mfm", LABELLED).startswith("E_q(z, w_image | image)[log p(image | z, w_image) + log p(label | z)]")
    assert printed("mvae_cross", LABELLED) == "sum_S ELBO(image, label; q(z | x_S)), S in {image}"


def test_bounds_of_several_draws_in_subsets() -> None:
    recipe = variants.mopoe(TWO, 2)
    pair = in_subsets(recipe.model, ["ab", "a"]), in_subsets(recipe.guide, ["ab", "a"])
    assert repr(iwae(*pair, 3)) == "maximise  sum_S IWAE_3(x_S; q(z | x_S)), S in {a, b}, {a}"
    assert repr(dreg(recipe.model, recipe.guide, 3, beta=0.5)) == (
        "maximise  E_q(z | a, b) log mean_3 exp[log p(a | z) + log p(b | z) - 0.5 log(q(z | a, b) / p(z))] [DReG]"
    )
    plus = variants.mmvaeplus(TWO, 2)
    assert repr(looser(plus.model, plus.guide, 2, ["a", "b"])) == (
        "maximise  looser IWAE_2(a, b; q(z, w_a, w_b | a, b)), w_n ~ p(w_n), n != m"
    )
    assert repr(nll(*pair, weights={"a": 2.0})) == (
        "maximise  sum_S E_q(z | x_S)[sum_(m in S) lambda_m log p(x_m | z)], S in {a, b}, {a}, "
        "lambda_a = 2, lambda_b = 1"
    )
    assert repr(nll(particles(plus.model, 2), plus.guide)).endswith("[log p(a | z, w_a) + log p(b | z, w_b)]")


def test_in_latex() -> None:
    def latex(name: str, **options: Any) -> str:
        return getattr(variants, name)(TWO, 2, **options).objective._repr_latex_()

    assert latex("mmvaeplus", **HARD) == (
        r"$\operatorname{mean}_m \mathbb{E}_{q(z, w_{m} \mid x_{m})} \log \mathrm{mean}_{1} "
        r"\exp[3 \log p(a \mid z, w_{a}) + \log p(b \mid z, w_{b}) "
        r"- 2.5 \log(q(z \mid a, b) q(w_{m} \mid x_{m}) / p(z, w_{m}))], w_{n} \sim r_{n}(w_{n}), n \ne m$"
    )
    assert latex("mvae", **HARD).startswith(
        r"$\sum_S (\mathbb{E}_{q(z \mid x_S)}[\sum_{m \in S} \lambda_{m} \log p(x_{m} \mid z)]"
    )
    assert r"\mathbb{E}_{q(z \mid a) q(w_{a}, w_{b} \mid a, b)}[" in latex("vcca_private", beta=2.0)
    assert r"\operatorname{mean}_r \mathrm{KL}(r \,\|\, f(z \mid a, b)), r \in \{q(z \mid a)" in latex("mmjsd")
