"""What a pass needs is measured, and a run keeps to its memory."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_mm.batch import Batch
from pyro_mm.evaluation import GradientSteps, Laplace, log_marginal
from pyro_mm.evaluation.effort import Effort
from pyro_mm.evaluation.estimation import planned
from pyro_mm.evaluation.footprint import Meter, bytes_per_particle
from pyro_mm.evaluation.marginal import Marginal
from pyro_mm.evaluation.proposals import evaluating
from tests.helpers.estimates import Stretched, hidden, judge, truth

LG = truth()
FLOAT = 4


def test_the_meter_counts_what_is_alive_at_once() -> None:
    """Storages, each once: views and in-place results are free, what is dropped no longer counts."""
    outside = torch.zeros(1000)
    with Meter() as meter:
        a = torch.zeros(300)
        assert (meter.now, meter.peak) == (300 * FLOAT, 300 * FLOAT)
        b = a + 1
        assert (meter.now, meter.peak) == (600 * FLOAT, 600 * FLOAT)
        b.mul_(2)
        c = b.view(30, 10)[3:].T
        assert (meter.now, meter.peak) == (600 * FLOAT, 600 * FLOAT)
        del b
        parts = torch.ones(1, dtype=torch.float64).expand(5).split(2)  # the view of b is still alive
        assert meter.peak == 600 * FLOAT + 8
        del c, a, parts
        d = torch.ones(50, dtype=torch.float64)
        assert meter.now == 50 * 8 and meter.peak == 600 * FLOAT + 8
        e = (outside.unsqueeze(0) * torch.ones(2, 1)).sum()
        assert meter.peak == 50 * 8 + 1000 * FLOAT + 2 * FLOAT + 2000 * FLOAT, "what is viewed counts as well"
        del d
        e = e + 1
    assert meter.now == 1000 * FLOAT + 2 * FLOAT, "e as it was, which counts until the next function; and outside"


@pytest.mark.parametrize(("fixed", "each"), [(0, 8), (5000, 12), (100, 0)])
def test_bytes_per_particle_are_what_grows(fixed: int, each: int) -> None:
    def pass_of(k: int) -> object:
        return torch.zeros(fixed, dtype=torch.uint8), torch.zeros(k * each, dtype=torch.uint8)

    assert bytes_per_particle(pass_of) == max(each, 1)


def test_a_chain_of_layers_needs_its_largest_neighbours() -> None:
    """Without gradients a layer's input is dropped once its output is there; with them all are kept."""
    layers = nn.Sequential(nn.Linear(3, 500), nn.Tanh(), nn.Linear(500, 100), nn.Tanh(), nn.Linear(100, 700))

    def forward(k: int) -> object:
        with torch.no_grad():
            return layers(torch.zeros(k, 3))

    def kept(k: int) -> object:
        return layers(torch.zeros(k, 3, requires_grad=True))

    least = (500 + 500) * FLOAT
    assert least <= bytes_per_particle(forward) <= least + (3 + 100) * FLOAT
    everything = (500 + 500 + 100 + 100 + 700) * FLOAT
    assert everything - 700 * FLOAT <= bytes_per_particle(kept) <= everything + 3 * FLOAT


class Wide(nn.Module):
    """z ~ N(0, I_2);  x ~ N(W tanh(V z), 1/4) through a hidden layer, or several, of some width."""

    def __init__(self, width: int, layers: int = 1) -> None:
        super().__init__()
        inner = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.Tanh())]
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), *inner, nn.Linear(width, 3))

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 0.5).to_event(1), obs=batch.x["x"])


class Vague(nn.Module):
    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.2).to_event(1))


def units(model: nn.Module, batch: Batch, **options: Any) -> int:
    effort = Effort(**options)
    with evaluating(model, seed=0):
        return planned(Marginal(model, Vague(), "", effort), batch, effort).units


@pytest.mark.parametrize("memory", [4 << 20, 16 << 20])
def test_a_pass_holds_what_the_budget_allows(memory: int) -> None:
    """Input and output of the hidden layer's tanh are alive at once: 2 x 4096 floats, and little else."""
    batch = Batch({"x": torch.randn(200, 3)})
    found = units(Wide(4096), batch, memory=memory)
    assert 0.8 * memory <= found * 2 * 4096 * FLOAT <= memory
    deep, refined = (units(Wide(1024, 10), batch, memory=memory, refine=r) for r in (None, GradientSteps()))
    assert deep / refined == pytest.approx(11 / 2, rel=0.15), "gradients keep the outputs of ten layers, and one more"


def test_measuring_leaves_the_random_state_alone() -> None:
    model, batch = Wide(64), Batch({"x": torch.randn(20, 3)})
    before = torch.get_rng_state()
    effort = Effort()
    planned(Marginal(model, Vague(), "", effort), batch, effort)
    assert torch.equal(torch.get_rng_state(), before)
    bytes_per_particle(lambda k: torch.randn(k))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_budget_changes_only_the_draws() -> None:
    """Down to single rows; where a pass is the same, to the last bit."""
    batch, q = hidden(LG.sample(100, seed=1)), Stretched(LG, 1.3)
    exact = LG.log_marginal(batch)
    results = []
    for memory in (1 << 14, 1 << 18, 1 << 29):
        ev = log_marginal(LG.model(), q, batch, 200, memory=memory, independent=True, seed=0)
        judge(ev.estimate, ev.se, exact, mean=0.015)
        results.append(ev)
    assert torch.equal(
        results[-1].estimate, log_marginal(LG.model(), q, batch, 200, memory=1 << 30, independent=True, seed=0).estimate
    )
    assert not torch.equal(results[0].estimate, results[-1].estimate)
    refined = log_marginal(LG.model(), q, batch, 200, memory=1 << 18, refine=Laplace(), independent=True, seed=0)
    judge(refined.estimate, refined.se, exact, mean=0.015)
    sharp = log_marginal(LG.model(), q, batch, target_se=0.1, memory=1 << 18, independent=True, seed=0)
    judge(sharp.estimate, sharp.se, exact, mean=0.015)


def test_a_budget_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="memory must be at least 1, got 0"):
        log_marginal(LG.model(), Stretched(LG, 1.0), LG.sample(3), 10, memory=0)


LIMITED = """
import resource, sys
import pyro, torch
import pyro.distributions as dist
from torch import nn
from pyro_mm.batch import Batch
from pyro_mm.evaluation import GradientSteps, log_marginal

torch.set_num_threads(1)
options = eval(sys.argv[1])
ROWS, WIDTH = options.pop("rows"), options.pop("width", 50_000)


class Model(nn.Module):
    # z ~ N(0, I_2), x ~ N(A z, 1/4), A z through a wide layer: known in closed form
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(2, WIDTH, bias=False), nn.Linear(WIDTH, 3, bias=False)
        with torch.no_grad():
            self.down.weight.div_(10)

    def forward(self, batch):
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.down(self.up(z)), 0.5).to_event(1), obs=batch.x["x"])

    def exact(self, x):
        a = (self.down.weight.double() @ self.up.weight.double()).detach()
        return dist.MultivariateNormal(torch.zeros(3).double(), a @ a.T + 0.25 * torch.eye(3).double()).log_prob(x)


def guide(batch):
    with pyro.plate("data", len(batch), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.2).to_event(1))


def used():  # of the address space, bytes
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()


model = Model()
batch = Batch({"x": torch.randn(ROWS, 3)})
log_marginal(model, guide, batch[:2], 4, refine=GradientSteps(2, 2), chunk=8, seed=0)  # what is loaded lazily is now
limit = used() + (EXTRA << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = log_marginal(model, guide, batch, independent=True, seed=0, **options)
error = found.estimate - model.exact(batch.x["x"].double())
print("mean", error.mean().item(), "rms", (error / found.se).square().mean().sqrt().item())
"""


def limited(extra: int, **options: Any) -> subprocess.CompletedProcess[str]:
    """The run in a process that may take `extra` MB more than it has after a first small run."""
    script = dedent(LIMITED).replace("EXTRA", str(extra))
    return subprocess.run([sys.executable, "-c", script, repr(options)], capture_output=True, text=True, timeout=500)


ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the address space")


def assert_exact(done: subprocess.CompletedProcess[str], spread: float = 0.2) -> None:
    assert done.returncode == 0, done.stderr[-2000:]
    _, mean, _, rms = done.stdout.split()
    assert abs(float(mean)) < 0.02 and abs(float(rms) - 1) < spread


@ON_LINUX
def test_a_run_that_would_not_fit_is_cut_into_passes_that_do() -> None:
    """200 rows x 50 draws x 50,000 units are 2 GB; the process may have 256 MB, a pass 64."""
    assert_exact(limited(256, rows=200, k=50, memory=64 << 20))
    assert_exact(limited(256, rows=60, k=50, refine=True, memory=64 << 20), spread=0.35)
    failed = limited(256, rows=200, k=50, chunk=10_000)
    assert failed.returncode != 0 and "memory" in failed.stderr, "the limit is one"


@ON_LINUX
@pytest.mark.slow
def test_ten_thousand_draws_through_a_wide_layer() -> None:
    """40 rows x 10,000 draws x 10,000 units: 16 GB in one go."""
    assert_exact(limited(256, rows=40, width=10_000, k=10_000, memory=64 << 20))
