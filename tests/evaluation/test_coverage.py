"""Do nominal 95 % intervals cover, whatever is missing and whichever guide proposes?  And in single precision?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.data.toy import LinearGaussian
from pyro_mm.evaluation import Evidence, log_conditional, log_marginal
from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.likelihoods import Bernoulli, Categorical, Laplace
from pyro_mm.modality import Modality, decoders, encoders
from pyro_mm.models import Joint
from tests.helpers.estimates import guide, truth

LG = truth()
GUIDES = ("mean-field", "poe", "moe", "mopoe", "surrogate")
N = 500


def masked(n: int = N, seed: int = 1) -> Batch:
    """A quarter of the rows each: complete; missing at random, some empty; without a; with one modality only."""
    noise = torch.Generator().manual_seed(seed)
    kind = torch.arange(n) % 4
    random = torch.rand(n, 3, generator=noise) < 0.5
    single = torch.randint(3, (n,), generator=noise)
    mask = {}
    for i, m in enumerate("abc"):
        choices = torch.stack([torch.ones(n).bool(), random[:, i], torch.tensor(m != "a").expand(n), single == i])
        mask[m] = choices.gather(0, kind[None])[0]
    return Batch(LG.sample(n, seed=seed).x, mask)


def estimates(q: nn.Module, data: Batch, k: int, **options: Any) -> list[tuple[Evidence, Tensor]]:
    """Of log p(x_S), and of log p(a | b) where a is present (elsewhere it is 0), with the exact values."""
    some, chunk = data[data.mask["a"]], 1 << 17
    marginal = log_marginal(LG.model(), q, data, k, seed=0, chunk=chunk, **options)
    conditional = log_conditional(LG.model(), q, some, "a", "b", k, seed=1, chunk=chunk, **options)
    return [(marginal, LG.log_marginal(data)), (conditional, LG.log_conditional(some, "a", "b"))]


def scores(ev: Evidence, exact: Tensor) -> Tensor:
    """Standardised errors of the rows with a Monte Carlo error that is to be believed; others have to be exact."""
    error, moves = ev.estimate - exact, ev.se > 1e-6
    assert bool((error[~moves].abs() < 1e-6).all())
    return (error / ev.se)[moves & ev.reliable]


def coverage(z: Tensor) -> float:
    return (z.abs() < 1.96).double().mean().item()


def test_the_rows_have_every_kind_of_gap() -> None:
    data = masked()
    patterns = set(map(tuple, torch.stack(list(data.mask.values()), -1).tolist()))
    assert len(patterns) == 8 and (~data.present()).sum().item() > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", GUIDES)
def test_ten_thousand_draws_are_exact_and_their_intervals_cover(kind: str) -> None:
    """The i.i.d. error is on the safe side for components drawn in fixed proportions, so no upper limit here."""
    for ev, exact in estimates(guide(kind, LG), masked(), 10_000):
        assert abs((ev.estimate - exact).mean().item()) < 0.01
        assert coverage(scores(ev, exact)) >= 0.92
        assert ev.unreliable_share < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mean-field", "moe", "mopoe", "surrogate"])
def test_independent_draws_have_the_nominal_coverage(kind: str) -> None:
    for ev, exact in estimates(guide(kind, LG), masked(1000), 2000, defensive=0.0, independent=True):
        assert 0.92 <= coverage(scores(ev, exact)) <= 0.97


def tail_shape(q: nn.Module, data: Batch) -> float:
    """Of p(z | x) / q(z), both Gaussian: 1 - the smallest eigenvalue of Cov_q Cov_p^-1; no variance from 1/2 on."""
    with torch.no_grad():
        scale = q.posterior(data[:1]).base_dist.scale[0]
    return 1 - torch.linalg.eigvals(scale.square().diag() @ LG.precision(data[:1])[0]).real.min().item()


@pytest.mark.slow
def test_intervals_of_too_narrow_a_guide_need_the_prior() -> None:
    """A product of experts that each hold the prior is too narrow.  From c alone its weights have no variance (k = .6):
    an estimate that is too low comes with an error that is too small, and k-hat under .7 vouches for the estimate, not
    for the error.  Draws from the prior bound the weights.  Where k is small, the guide needs no help.
    """
    q, plain = guide("poe", LG), {"defensive": 0.0, "independent": True}
    narrow = LG.sample(N, seed=1).only("c")
    assert tail_shape(q, narrow) > 0.6
    exact = LG.log_marginal(narrow)
    z = scores(log_marginal(LG.model(), q, narrow, 2000, seed=0, **plain), exact)
    assert coverage(z) < 0.87 and (z < -1.96).sum() > 20 * (z > 1.96).sum()
    z = scores(log_marginal(LG.model(), q, narrow, 2000, seed=0, independent=True), exact)
    assert coverage(z) > 0.92
    fine = [LG.sample(N, seed=1).only(*names) for names in ("a", "b", "ab", "ac")]
    assert all(tail_shape(q, data) < 0.3 for data in fine)
    z = torch.cat([scores(log_marginal(LG.model(), q, d, 2000, seed=0, **plain), LG.log_marginal(d)) for d in fine])
    assert 0.92 <= coverage(z) <= 0.97


@pytest.mark.parametrize("kind", GUIDES)
def test_hidden_from_every_row_or_missing_in_every_row(kind: str) -> None:
    """`without` lets a guide skip an encoder, a mask does not: two paths, the same numbers."""
    data, absent = LG.sample(N, seed=1), torch.zeros(N, dtype=torch.bool)
    skipped = log_marginal(LG.model(), guide(kind, LG), data.without("a"), 200, seed=0)
    masked_out = log_marginal(LG.model(), guide(kind, LG), Batch(data.x, {"a": absent}), 200, seed=0)
    torch.testing.assert_close(skipped.estimate, masked_out.estimate, rtol=0, atol=1e-9)
    assert skipped.quantity == masked_out.quantity == "log p(b, c)"


class _Values(Messenger):
    """Every draw of z is this one."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "z" and msg["value"] is None:
            msg["value"], msg["done"] = self.z, True


class Fixed(nn.Module):
    """The guide, its draws given."""

    def __init__(self, program: nn.Module, z: Tensor) -> None:
        super().__init__()
        self.program, self.z = program, z

    def forward(self, batch: Batch) -> None:
        with _Values(self.z):
            self.program(batch)


def assert_precision_is_enough(models: list[nn.Module], guides: list[nn.Module], data: Batch, z: Tensor) -> None:
    """Both precisions, the same draws `(K, 1, N, D)`: estimates within 1e-3 nat, errors and k-hat near as well."""
    k, rows, found = len(z), len(data), []
    for model, q, dtype in zip(models, guides, (torch.float64, torch.float32), strict=True):
        drawn, batch = Fixed(q, z.to(dtype)), data.to(dtype)
        options: dict[str, Any] = {"k": k, "defensive": 0.0, "chunk": k * rows}
        assert batch.x["a"].dtype is dtype
        found.append(
            (log_marginal(model, drawn, batch, **options), log_conditional(model, drawn, batch, "a", "b", **options))
        )
    for double, single in zip(*found, strict=True):
        assert (double.estimate - single.estimate).abs().max().item() < 1e-3
        assert (double.se - single.se).abs().max().item() < 1e-3
        assert double.estimate.std().item() > 0.1 and not torch.equal(double.estimate, single.estimate)


@pytest.mark.parametrize("kind", GUIDES)
def test_single_precision_scores_the_same_draws_alike(kind: str) -> None:
    """Parameters are the float32 model's, so that only the arithmetic differs."""
    wide = truth((60, 50, 40), 4)
    low = LinearGaussian(
        {m: w.float() for m, w in wide.weights.items()}, {m: b.float() for m, b in wide.offsets.items()}, wide.scales
    )
    high = LinearGaussian(
        {m: w.double() for m, w in low.weights.items()}, {m: b.double() for m, b in low.offsets.items()}, wide.scales
    )
    data = Batch(high.sample(100, seed=1).x, masked(100).mask)
    torch.manual_seed(0)
    mean, covariance = high.posterior(data)
    z = mean + torch.randn(200, 1, 100, 4).double() @ torch.linalg.cholesky(covariance[0]).mT
    models, guides = [high.model(), low.model()], [guide(kind, high), guide(kind, low)]
    assert_precision_is_enough(models, guides, data, z)


def test_single_precision_is_enough_for_images() -> None:
    """784 binary pixels, a label and 192 real numbers: sums of -800 nats, which float32 holds to about 1e-4."""
    modalities = [
        Modality("a", (1, 28, 28), Bernoulli()),
        Modality("b", (), Categorical(10)),
        Modality("c", (3, 8, 8), Laplace(0.75)),
    ]
    torch.manual_seed(0)
    x = {"a": (torch.rand(50, 1, 28, 28) < 0.3).float(), "b": torch.randint(10, (50,)), "c": torch.randn(50, 3, 8, 8)}
    pairs = [(Joint(decoders(modalities, 8), 8), Experts(encoders(modalities, 8), product_of_experts)) for _ in "12"]
    for one, other in zip(*pairs, strict=True):
        other.load_state_dict(one.state_dict())
    (high, q_high), (low, q_low) = pairs
    z = 0.7 * torch.randn(100, 1, 50, 8)
    assert_precision_is_enough([high.double(), low], [q_high.double(), q_low], Batch(x).to(torch.float64), z.double())
