"""Objectives of systems with private latents or several levels against the published formulas, written by hand.

Sampled terms are compared in expectation: means over many draws, with their standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mm import variants
from pyro_mm.batch import Batch
from pyro_mm.networks import Linear
from pyro_mm.recipe import Recipe
from tests.helpers.hierarchies import hidden, modalities, randomised

SIZES = {"a": 4, "b": 3, "c": 3}
REPEATS = 100


def made(name: str, **options: object) -> tuple[Recipe, Batch]:
    return randomised(name, SIZES, 30, **options)


def agree(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], repeats: int = REPEATS) -> None:
    """Two random numbers have the same mean, and it is known to a small part of itself."""
    torch.manual_seed(3)
    with torch.no_grad():
        one = torch.stack([ours() for _ in range(repeats)])
        two = torch.stack([theirs() for _ in range(repeats)])
    se = ((one.var() + two.var()) / repeats).sqrt().item()
    assert abs((one.mean() - two.mean()).item()) < 4 * se + 1e-9
    assert se < 0.03 * abs(two.mean().item())


def likelihood(recipe: Recipe, batch: Batch, m: str, z: Tensor, w: Tensor | None = None) -> Tensor:
    return recipe.model.decoders[m](z if w is None else torch.cat([z, w], -1)).log_prob(batch.x[m])


@pytest.mark.parametrize("missing", [False, True])
def test_dmvae(missing: bool) -> None:
    """ELBO with the joint z + sum_k ELBO with z ~ q(z|x_k), every modality with its own private latent."""
    recipe, batch = made("dmvae", private=2)
    batch = hidden(batch, 1) if missing else batch
    guide, prior = recipe.guide, recipe.model.prior()

    def by_hand() -> Tensor:
        total = torch.zeros(len(batch), dtype=torch.float64)
        for sources in (tuple(SIZES), *((m,) for m in SIZES)):
            rows = batch.present(sources)
            q = guide.shared.posterior(batch.only(*sources))
            z, term = q.rsample(), -kl_divergence(q, prior.expand(q.batch_shape))
            for m in SIZES:
                own = guide.private[m](batch.x[m])
                p = recipe.model.private[m]().expand(own.batch_shape)
                part = likelihood(recipe, batch, m, z, own.rsample()) - kl_divergence(own, p)
                term = term + torch.where(batch.mask[m], part, 0.0)
            total = total + torch.where(rows, term, 0.0)
        return -total.mean()

    agree(lambda: recipe.objective(batch), by_hand)


@pytest.mark.parametrize("missing", [False, True])
def test_mvae_cross(missing: bool) -> None:
    """sum over the subsets S of {a, b}: sum_m lambda_m log p(x_m|z) - beta KL(q(z|x_S) || p(z)), c decoded only."""
    recipe, batch = made("mvae_cross", unseen=("c",), beta=0.5, weights={"a": 3.0})
    batch = hidden(batch, 1) if missing else batch
    guide, prior = recipe.guide, recipe.model.prior()
    assert guide.names == ("a", "b")

    def by_hand() -> Tensor:
        total = torch.zeros(len(batch), dtype=torch.float64)
        for sources in (("a", "b"), ("a",), ("b",)):
            q = guide.posterior(batch.only(*sources))
            z, term = q.rsample(), -0.5 * kl_divergence(q, prior.expand(q.batch_shape))
            for m, weight in {"a": 3.0, "b": 1.0, "c": 1.0}.items():
                term = term + torch.where(batch.mask[m], weight * likelihood(recipe, batch, m, z), 0.0)
            total = total + torch.where(batch.present(sources), term, 0.0)
        return -total.mean()

    agree(lambda: recipe.objective(batch), by_hand)


def test_mvae_cross_names_what_it_cannot_do() -> None:
    assert variants.mvae_cross(modalities(SIZES), 2).guide.names == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"unseen: unknown modality \['sound'\]; there are \['a', 'b', 'c'\]"):
        variants.mvae_cross(modalities(SIZES), 2, unseen=["sound"])
    with pytest.raises(ValueError, match="at least one modality must be seen"):
        variants.mvae_cross(modalities(SIZES), 2, unseen=list(SIZES))


@pytest.mark.parametrize(("name", "k", "beta"), [("mmvaeplus", 1, 1.0), ("mmvaeplus", 4, 2.5), ("cmvae", 1, 1.0)])
def test_mmvaeplus(name: str, k: int, beta: float) -> None:
    """1/M sum_m E log 1/k sum p(x_m|z, w_m) prod_{n != m} p(x_n|z, w~_n) [p(z) p(w_m) / (q(z|X) q(w_m|x_m))]^beta."""
    recipe, batch = made(name, private=2, k=k, beta=beta)
    guide, (term,) = recipe.guide, recipe.objective.terms
    with torch.no_grad():  # auxiliary priors that differ from the model's own
        for program in term.models.values():
            for r in program.priors.values():
                r.raw.copy_(torch.tensor([0.8, -0.8]))

    def by_hand() -> Tensor:
        joint = guide.shared.posterior(batch)
        total: Tensor | float = 0.0
        for m in SIZES:
            z = guide.shared.posterior(batch.only(m)).rsample((k,))
            own, p = guide.private[m](batch.x[m]), recipe.model.private[m]()
            w = own.rsample((k,))
            ratio = recipe.model.prior().log_prob(z) + p.log_prob(w) - joint.log_prob(z) - own.log_prob(w)
            log_w = beta * ratio + likelihood(recipe, batch, m, z, w)
            for n in SIZES:
                if n != m:
                    other = term.models[m].priors[n]().expand((k, len(batch))).rsample()
                    log_w = log_w + likelihood(recipe, batch, n, z, other)
            total = total + torch.logsumexp(log_w, 0) - torch.tensor(float(k)).log()
        return -total.mean() / len(SIZES)

    agree(lambda: recipe.objective(batch), by_hand)


@pytest.mark.parametrize("name", ["dmvae", "mmvaeplus", "cmvae", "vcca_private", "mfm"])
def test_a_misspelt_weight_of_a_model_with_private_latents_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"weights for \['d'\], but Private generates a, b, c"):
        getattr(variants, name)(modalities(SIZES), 2, weights={"d": 3.0})


def test_cmvae_sums_the_cluster_out() -> None:
    """log p(z) is the mixture's; p(c|z) is Bayes' rule; each is what enumeration gives."""
    torch.manual_seed(0)
    recipe = variants.cmvae(modalities(SIZES), 2, clusters=5)
    prior = recipe.model.prior
    with torch.no_grad():
        prior.logits.copy_(torch.randn(5))
    z = torch.randn(7, 2)
    parts = torch.stack([
        prior.logits.log_softmax(-1)[c] + torch.distributions.Normal(prior.loc[c], 1.0).log_prob(z).sum(-1)
        for c in range(5)
    ])  # fmt: skip
    torch.testing.assert_close(prior().log_prob(z), parts.logsumexp(0))
    torch.testing.assert_close(prior.responsibilities(z), parts.softmax(0).T)


def test_muse_draws_posteriors_of_subsets_together() -> None:
    """The divergences above are the closed forms, both ways, over all proper subsets, at weight alpha / |S|."""
    recipe, batch = made("muse", codes=3, net=Linear(), gammas=2.0, alpha=3.0)
    (above,) = [t for t in recipe.objective.terms if t.label == "coded"]
    codes = Batch({m: recipe.guide.encoders[m][0](batch.x[m]).rsample().detach() for m in SIZES})
    pairs = [(w, t) for w, t in above.objective.pairs() if t.label == "kl"]
    assert len(pairs) == 12
    top, by_hand = recipe.guide.top, torch.zeros(len(batch), dtype=torch.float64)
    joint = top.posterior(codes)
    for r in (1, 2):
        for s in combinations(SIZES, r):
            part = top.posterior(codes.only(*s))
            by_hand = by_hand + kl_divergence(joint, part) + kl_divergence(part, joint)
    torch.testing.assert_close(sum(w * t(codes) for w, t in pairs), 3.0 / 6 * by_hand.mean())


def test_mhvae_of_2023_reconstructs_everything_from_every_subset() -> None:
    recipe, batch = made("mhvae_2023", levels=(2, 3), net=Linear(), width=8)
    model, guide = recipe.model, recipe.guide

    def one(sources: tuple[str, ...]) -> Tensor:
        h = {m: guide.evidences[m].features(batch.x[m]) for m in sources}
        above: list[Tensor] = []
        total: Tensor | float = 0.0
        for level in range(3):
            p = model.prior() if level == 0 else model.trunk[level - 1](torch.cat(above, -1))
            experts = [guide.evidences[m].expert(level, h[m], above).base_dist for m in sources]
            precision = p.base_dist.scale**-2 + sum(q.scale**-2 for q in experts)
            mean = (p.base_dist.loc * p.base_dist.scale**-2 + sum(q.loc * q.scale**-2 for q in experts)) / precision
            q = torch.distributions.Independent(torch.distributions.Normal(mean, precision**-0.5), 1)
            z = q.rsample()
            total = total - kl_divergence(q, p.expand(q.batch_shape) if level == 0 else p)
            above.append(z)
        return total + sum(likelihood(recipe, batch, m, above[-1]) for m in SIZES)

    every = [s for r in (1, 2, 3) for s in combinations(SIZES, r)]
    agree(lambda: recipe.objective(batch), lambda: -torch.stack([one(s) for s in every]).mean(), 60)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ["hierarchical_mvae", "hierarchical_mmvae"])
def test_hierarchical_baselines(name: str, missing: bool) -> None:
    """sum_m ELBO(x_m; q(z_m|x_m)) and, over draws of z_m, MVAE's sum over subsets or MMVAE's mean over experts.

    Of a row that lacks something a subset counts with the part that is there, and the mixture is of what is there.
    """
    options = {"codes": 3, "beta": 0.7, "betas": {"b": 2.0}, "frozen": (), "optimal": (), "gammas": 2.0}
    recipe, batch = made(name, net=Linear(), weights={"a": 2.0}, **options)
    batch = hidden(batch, 1) if missing else batch
    above = over_subsets if name == "hierarchical_mvae" else over_experts

    def by_hand() -> Tensor:
        total = torch.zeros(len(batch), dtype=torch.float64)
        codes = {}
        for m in SIZES:
            q = recipe.guide.encoders[m][0](batch.x[m])
            p = torch.distributions.Independent(torch.distributions.Normal(torch.zeros_like(q.base_dist.loc), 1.0), 1)
            part = (2.0 if m == "a" else 1.0) * likelihood(recipe, batch, m, q.rsample())
            part = part - 0.7 * (2.0 if m == "b" else 1.0) * kl_divergence(q, p)
            total = total + torch.where(batch.mask[m], part, 0.0)
            codes[m] = q.sample()
        return -(total + above(recipe, batch, codes)).mean()

    agree(lambda: recipe.objective(batch), by_hand, 200)


def experts_above(recipe: Recipe, codes: dict[str, Tensor]) -> dict[str, torch.distributions.Normal]:
    return {m: recipe.guide.top.encoders[m](z).base_dist for m, z in codes.items()}


def code_likelihood(recipe: Recipe, codes: dict[str, Tensor], m: str, z: Tensor) -> Tensor:
    """log N(z_m; f_m(z), 1/4), gamma being 2."""
    mean = recipe.model.branches[m][0].net(z)
    return torch.distributions.Normal(mean, 0.5).log_prob(codes[m]).sum(-1)


def over_subsets(recipe: Recipe, batch: Batch, codes: dict[str, Tensor]) -> Tensor:
    experts, total = experts_above(recipe, codes), torch.zeros(len(batch), dtype=torch.float64)
    for s in (s for r in (1, 2, 3) for s in combinations(SIZES, r)):
        precision, moment = torch.ones(len(batch), 2).double(), torch.zeros(len(batch), 2).double()
        for m in s:
            t = torch.where(batch.mask[m].unsqueeze(-1), experts[m].scale ** -2, 0.0)
            precision, moment = precision + t, moment + t * experts[m].loc
        q = torch.distributions.Normal(moment / precision, precision**-0.5)
        z = q.rsample()
        term = -0.7 * kl_divergence(q, torch.distributions.Normal(torch.zeros_like(q.loc), 1.0)).sum(-1)
        for m in s:
            term = term + torch.where(batch.mask[m], code_likelihood(recipe, codes, m, z), 0.0)
        total = total + torch.where(batch.present(s), term, 0.0)
    return total


def over_experts(recipe: Recipe, batch: Batch, codes: dict[str, Tensor]) -> Tensor:
    experts = experts_above(recipe, codes)
    count = torch.stack(list(batch.mask.values())).sum(0).clamp(min=1)
    total = torch.zeros(len(batch), dtype=torch.float64)
    for m in SIZES:
        z = experts[m].rsample()
        each = torch.stack([
            torch.where(batch.mask[n], q.log_prob(z).sum(-1), -torch.inf) for n, q in experts.items()
        ])  # fmt: skip
        log_q = torch.where(batch.mask[m], each.logsumexp(0) - count.log(), 0.0)
        log_p = torch.distributions.Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
        term = 0.7 * (log_p - log_q)
        for n in SIZES:
            term = term + torch.where(batch.mask[n], code_likelihood(recipe, codes, n, z), 0.0)
        total = total + torch.where(batch.mask[m], term, 0.0) / count
    return total
