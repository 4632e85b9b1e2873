"""Discrete latents that are summed over, against sums and quadrature written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation import (
    Evidence,
    Laplace,
    log_conditional,
    log_conditional_difference,
    log_marginal,
    sandwich,
)
from pyro_mm.evaluation.classify import classify, classify_plug_in
from tests.helpers.estimates import judge

D = torch.float64
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=D)
LOC, WIDTH = torch.tensor([-2.0, 0.5, 3.0], dtype=D), torch.tensor([0.5, 1.0, 0.7], dtype=D)
GAIN = torch.tensor([-1.0, 1.0], dtype=D)
LABEL = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], dtype=D)
SUMMED = {"enumerate": "parallel"}
Z = torch.linspace(-12, 12, 6001, dtype=D)
STEP = (Z[1] - Z[0]).log()


def normal(x: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    return dist.Normal(torch.as_tensor(loc, dtype=D), torch.as_tensor(scale, dtype=D)).log_prob(x)


def rows(n: int = 40, missing: bool = True) -> Batch:
    """a, b real, a label; with `missing`, all patterns of presence, the empty one included."""
    noise = torch.Generator().manual_seed(3)
    x = {m: 2 * torch.randn(n, generator=noise, dtype=D) for m in "ab"}
    x["label"] = torch.randint(3, (n,), generator=noise)
    kept = torch.arange(n) % 8 if missing else torch.full((n,), 7)
    return Batch(x, {m: (kept & bit) > 0 for m, bit in (("a", 1), ("b", 2), ("label", 4))})


class Clusters:
    """c ~ Cat, z | c ~ N(LOC_c, WIDTH_c^2);  s ~ Bern(sigmoid(z));  a | z, s ~ N(GAIN_s z, 1), b | z ~ N(z, 2^2),
    label | c ~ Cat: one discrete latent above z, one below it, and a modality that only c decides.
    """

    def __init__(self, infer: dict[str, str] | None = SUMMED) -> None:
        self.infer = infer

    def __call__(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            c = pyro.sample("c", dist.Categorical(SHARES), infer=self.infer)
            z = pyro.sample("z", dist.Normal(LOC[c], WIDTH[c]))
            s = pyro.sample("s", dist.Bernoulli(logits=z), infer=self.infer)
            with poutine.mask(mask=batch.mask["a"]):
                pyro.sample("a", dist.Normal(GAIN[s.long()] * z, 1.0), obs=batch.x["a"])
            with poutine.mask(mask=batch.mask["b"]):
                pyro.sample("b", dist.Normal(z, 2.0), obs=batch.x["b"])
            with poutine.mask(mask=batch.mask["label"]):
                pyro.sample("label", dist.Categorical(LABEL[c]), obs=batch.x["label"])

    @staticmethod
    def joint(batch: Batch) -> Tensor:
        """log p(x_S, z, c) on the grid, `(Z, N, C)`; s summed."""
        z = Z.view(-1, 1, 1)
        on = torch.nn.functional.logsigmoid(z) + normal(batch.x["a"].unsqueeze(-1), z, 1.0)
        off = torch.nn.functional.logsigmoid(-z) + normal(batch.x["a"].unsqueeze(-1), -z, 1.0)
        terms = {
            "a": torch.logaddexp(on, off),
            "b": normal(batch.x["b"].unsqueeze(-1), z, 2.0),
            "label": LABEL.log().T[batch.x["label"]],
        }
        out = SHARES.log() + normal(z, LOC, WIDTH) + torch.zeros(len(batch), 1, dtype=D)
        for m, term in terms.items():
            out = out + torch.where(batch.mask[m].unsqueeze(-1), term, 0.0)
        return out

    @classmethod
    def exact(cls, batch: Batch) -> Tensor:
        return torch.logsumexp(cls.joint(batch), (0, 2)) + STEP


def wide(batch: Batch) -> None:
    """z ~ N(0.5, 3^2), whatever the data; it knows nothing of c and s."""
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Normal(torch.tensor(0.5, dtype=D), 3.0))


def knowing(batch: Batch) -> None:
    """Draws c and s itself, not by their posterior."""
    with pyro.plate("data", len(batch), dim=-1):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.4, 0.3], dtype=D)))
        z = pyro.sample("z", dist.Normal(LOC[c], 1.5 * WIDTH[c]))
        pyro.sample("s", dist.Bernoulli(logits=0.5 * z))


def test_the_grid_is_fine_enough() -> None:
    empty = rows(8).only("a")[torch.tensor([0])]
    assert Clusters.exact(empty).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("refine", [None, Laplace()])
def test_log_marginals_are_those_of_quadrature(independent: bool, refine: Laplace | None) -> None:
    """Two latents summed over, any modality missing; the empty rows give 0."""
    batch = rows()
    ev = log_marginal(Clusters(), wide, batch, 4000, independent=independent, refine=refine, seed=0)
    judge(ev.estimate, ev.se, Clusters.exact(batch), mean=0.01, rms=(0.6, 1.3))
    assert bool((ev.estimate[~batch.present()].abs() < 0.1).all()) and ev.prior_sites == ()


@pytest.mark.parametrize("estimator", [log_conditional, log_conditional_difference])
@pytest.mark.parametrize(("of", "given"), [("a", ("b", "label")), (("label", "b"), "a"), ("label", "b")])
def test_log_conditionals_are_those_of_quadrature(
    estimator: Callable[..., Evidence], of: str | tuple[str, ...], given: str | tuple[str, ...]
) -> None:
    batch = rows(120)
    ev = estimator(Clusters(), wide, batch, of, given, 4000, independent=True, seed=0)
    a, b = ([names] if isinstance(names, str) else list(names) for names in (of, given))
    exact = Clusters.exact(batch.only(*a, *b)) - Clusters.exact(batch.only(*b))
    judge(ev.estimate, ev.se, exact, mean=0.02)


def test_the_bayes_classifier_is_that_of_quadrature() -> None:
    """The label depends on c alone: p(y | z_k) and the weights share the dimension of c, not that of s."""
    batch = rows()
    found = classify(Clusters(), wide, batch, given=("a", "b"), k=20_000, seed=0)
    posterior = torch.logsumexp(Clusters.joint(batch.only("a", "b")), 0).softmax(-1)
    torch.testing.assert_close(found, posterior @ LABEL, atol=0.015, rtol=0)
    plug_in = classify_plug_in(Clusters(), wide, batch, given=("a", "b"), k=20_000, seed=0)
    given_z = (SHARES.log() + normal(Z.unsqueeze(-1), LOC, WIDTH)).softmax(-1)
    weight = normal(Z, 0.5, 3.0).softmax(0)
    torch.testing.assert_close(plug_in, (weight @ given_z @ LABEL).expand(len(batch), 3), atol=0.015, rtol=0)


def test_a_label_that_no_discrete_latent_touches() -> None:
    """p(y | z) has no dimension of c, the weights have, and there are as many labels as values of c."""

    def model(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            c = pyro.sample("c", dist.Categorical(SHARES), infer=SUMMED)
            with poutine.mask(mask=batch.mask["a"]):
                pyro.sample("a", dist.Normal(z + LOC[c], WIDTH[c]), obs=batch.x["a"])
            with poutine.mask(mask=batch.mask["label"]):
                label = dist.Categorical(logits=torch.stack([z, 0 * z, -2 * z], -1))
                pyro.sample("label", label, obs=batch.x["label"])

    batch = rows(12)
    log_a = torch.logsumexp(SHARES.log() + normal(batch.x["a"].unsqueeze(-1), Z.view(-1, 1, 1) + LOC, WIDTH), -1)
    weight = (torch.where(batch.mask["a"], log_a, 0.0) + normal(Z, 0.0, 1.0).unsqueeze(-1)).softmax(0)
    expected = torch.einsum("zn,zc->nc", weight, torch.stack([Z, 0 * Z, -2 * Z], -1).softmax(-1))
    found = classify(model, wide, batch, given="a", k=20_000, seed=0)
    torch.testing.assert_close(found, expected, atol=0.015, rtol=0)


def test_summing_has_less_variance_than_drawing() -> None:
    batch = rows(24, missing=False)
    exact = Clusters.exact(batch)
    summed = log_marginal(Clusters(), wide, batch, 2000, independent=True, seed=0)
    drawn = log_marginal(Clusters(None), wide, batch, 2000, independent=True, seed=0)
    assert drawn.prior_sites == ("c", "s")
    for ev in (summed, drawn):
        judge(ev.estimate, ev.se, exact, mean=0.05, rms=(0.6, 1.5))
    assert drawn.se.mean().item() > 1.5 * summed.se.mean().item()


@pytest.mark.parametrize("infer", [SUMMED, None])
def test_a_guide_that_knows_the_discrete_latents_draws_them(infer: dict[str, str] | None) -> None:
    """The mark changes nothing then, not even the draws."""
    batch = rows()
    ev = log_marginal(Clusters(infer), knowing, batch, 4000, seed=0)
    judge(ev.estimate, ev.se, Clusters.exact(batch), mean=0.02, rms=(0.6, 1.3))
    assert ev.prior_sites == ()
    torch.testing.assert_close(ev.estimate, log_marginal(Clusters(None), knowing, batch, 4000, seed=0).estimate)


def test_a_guide_that_knows_one_of_them() -> None:
    def half(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.4, 0.3], dtype=D)))
            pyro.sample("z", dist.Normal(LOC[c], 1.5 * WIDTH[c]))

    batch = rows()
    ev = log_marginal(Clusters(), half, batch, 4000, seed=0)
    judge(ev.estimate, ev.se, Clusters.exact(batch), mean=0.02, rms=(0.6, 1.3))


class PrivateKinds:
    """z ~ N(0, 1);  c_m ~ Cat and m | z, c_m ~ N(z + LOC_c, WIDTH_c^2) where m = a, b is present."""

    def __call__(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            for m in "ab":
                with poutine.mask(mask=batch.mask[m]):
                    c = pyro.sample(f"c_{m}", dist.Categorical(SHARES), infer=SUMMED)
                    pyro.sample(m, dist.Normal(z + LOC[c], WIDTH[c]), obs=batch.x[m])

    @staticmethod
    def exact(batch: Batch) -> Tensor:
        out = normal(Z, 0.0, 1.0).unsqueeze(-1) + torch.zeros(len(batch), dtype=D)
        for m in "ab":
            x = batch.x[m].unsqueeze(-1)
            term = torch.logsumexp(SHARES.log() + normal(x, Z.view(-1, 1, 1) + LOC, WIDTH), -1)
            out = out + torch.where(batch.mask[m], term, 0.0)
        return torch.logsumexp(out, 0) + STEP


@pytest.mark.parametrize("refine", [None, Laplace()])
def test_a_masked_discrete_latent_adds_nothing(refine: Laplace | None) -> None:
    """Where its modality is missing the sum over its values must be 1, not 3."""
    batch = rows()
    ev = log_marginal(PrivateKinds(), wide, batch, 4000, refine=refine, seed=0)
    judge(ev.estimate, ev.se, PrivateKinds.exact(batch), mean=0.01, rms=(0.5, 1.3))
    ev = log_conditional(PrivateKinds(), wide, batch, "a", "b", 4000, seed=0)
    exact = PrivateKinds.exact(batch.only("a", "b")) - PrivateKinds.exact(batch.only("b"))
    judge(ev.estimate, ev.se, exact, mean=0.02, rms=(0.5, 1.3))


def test_a_latent_of_the_model_that_depends_on_one_that_is_summed_over() -> None:
    """u | c ~ N(LOC_c, 0.5^2) is drawn with one c and scored under all: a | u, c ~ N(u - LOC_c, 1), so that p(a) is
    N(0, 1 + 1/4) whatever c; leaving p(u | c) out would give another value.
    """

    def model(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            c = pyro.sample("c", dist.Categorical(SHARES), infer=SUMMED)
            z = pyro.sample("z", dist.Normal(LOC[c], WIDTH[c]))
            u = pyro.sample("u", dist.Normal(LOC[c], 0.5))
            with poutine.mask(mask=batch.mask["a"]):
                pyro.sample("a", dist.Normal(u - LOC[c], 1.0), obs=batch.x["a"])
            with poutine.mask(mask=batch.mask["b"]):
                pyro.sample("b", dist.Normal(z, 2.0), obs=batch.x["b"])

    batch = rows()
    log_a = torch.where(batch.mask["a"], normal(batch.x["a"], 0.0, 1.25**0.5), 0.0)
    log_b = torch.logsumexp(SHARES.log() + normal(batch.x["b"].unsqueeze(-1), LOC, (WIDTH**2 + 4).sqrt()), -1)
    exact = log_a + torch.where(batch.mask["b"], log_b, 0.0)
    for defensive in (0.0, 0.1):
        ev = log_marginal(model, wide, batch, 20_000, defensive=defensive, independent=True, seed=0)
        judge(ev.estimate, ev.se, exact, mean=0.01, rms=(0.7, 1.3))
        assert ev.prior_sites == ("u",)


def test_the_sandwich_still_encloses() -> None:
    batch = rows(240)
    certificate = sandwich(Clusters(), wide, batch, 100, seed=0)
    exact = Clusters.exact(certificate.data)
    for side, end in ((1, certificate.upper - exact), (-1, exact - certificate.lower)):
        assert end.mean().item() > -3 * end.std().item() / len(end) ** 0.5, side
        assert end.mean().item() < 0.05
    tight = sandwich(Clusters(), wide, batch, 2000, seed=0)
    assert abs(tight.gap) < 0.01 < certificate.gap


def chain(markov: bool) -> Callable[[Batch], None]:
    """c_0 -> c_1 -> c_2, each seen through x_t ~ N(2 c_t + z, 1)."""
    steps = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=D)

    def model(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            c: int | Tensor = 0
            for t in pyro.markov(range(3)) if markov else range(3):
                c = pyro.sample(f"c{t}", dist.Categorical(steps[c]), infer=SUMMED)
                pyro.sample(f"x{t}", dist.Normal(2.0 * c + z, 1.0), obs=batch.x["x"][:, t])

    return model


def test_a_chain_of_discrete_latents() -> None:
    steps = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=D)
    batch = Batch({"x": 2 * torch.randn(20, 3, dtype=D)})
    alpha = torch.tensor([1.0, 0.0], dtype=D).log().expand(len(Z), 20, 2)
    for t in range(3):
        seen = normal(batch.x["x"][:, t].unsqueeze(-1), 2.0 * torch.arange(2) + Z.view(-1, 1, 1), 1.0)
        alpha = torch.logsumexp(alpha.unsqueeze(-1) + steps.log(), -2) + seen
    exact = torch.logsumexp(torch.logsumexp(alpha, -1) + normal(Z, 0.0, 1.0).unsqueeze(-1), 0) + STEP
    ev = log_marginal(chain(False), wide, batch, 4000, seed=0)
    judge(ev.estimate, ev.se, exact, mean=0.02, rms=(0.5, 1.3))


def test_what_cannot_be_summed_over_says_so() -> None:
    """Dimensions that pyro.markov uses twice, and a plate inside the datum."""
    with pytest.raises(ValueError, match=r"'c0' and 'c2' share a dimension, as pyro\.markov makes them do"):
        log_marginal(chain(True), wide, Batch({"x": torch.randn(4, 3, dtype=D)}), 10)

    def nested(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            with pyro.plate("elements", 3, dim=-2):
                c = pyro.sample("c", dist.Categorical(SHARES), infer=SUMMED)
                pyro.sample("x", dist.Normal(z + LOC[c], 1.0), obs=batch.x["x"].T)

    message = "site '[cx]' stands in a plate nested inside the datum and depends on an enumerated latent"
    with pytest.raises(ValueError, match=message):
        log_marginal(nested, wide, Batch({"x": torch.randn(4, 3, dtype=D)}), 10)


def test_a_nested_plate_beside_a_discrete_latent_is_fine() -> None:
    """x_i ~ N(z, 1) in a plate, b ~ N(z + LOC_c, WIDTH_c^2): only b depends on c."""

    def model(batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=D), 1.0))
            c = pyro.sample("c", dist.Categorical(SHARES), infer=SUMMED)
            pyro.sample("b", dist.Normal(z + LOC[c], WIDTH[c]), obs=batch.x["b"])
            with pyro.plate("elements", 3, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=batch.x["x"].T)

    batch = Batch({"x": torch.randn(20, 3, dtype=D), "b": 2 * torch.randn(20, dtype=D)})
    log_p = normal(Z, 0.0, 1.0).unsqueeze(-1) + normal(batch.x["x"], Z.view(-1, 1, 1), 1.0).sum(-1)
    log_p = log_p + torch.logsumexp(
        SHARES.log() + normal(batch.x["b"].unsqueeze(-1), Z.view(-1, 1, 1) + LOC, WIDTH), -1
    )
    ev = log_marginal(model, wide, batch, 4000, seed=0)
    judge(ev.estimate, ev.se, torch.logsumexp(log_p, 0) + STEP, mean=0.02, rms=(0.5, 1.3))
