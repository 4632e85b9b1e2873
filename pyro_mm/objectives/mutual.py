"""One modality as the label of another: the bound of MEME."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_mm.batch import Batch
from pyro_mm.handlers import Program, given, particles
from pyro_mm.objectives.algebra import Objective, Term
from pyro_mm.objectives.formula import q_of, tex
from pyro_mm.weights import replay, run

__all__ = ["mutual"]


def mutual(
    model: Program,
    q_s: Program,
    q_t: Program,
    s: str,
    t: str,
    *,
    samples: int = 10,
    weight: float = 10.0,
    closed: bool = True,
) -> Objective:
    """w [log p(s|z) - log p(t|z) - KL(q(z|s) || q(z|t))] + c log q(t|s),  z ~ q(z|s),  as a loss.

    MEME's (Joy et al. 2022, section 3): w = p(t|z) / q(t|s) is constant to gradients, and q(t|s) the mean of p(t|z)
    over z and as many more draws from q(z|s) as `samples`.

    With c = 1 and log q(z|s) - log q(z|t) at z in place of the KL (`closed=False`) the expectation is, but for the
    error of the inner mean, a lower bound of  log p(s|t),  p(s|t) = integral q(z|t) p(s|z) dz,  and tight where
    q(z|s) p(t|z) is proportional to q(z|t) p(s|z).  The authors' code has the KL and c = 10; since w depends on z, that
    is not the bound.

    A mean over rows in nats; rows that have both s and t count.

    Args:
        model: has the observations s and t.
        q_s, q_t: guides of z that see s alone, and t alone, without a mixture.

    Raises:
        ValueError: `samples` is less than 1.
    """
    if samples < 1:
        raise ValueError(f"the inner mean takes at least 1 sample, got {samples}")
    return Objective([(1.0, Mutual(model, q_s, q_t, s, t, samples, weight, closed))])


class Mutual(Term):
    """See `mutual`."""

    label = "mutual"

    def __init__(
        self, model: Program, q_s: Program, q_t: Program, s: str, t: str, samples: int, weight: float, closed: bool
    ) -> None:
        super().__init__()
        self.model, self.q_s, self.q_t, self.s, self.t = model, q_s, q_t, s, t
        self.samples, self.weight, self.closed = samples, weight, closed
        self.label_of = given(model, t)

    def forward(self, batch: Batch) -> Tensor:
        rows = batch.mask[self.s] & batch.mask[self.t]
        q, p = run(self.q_s, batch)["z"], run(self.q_t, batch)["z"]
        sites = replay(self.model, batch, {"z": q.value})
        log_s, log_t = sites[self.s].log_prob(), sites[self.t].log_prob()
        log_label = self._log_label(batch, log_t)
        w = (log_t - log_label).exp().detach()
        apart = kl_divergence(q.fn, p.fn) if self.closed else q.fn.log_prob(q.value) - p.fn.log_prob(q.value)
        value = torch.where(rows, w * (log_s - log_t - apart) + self.weight * log_label, 0.0).sum() / len(batch)
        self.report = {"": value.detach()}
        return -value

    def _log_label(self, batch: Batch, own: Tensor) -> Tensor:
        """log q(t|s) from more draws and z itself, which bounds w by their number."""
        more = run(particles(self.q_s, self.samples), batch)["z"].value
        others = replay(particles(self.label_of, self.samples), batch, {"z": more})[self.t].log_prob()
        return torch.cat([others.squeeze(1), own.unsqueeze(0)]).logsumexp(0) - log(self.samples + 1)

    def formula(self) -> str:
        bound = f"log p({self.s} | z) - log p({self.t} | z) - KL({q_of(self.q_s)} || {q_of(self.q_t)})"
        c = "" if self.weight == 1.0 else f"{self.weight:g} "
        return f"(E_{q_of(self.q_s)}[w ({bound})] + {c}log q({self.t} | {self.s}))"

    def latex(self) -> str:
        return tex(self.formula())
