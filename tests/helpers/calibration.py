"""Linear-Gaussian systems whose guides are ranked."""

from __future__ import annotations

from itertools import combinations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyro_mm.batch import Batch
from tests.helpers.estimates import truth
from tests.helpers.programs import Private

BIG = truth((12, 8, 5), 4)
LINE = truth((6, 5, 4), 1)
SMALL = truth()
DATA = BIG.sample(1000, seed=1)
EVERY = [s for size in (1, 2, 3) for s in combinations("abc", size)]
ALL = ("a", "b", "c")
UNIT = dist.Normal(torch.zeros(()).double(), 1.0)


def rows(n: int) -> Batch:
    return Batch({"x": torch.zeros(n, dtype=torch.float64)})


class ExactPrivate(nn.Module):
    """z ~ p(z | x_S), w_m ~ p(w_m | z, x_m), exact for `Private`; `narrow` shrinks the standard deviation of w_a."""

    def __init__(self, model: Private, narrow: float = 1.0) -> None:
        super().__init__()
        self.model, self.narrow = model, narrow

    def forward(self, batch: Batch) -> None:
        lg = self.model.lg
        precision, moment = torch.eye(2).double().expand(len(batch), 2, 2), torch.zeros(len(batch), 2).double()
        for m in lg.dims:
            noise = self.model.v[m] @ self.model.v[m].T + lg.s[m] ** 2 * torch.eye(lg.dims[m]).double()
            gain, seen = torch.linalg.solve(noise, lg.w[m]).T, batch.mask[m].double().unsqueeze(-1)
            precision = precision + seen.unsqueeze(-1) * (gain @ lg.w[m])
            moment = moment + seen * ((batch.x[m] - lg.b[m]) @ gain.T)
        loc = torch.linalg.solve(precision, moment)
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))
            for m in lg.dims:
                v = self.model.v[m]
                root = torch.linalg.cholesky(torch.inverse(torch.eye(2).double() + v.T @ v / lg.s[m] ** 2))
                mean = (batch.x[m] - lg.b[m] - z @ lg.w[m].T) @ v / lg.s[m] ** 2 @ (root @ root.T)
                scale = root * (self.narrow if m == "a" else 1.0)
                with poutine.mask(mask=batch.mask[m]):
                    pyro.sample(f"w_{m}", dist.MultivariateNormal(mean, scale_tril=scale))
