"""Classes that the model enumerates, drawn given everything else: against the exact table of two dependent ones."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation import generate
from pyro_mm.evaluation.discrete import draw_enumerated, enumerated_sites, left_to_model, log_posterior
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import particles
from pyro_mm.weights import run

K, N = 3000, 2
FIRST = torch.tensor([0.3, 0.7])
SECOND = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
MEANS = torch.tensor([[-1.0, 0.0, 2.0], [1.0, -2.0, 0.5]])
SUMMED = {"enumerate": "parallel"}


class Two(nn.Module):
    """c ~ Cat;  d ~ Cat(. | c);  z ~ N(c, 1);  x ~ N(mean[c, d] + z, 1);  y ~ N(d, 0.1)."""

    names = ("x", "y")

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            c = pyro.sample("c", dist.Categorical(FIRST), infer=SUMMED)
            d = pyro.sample("d", dist.Categorical(SECOND[c]), infer=SUMMED)
            z = pyro.sample("z", dist.Normal(c.float(), 1.0))
            for m, loc, scale in (("x", MEANS[c, d] + z, 1.0), ("y", d.float(), 0.1)):
                with pyro.poutine.mask(mask=batch.mask[m]):
                    pyro.sample(m, dist.Normal(loc, scale), obs=batch.x[m])


class OfZ(nn.Module):
    """z ~ N(x, 1)."""

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(batch.x["x"], 1.0))


def table(x: Tensor, z: Tensor) -> Tensor:
    """p(c, d | z, x) `(K, N, 2, 3)`."""
    log_p = FIRST.log()[:, None] + SECOND.log() + dist.Normal(torch.arange(2.0), 1.0).log_prob(z[..., None])[..., None]
    log_p = log_p + dist.Normal(MEANS + z[..., None, None], 1.0).log_prob(x[:, None, None])
    return log_p.flatten(-2).softmax(-1).reshape(*log_p.shape)


def test_the_posterior_is_the_exact_table_and_draws_follow_it() -> None:
    batch = Batch({"x": torch.tensor([0.5, -1.0]), "y": torch.zeros(N)}).only("x")
    model, guide = Two(), OfZ()
    with evaluating(model, guide, seed=0):
        seen = run(particles(guide, K), batch)
        z = seen["z"].value.squeeze(1)
        plain = run(particles(model, K), batch)
        assert left_to_model(plain, seen) == ["c", "d"]
        sites, depth = enumerated_sites(model, batch, seen, K, {})
        found = log_posterior(sites, depth)  # (d, c, K, N): the second to be enumerated comes first
        exact = table(batch.x["x"], z)
        torch.testing.assert_close(found.exp().permute(2, 3, 1, 0), exact, rtol=1e-4, atol=1e-5)
        drawn = draw_enumerated(model, batch, seen, K, ["c", "d"])
    assert drawn["c"].shape == drawn["d"].shape == (K, 1, N)
    counts = torch.zeros(N, 2, 3)
    for n in range(N):
        counts[n].index_put_((drawn["c"][:, 0, n], drawn["d"][:, 0, n]), torch.ones(K), accumulate=True)
    torch.testing.assert_close(counts / K, exact.mean(0), atol=4 * 0.5 / K**0.5, rtol=0)


def test_generated_values_share_the_drawn_classes() -> None:
    """y is N(d, .1), x lies about mean[c, d] + z: both of one draw of d, and all of it known from y."""
    batch = Batch({"x": torch.tensor([0.5, -1.0]), "y": torch.tensor([2.0, 0.0])})
    made = generate(Two(), OfZ(), batch, 500, seed=1)
    assert torch.equal(made["y"].mean, batch.x["y"].expand(500, N))  # y leaves no doubt about d
    alone = generate(Two(), OfZ(), batch.only("x"), 2000, seed=1)
    share = torch.stack([(alone["y"].mean == d).float().mean(0) for d in range(3)], -1)
    with evaluating(seed=2):
        z = batch.x["x"] + torch.randn(20_000, N)
    torch.testing.assert_close(share, table(batch.x["x"], z).sum(-2).mean(0), atol=0.05, rtol=0)
