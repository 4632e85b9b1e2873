"""log p(x_j | x_i) of all pairs against exact values."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import Normal

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation.conditional import log_conditional
from pyro_mm.evaluation.evidence import NoLikelihood
from pyro_mm.evaluation.generation import simulate
from pyro_mm.evaluation.retrieval_density import by_likelihood, cross_conditional
from pyro_mm.networks import Linear
from pyro_mm.variants import dmvae, mmvae, nexus_elbo

Q, G = 4, 5


def pairs(queries, gallery, given):
    """All Q x G rows with x_B of a query and the rest of a gallery row."""
    i, j = torch.arange(len(queries)).repeat_interleave(len(gallery)), torch.arange(len(gallery)).repeat(len(queries))
    return Batch({m: (queries.x[m][i] if m in given else gallery.x[m][j]) for m in queries.x})


@pytest.fixture(scope="module")
def truth():
    return LinearGaussian.random({"a": 3, "b": 2, "c": 2}, 2, seed=4)


@pytest.mark.parametrize(("of", "given"), [(("b",), ("a",)), (("b", "c"), ("a",)), (("c",), ("a", "b"))])
def test_scores_are_the_oracles_within_their_errors(truth, of, given):
    queries, gallery = truth.sample(Q, seed=5), truth.sample(G, seed=6)
    exact = truth.log_conditional(pairs(queries, gallery, given), of, given).view(Q, G)
    found = cross_conditional(truth.model(), truth.exact_guide(), queries, gallery, of, given, 20_000, seed=0)
    assert found.estimate.shape == found.se.shape == (Q, G)
    z = (found.estimate - exact) / found.se
    assert z.abs().max() < 4
    likely = exact > exact.amax(1, keepdim=True) - 10
    assert found.se[likely].max() < 0.1
    apart = (exact.unsqueeze(-1) - exact.unsqueeze(-2)) > 8 * torch.maximum(found.se[..., None], found.se[:, None])
    better = found.estimate.unsqueeze(-1) > found.estimate.unsqueeze(-2)
    assert better[apart].all() and apart.sum() > Q * G
    torch.testing.assert_close(found.ess / 20_000, torch.full((Q,), 0.9).double(), atol=0.1, rtol=0)


def test_the_order_of_the_gallery_and_what_else_its_rows_hold_change_nothing(truth):
    queries, gallery = truth.sample(Q, seed=5), truth.sample(G, seed=6)
    pair = truth.model(), truth.exact_guide()
    found = by_likelihood(*pair, queries, gallery, ("b",), ("a",), k=50)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(by_likelihood(*pair, queries, gallery[order], ("b",), ("a",), k=50), found[:, order])
    bare = Batch({"b": gallery.x["b"]})
    shown = Batch({"a": queries.x["a"], "c": queries.x["c"] * 100})
    torch.testing.assert_close(by_likelihood(*pair, shown, bare, ("b",), ("a",), k=50), found)


def test_its_standard_error_is_that_over_seeds(truth):
    queries, gallery = truth.sample(2, seed=5), truth.sample(2, seed=6)
    pair = truth.model(), truth.exact_guide()
    found = [
        cross_conditional(*pair, queries, gallery, "b", "a", 500, defensive=0.0, chunk=2000, seed=s) for s in range(60)
    ]
    spread = torch.stack([f.estimate for f in found]).std(0)
    ratio = spread / torch.stack([f.se for f in found]).mean(0)
    assert (ratio - 1).abs().max() < 0.35


PRIOR = torch.tensor([0.5, 0.2, 0.3])
PIXEL = torch.tensor([[0.9, 0.2], [0.3, 0.6], [0.4, 0.95]])
LABEL = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])


def discrete(infer):
    def model(batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("u", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Categorical(PRIOR), infer=infer)
            with poutine.mask(mask=batch.mask["image"]):
                pyro.sample("image", dist.Bernoulli(PIXEL[z]).to_event(1), obs=batch.x["image"])
            with poutine.mask(mask=batch.mask["label"]):
                pyro.sample("label", dist.Categorical(LABEL[z]), obs=batch.x["label"])

    return model


def u_alone(batch):
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("u", dist.Normal(0.0, 1.0))


def u_and_z(batch):
    u_alone(batch)
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))


def rows():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    return Batch({"image": image, "label": torch.tensor([0, 1, 2, 0])})


def test_enumerated_latents_are_summed_over_exactly():
    batch = rows()
    log_x = dist.Bernoulli(PIXEL).to_event(1).log_prob(batch.x["image"].unsqueeze(1))
    exact = ((PRIOR.log() + log_x).softmax(-1) @ LABEL).log()[:, batch.x["label"]]
    found = by_likelihood(discrete({"enumerate": "parallel"}), u_alone, batch, batch, ("label",), ("image",), k=7)
    torch.testing.assert_close(found.float(), exact)
    drawn = by_likelihood(discrete({}), u_and_z, batch, batch, ("label",), ("image",), k=20_000)
    torch.testing.assert_close(drawn.float(), exact, atol=0.05, rtol=0)


def test_a_latent_of_the_queries_that_the_guide_lacks_is_refused():
    with pytest.raises(ValueError, match=r"does not draw latents \['z'\]"):
        by_likelihood(discrete({}), u_alone, rows(), rows(), ("label",), ("image",), k=7)


def private(batch):
    """a = z + e; b = z + w_b + e, w_b ~ N(0, 2^2), e ~ N(0, 1/4)."""
    with pyro.plate("data", len(batch), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=batch.mask["b"]):
            w = pyro.sample("w_b", dist.Normal(0.0, 2.0))
            pyro.sample("b", dist.Normal(z + w, 0.5), obs=batch.x["b"])
        with poutine.mask(mask=batch.mask["a"]):
            pyro.sample("a", dist.Normal(z, 0.5), obs=batch.x["a"])


def private_guide(batch):
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Normal(0.8 * batch.x["a"], 0.2**0.5))
        with poutine.mask(mask=batch.mask["b"]):
            pyro.sample("w_b", dist.Normal(50.0, 1.0))


def test_private_latents_of_what_is_sought_come_from_the_model():
    batch = Batch({"a": torch.tensor([-1.0, 0.5]), "b": torch.tensor([-2.0, 0.0, 1.0])[:2]})
    exact = Normal(0.8 * batch.x["a"][:, None], (0.2 + 4 + 0.25) ** 0.5).log_prob(batch.x["b"])
    found = cross_conditional(private, private_guide, batch, batch, "b", "a", 20_000, seed=0)
    assert ((found.estimate - exact).abs() < 4 * found.se).all() and found.se.max() < 0.03


def chained(batch):
    """b depends on c, both of a row of the gallery: no distribution of one row scores another."""
    with pyro.plate("data", len(batch), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for m, loc in (("a", z), ("c", -z), ("b", z + 3 * batch.x["c"])):
            with poutine.mask(mask=batch.mask[m]):
                pyro.sample(m, dist.Normal(loc, 0.5), obs=batch.x[m])


def test_a_distribution_that_depends_on_the_row_is_made_for_every_row():
    batch = Batch({m: torch.tensor(v) for m, v in {"a": [0.3, -1.0], "b": [2.0, -1.0], "c": [0.5, -0.4]}.items()})

    def guide(batch):
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(0.8 * batch.x["a"], 0.2**0.5))

    found = cross_conditional(chained, guide, batch, batch, ("b", "c"), "a", 20_000, seed=0)
    z = torch.linspace(-6, 6, 4001).view(-1, 1, 1)
    x = batch.x
    joint = Normal(0.8 * x["a"][:, None], 0.2**0.5).log_prob(z)
    joint = joint + Normal(-z, 0.5).log_prob(x["c"]) + Normal(z + 3 * x["c"], 0.5).log_prob(x["b"])
    exact = joint.double().logsumexp(0) + torch.tensor(12 / 4000).log()
    assert ((found.estimate - exact).abs() < 4 * found.se).all() and found.se.max() < 0.05


def test_what_is_not_there_is_named(truth):
    rows, pair = truth.sample(3), (truth.model(), truth.exact_guide())
    gone = Batch(rows.x, {"b": torch.tensor([True, False, True])})
    with pytest.raises(ValueError, match="every gallery row needs 'b'"):
        cross_conditional(*pair, rows, gone, "b", "a", 5)
    extra = Batch({**rows.x, "d": rows.x["b"]})
    for of, given in (("d", "a"), ("a", "d")):
        with pytest.raises(NoLikelihood, match="d"):
            cross_conditional(*pair, extra, extra, of, given, 5)


@pytest.mark.parametrize(
    ("variant", "options"),
    [(dmvae, {"private": 2}), (nexus_elbo, {"codes": 2, "net": Linear(), "width": 4}), (mmvae, {})],
)
def test_hierarchies_and_private_latents_agree_with_conditionals_row_by_row(truth, variant, options):
    torch.manual_seed(0)
    recipe = variant(truth.modalities, 2, **options)
    like = truth.sample(2).to(torch.float32)
    queries, gallery = (simulate(recipe.model, like, seed=s)[0] for s in (5, 6))
    pair = recipe.model, recipe.guide
    found = cross_conditional(*pair, queries, gallery, "b", "a", 30_000, seed=0)
    merged = pairs(queries, gallery, ("a",))
    expected = log_conditional(*pair, merged, "b", "a", 20_000, refine=False, seed=1)
    error = (found.se.flatten() ** 2 + expected.se**2).sqrt()
    assert ((found.estimate.flatten() - expected.estimate).abs() < 4.5 * error).all()
    assert error.max() < 0.3
