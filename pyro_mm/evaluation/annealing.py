"""The geometric path from an explicit proposal to the posterior, and chains that walk along it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.effort import Effort, Quantity, blank, fit, fit_all, proposal_of
from pyro_mm.evaluation.hmc import State, adapted, first_step, transition
from pyro_mm.evaluation.latents import Coordinates
from pyro_mm.evaluation.refine.laplace import Laplace, inverse_root, spread_of
from pyro_mm.evaluation.target import Target, exploring

__all__ = ["Path", "Schedule"]

PILOTS = 200  # draws of q that say how wide it is
WARMUP = 20  # transitions at the first temperature, to find a step size
SPREAD = 4.0  # b_t is a sigmoid over +- this: small steps near both ends, where f_b changes most


@dataclass(frozen=True)
class Schedule:
    """Inverse temperatures `(T + 1,)` from 0 to 1, leapfrog steps, their size per temperature and datum `(T, N)`."""

    b: tuple[float, ...]
    leaps: int
    steps: Tensor | None = None

    @staticmethod
    def sigmoid(temperatures: int, leaps: int) -> Schedule:
        """b_t a sigmoid of equal steps, rescaled to reach 0 and 1."""
        s = torch.linspace(-SPREAD, SPREAD, temperatures + 1, dtype=torch.float64).sigmoid()
        return Schedule(tuple(((s - s[0]) / (s[-1] - s[0])).tolist()), leaps)


class Path:
    """log f_b(u) = (1 - b) log q(u) + b log p(x, u) for a block of rows, in real coordinates.

    q is the mixture that `log_marginal` would draw from: the guide or what refines it, and a share of the prior.
    """

    def __init__(self, quantity: Quantity, block: Batch, effort: Effort) -> None:
        refined = fit_all(quantity, block, effort)
        self.proposal = proposal_of(quantity, block, effort, refined)
        self.name = effort.describe(["guide"], self.proposal)
        self.block, self.rows = block, len(block)
        (where,) = blank(quantity, block)
        self.coordinates: Coordinates = where.coordinates
        self.precisions = self._precisions(quantity)
        Target(quantity.model, block, self.coordinates)  # refuses latents that would be drawn anew at every look
        self._require_function_of_u()

    def _precisions(self, quantity: Quantity) -> tuple[Tensor, Tensor]:
        """About those of q and of the posterior, `(N, D, D)`: what a mass matrix should look like at either end."""
        draws = self.proposal.draw(self.block, self.proposal.assign(PILOTS))
        wide = spread_of(self.coordinates.pack(draws.values)).double()
        (shape,) = fit(quantity, self.block, Laplace())
        return torch.diag_embed(wide**-2), torch.cholesky_inverse(shape.root)

    def root(self, b: float) -> Tensor:
        """R `(N, D, D)` with R R' about the covariance of f_b; masked coordinates do not move."""
        start, end = self.precisions
        seen = self.coordinates.seen
        return torch.where(seen.unsqueeze(-1) & seen.unsqueeze(-2), inverse_root((1 - b) * start + b * end), 0.0)

    def move(self, state: State, b: float, step: Tensor, leaps: int) -> tuple[State, Tensor]:
        """One transition that leaves f_b as it is, and its acceptance rates."""
        return transition(state, self.look, self.root(b), step, leaps, b)

    def look(self, u: Tensor) -> State:
        """Both densities and their gradients at points `(K, N, D)`."""
        with exploring():
            u = u.detach().requires_grad_()
            values, jacobian = self.coordinates.unpack(u)
            draws = self.proposal.at(self.block, values, len(u))
            log_q = draws.log_q.double() + jacobian
            log_p = draws.log_weight() + log_q
            slopes = [torch.autograd.grad(v.sum(), u, retain_graph=True)[0] for v in (log_p, log_q)]
        slopes = [slope.nan_to_num(0.0, 0.0, 0.0) for slope in slopes]
        return State(u.detach(), log_p.detach(), slopes[0], log_q.detach(), slopes[1])

    def start(self, chains: int) -> State:
        """Draws of q."""
        drawn = self.proposal.draw(self.block, self.proposal.assign(chains))
        return self.look(self.coordinates.pack(drawn.values))

    def piloted(self, schedule: Schedule, chains: int) -> Schedule:
        """The schedule with step sizes adapted along a forward run, whose states are thrown away."""
        state = self.start(chains)
        step = first_step(self.coordinates.dim, self.rows, state.u.device)
        for _ in range(WARMUP):
            state, rate = self.move(state, schedule.b[1], step, schedule.leaps)
            step = adapted(step, rate, schedule.leaps)
        steps = []
        for b in schedule.b[1:]:
            state, rate = self.move(state, b, step, schedule.leaps)
            step = adapted(step, rate, schedule.leaps)
            steps.append(step)
        return replace(schedule, steps=torch.stack(steps))

    def forward(self, schedule: Schedule, chains: int) -> tuple[Tensor, float]:
        """log w `(chains, N)`, and the mean acceptance rate."""
        return self._walk(self.start(chains), schedule, range(1, len(schedule.b)))

    def reverse(self, schedule: Schedule, chains: int, exact: dict[str, Tensor]) -> tuple[Tensor, float]:
        """log w of chains that start at posterior draws: E[1/w] = 1/p(x)."""
        u = self.coordinates.pack(exact).expand(chains, -1, -1)
        return self._walk(self.look(u), schedule, range(len(schedule.b) - 1, 0, -1))

    def _walk(self, state: State, schedule: Schedule, order: range) -> tuple[Tensor, float]:
        """Weigh and move at every temperature of `order`; both directions weigh the same state against b_t, b_{t-1}."""
        assert schedule.steps is not None, "a schedule is piloted first"
        log_w, rates = torch.zeros_like(state.log_p), []
        for t in order:
            log_w = log_w + (schedule.b[t] - schedule.b[t - 1]) * (state.log_p - state.log_q)
            at = t if order.step > 0 else t - 1  # backwards, the transition that led to where the weight was taken
            if at in (0, len(schedule.b) - 1):
                continue  # a move at either end changes no weight
            state, rate = self.move(state, schedule.b[at], schedule.steps[at - 1], schedule.leaps)
            rates.append(rate.mean().item())
        return log_w, sum(rates) / max(1, len(rates))

    def _require_function_of_u(self) -> None:
        state = self.start(1)
        again = self.look(state.u)
        if float((again.log_q - state.log_q).abs().max()) > 1e-6 * (1 + float(state.log_q.abs().max())):
            raise ValueError(
                "the guide's density at given latents differs from call to call: it holds randomness that no site "
                "shows, and annealing needs a fixed density; use random_views(...) or log_marginal"
            )
