"""A VAE that talks with modules of classes: bound and gradient of the one model, and what a second modality adds."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.beliefs import NormalMessage, believe, tilted
from pyro_mm.files import BadFile
from pyro_mm.guides import Experts, product_of_experts
from pyro_mm.modality import encoders
from pyro_mm.models import Joint
from pyro_mm.modules import ClassMixture, Counts, Exchange, Gaussians, UnitGaussians, exchange
from pyro_mm.objectives import elbo
from pyro_mm.training import State
from pyro_mm.training.checkpoint import snapshot
from tests.helpers.oracle import LG, assert_same_gradients, gradients, set_to_exact_experts

D = torch.float64
MEANS = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0]], dtype=D)
WORDS = torch.tensor([[6, 2, 1, 1], [1, 6, 2, 1], [1, 1, 2, 6]], dtype=D) / 10


def toy(n: int = 45) -> tuple[LG, Batch]:
    """z ~ N(m_c, I), x linear in it with orthogonal columns (the posterior is diagonal), words of c."""
    lg = LG(dims={"a": 4}, latent=2)
    lg.w["a"] = torch.linalg.qr(lg.w["a"]).Q * torch.tensor([0.9, 0.6], dtype=D)
    c = torch.arange(n) % 3
    z = MEANS[c] + torch.randn(n, 2, dtype=D)
    a = z @ lg.w["a"].T + lg.b["a"] + lg.s["a"] * torch.randn(n, 4, dtype=D)
    return lg, Batch({"a": a, "words": dist.Multinomial(3, WORDS[c]).sample()})


def exact_guide(lg: LG) -> Experts:
    guide = Experts(encoders(lg.modalities(), 2), product_of_experts).double()
    set_to_exact_experts(lg, guide.encoders)
    return guide


def modules() -> list[ClassMixture]:
    code = ClassMixture({"code": UnitGaussians(2, 3)}, 3)
    return [code.double(), ClassMixture({"words": Counts(4, 3)}, 3).double()]


class Bound(nn.Module):
    """The bound of p(c) N(z; m_c, I) p(a | z) p(words | c) under q(z_i) q(c_i), plus the parameters' prior, in closed
    form, of free numbers: q's and the modules'.
    """

    def __init__(self, lg: LG, batch: Batch, loc: Tensor, r: Tensor, both: list[ClassMixture]) -> None:
        super().__init__()
        self.lg, self.batch, self.both = lg, batch, both
        precision = 1 + (lg.w["a"] ** 2).sum(0) / lg.s["a"] ** 2
        self.loc, self.log_var = nn.Parameter(loc.clone()), nn.Parameter(-precision.log().expand_as(loc).clone())
        self.log_r = nn.Parameter(r.clamp(min=1e-300).log())
        code, words = both
        self.m, self.shares = nn.Parameter(code.parts["code"].loc.detach()), nn.Parameter(code.logits.detach())
        self.theta = nn.Parameter(words.parts["words"].logits.detach())

    def forward(self) -> Tensor:
        w, s, var = self.lg.w["a"], self.lg.s["a"], self.log_var.exp()
        off = self.batch.x["a"] - self.lg.b["a"] - self.loc @ w.T
        seen = -0.5 * (off.square().sum() + (var @ (w**2).T).sum()) / s**2
        square = (self.loc.unsqueeze(1) - self.m).square().sum(-1) + var.sum(-1, keepdim=True)
        log_pi, log_theta = self.shares.log_softmax(-1), self.theta.log_softmax(-1)
        log_r = self.log_r.log_softmax(-1)
        classes = log_pi - 0.5 * square + self.batch.x["words"] @ log_theta.T - log_r
        prior = self.both[0].pseudo * log_pi.sum() + self.both[1].parts["words"].pseudo * log_theta.sum()
        return seen + 0.5 * self.log_var.sum() + (log_r.exp() * classes).sum() + prior


def test_the_loop_ends_where_the_bound_of_the_one_model_is_flat():
    lg, batch = toy()
    both = modules()
    told = tilted(exact_guide(lg), "z", "mu")
    out = exchange(lg.model(), told, both, batch, rounds=30, epochs=0, steps=1)
    bound = Bound(lg, batch, out.codes, out.responsibilities, both)
    slopes = gradients(bound(), bound)
    worst = {n: float(s.abs().max()) for n, s in slopes.items()}
    assert max(worst.values()) < 1e-8
    # From nearby, variational inference in the single model, by gradient in all numbers at once, comes back to it.
    best = bound().detach()
    with torch.no_grad():
        for p in bound.parameters():
            p.add_(0.3 * torch.randn_like(p))
    assert best - bound().detach() > 5
    optimiser = torch.optim.LBFGS(list(bound.parameters()), max_iter=300, line_search_fn="strong_wolfe")
    optimiser.step(lambda: backward(bound, optimiser))
    torch.testing.assert_close(bound().detach(), best, rtol=0, atol=1e-4)
    torch.testing.assert_close(bound.log_r.softmax(-1).detach(), out.responsibilities, rtol=0, atol=1e-3)


def backward(bound: Bound, optimiser: torch.optim.Optimizer) -> float:
    optimiser.zero_grad()
    loss = -bound()
    loss.backward()
    return float(loss.detach())


class One(nn.Module):
    """c ~ Cat(pi);  z ~ N(m_c, I);  x ~ p(x | z): the single model in plain Pyro, the VAE's decoder in it."""

    def __init__(self, model: Joint, mixture: ClassMixture) -> None:
        super().__init__()
        self.model, self.mixture = model, mixture

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=self.mixture.logits))
            z = pyro.sample("z", dist.Normal(self.mixture.parts["code"].loc[c], 1.0).to_event(1))
            pyro.sample("a", self.model.decoders["a"](z), obs=batch.x["a"])


class Both(nn.Module):
    """q(z | x) q(c), the latter fixed and enumerated."""

    def __init__(self, guide: Experts, r: Tensor) -> None:
        super().__init__()
        self.guide, self.r = guide, r

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.guide.posterior(batch))
            pyro.sample("c", dist.Categorical(self.r), infer={"enumerate": "parallel"})


def test_the_vae_that_is_told_its_mean_has_the_gradient_of_the_single_model():
    lg, batch = toy(12)
    model, mixture = lg.model(), modules()[0]
    guide = Experts(encoders(lg.modalities(), 2), product_of_experts).double()
    r = torch.randn(12, 3, dtype=D).softmax(-1)
    mu = r @ mixture.parts["code"].loc.detach()
    pyro.set_rng_seed(7)
    apart = elbo(believe(model, "z", NormalMessage("mu")), guide)(Batch({**batch.x, "mu": mu}))
    pyro.set_rng_seed(7)
    estimator = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    together = estimator.differentiable_loss(One(model, mixture), Both(guide, r), batch) / 12
    pair = nn.ModuleList([model, guide])
    assert_same_gradients(gradients(apart, pair), gradients(together, pair))


def test_a_second_modality_makes_clusters_of_digits_purer(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and spoken digits, paired by class; nobody sees a label."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    serket: Any = importlib.import_module("serket")
    rows = serket.paired("digits", None, data_root / "fsdd", 500, 0)
    _, batch, label = rows
    for digit in range(10):  # every sound is one of its own digit's: their words are unlike those of others
        mine, rest = batch.x["sound"][label == digit].mean(0), batch.x["sound"][label != digit].mean(0)
        assert (mine - rest).abs().sum() > 10
    found = serket.scores(rows, 0, dim=6, rounds=2, epochs=10, lr=3e-3)
    print(found)
    alone = max(score for name, score in found.items() if "alone" in name)
    assert found["both, likelihoods as messages"] > alone + 0.04
    assert found["both, SERKET's messages"] > alone + 0.04


def talks(folder: Path | None, rounds: int, callbacks: Sequence[Any] = ()) -> tuple[Exchange, dict[str, Tensor]]:
    """An exchange whose weights are those of seed 0, and its parameters at the end."""
    pyro.set_rng_seed(0)
    lg, batch = toy(40)
    pair = lg.model(), Experts(encoders(lg.modalities(), 2), product_of_experts).double()
    both = modules()
    options = {"epochs": 2, "steps": 3, "batch_size": 10, "accelerator": "cpu", "callbacks": callbacks}
    out = exchange(*pair, both, batch, rounds=rounds, folder=folder, **options)
    return out, snapshot({str(i): m for i, m in enumerate((*pair, *both))})


def test_an_exchange_that_stops_goes_on_where_it_stood(tmp_path: Path) -> None:
    """To the bit, whether it stopped inside a round or rounds were added later."""

    class Stop:
        def on_epoch(self, state: State) -> None:
            if (state.stage, state.epoch) == ("round_2", 1):
                raise KeyboardInterrupt

    whole, ends = talks(None, 3)
    with pytest.raises(KeyboardInterrupt):
        talks(tmp_path / "a", 3, [Stop()])
    talks(tmp_path / "b", 1)
    for name in ("a", "b"):
        out, there = talks(tmp_path / name, 3)
        assert out.losses == whole.losses and torch.equal(out.responsibilities, whole.responsibilities)
        assert torch.equal(out.means, whole.means) and torch.equal(out.codes, whole.codes)
        assert all(torch.equal(there[n], ends[n]) for n in ends)
        assert (
            not list((tmp_path / name).rglob("checkpoint.pt")) and (tmp_path / name / "round_3" / "log.csv").is_file()
        )
    again, _ = talks(tmp_path / "a", 3)  # nothing is left to do
    assert torch.equal(again.responsibilities, whole.responsibilities)
    lg, batch = toy(6)
    with pytest.raises(ValueError, match=r"exchange.pt is about 40 rows of 2 numbers, these are 6 of 2"):
        exchange(lg.model(), exact_guide(lg), modules(), batch, folder=tmp_path / "a")
    (tmp_path / "a" / "exchange.pt").write_bytes(b"PK")
    with pytest.raises(BadFile, match="cannot be read as a checkpoint"):
        talks(tmp_path / "a", 3)


def test_rows_without_data_for_the_vae_send_no_code():
    """Such rows leave the Gaussians of the codes where they are, and hear their class from the words alone."""
    lg, batch = toy(90)
    seen = torch.arange(90) % 5 != 0
    holed = Batch(batch.x, {"a": seen, "words": torch.ones(90, dtype=torch.bool)})
    start = nn.functional.one_hot(torch.arange(90) % 3, 3).double()
    ends = []
    for rows, r in ((holed, start), (holed[seen], start[seen])):
        code = ClassMixture({"code": Gaussians(2, 3)}, 3).double()
        exchange(lg.model(), exact_guide(lg), [code], rows, rounds=1, epochs=0, steps=0, start=r)
        ends.append((code.parts["code"].loc.detach(), code.parts["code"].tril().detach()))
    torch.testing.assert_close(*ends)
    both = [ClassMixture({"code": Gaussians(2, 3)}, 3).double(), ClassMixture({"words": Counts(4, 3)}, 3).double()]
    out = exchange(lg.model(), exact_guide(lg), both, holed, rounds=1, epochs=0, steps=20)
    words = both[1].parts["words"].logits.log_softmax(-1)
    alone = (both[0].logits.log_softmax(-1) + batch.x["words"] @ words.T).softmax(-1)[~seen]
    torch.testing.assert_close(out.responsibilities[~seen], alone)


def test_mistakes_are_named():
    lg, batch = toy(6)
    pair = lg.model(), exact_guide(lg)
    with pytest.raises(ValueError, match="needs Gaussians called 'code'"):
        exchange(*pair, modules()[::-1], batch, epochs=0)
    with pytest.raises(ValueError, match="at least one round"):
        exchange(*pair, modules(), batch, epochs=0, rounds=0)
