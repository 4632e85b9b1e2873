"""A module whose latent is a class, learnt by expectation maximisation, and what such modules tell each other."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.beliefs import believe
from pyro_mm.evaluation.components import log_density
from pyro_mm.evaluation.discrete import enumerated_sites, log_posterior
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import Program
from pyro_mm.models.joint import observe, presence
from pyro_mm.modules.parts import Part
from pyro_mm.weights import Sites

__all__ = [
    "ClassMixture",
    "em",
    "k_means",
    "likelihood_message",
    "log_evidence",
    "log_responsibilities",
    "posterior_message",
]


class ClassMixture(nn.Module):
    """c ~ Cat(pi);  x_m ~ p(x_m | c) for every modality m:  sum_c pi_c prod_m p(x_m | c).

    A Gaussian mixture, a co-occurrence model of words and classes, or both at once, as `parts` say; c is the
    enumerated site `c`, and rows may miss any modality.

    Args:
        parts: name -> p(x_m | c).
        classes: how many, C.
        pseudo: count added to every class: pi ~ Dirichlet(1 + pseudo).

    Raises:
        ValueError: fewer than two classes, or no part.
    """

    def __init__(self, parts: Mapping[str, Part], classes: int, pseudo: float = 1.0) -> None:
        super().__init__()
        if classes < 2 or not parts:
            raise ValueError(f"at least two classes and one part are needed, got {classes} and {list(parts)}")
        self.parts = nn.ModuleDict(parts)
        self.logits = nn.Parameter(torch.zeros(classes))
        self.classes, self.pseudo = classes, pseudo

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it generates."""
        return tuple(self.parts)

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            prior = dist.Categorical(logits=self.logits, validate_args=False)
            c = pyro.sample("c", prior, infer={"enumerate": "parallel"})
            for m, part in self.parts.items():
                observe(m, part, c, batch, mask=presence(batch, m))

    def maximise(self, batch: Batch, r: Tensor) -> None:
        """M-step: every parameter at the maximum of sum_ik r_ik log p(x_i, k) + `log_prior`, r `(N, C)`."""
        with torch.no_grad():
            self.logits.copy_((r.sum(0) + self.pseudo).log().log_softmax(-1))
            for m, part in self.parts.items():
                part.maximise(batch.x[m], r * batch.mask[m].unsqueeze(-1))  # type: ignore[operator]

    def log_prior(self) -> Tensor:
        """Log-density of the parameters, up to a constant."""
        own = self.pseudo * self.logits.log_softmax(-1).sum()
        return own + sum(part.log_prior() for part in self.parts.values())  # type: ignore[operator]


def log_responsibilities(program: Program, batch: Batch) -> Tensor:
    """log p(c | what is present) `(N, C)` of a program with one enumerated class, by summing over its values."""
    sites, depth = _enumerated(program, batch)
    return log_posterior(sites, depth)[..., 0, :].mT.contiguous()


def log_evidence(program: Program, batch: Batch) -> Tensor:
    """log p(what is present) `(N,)` in nats, exact: its one class is summed over."""
    sites, depth = _enumerated(program, batch)
    return log_density(sites, depth)[..., 0, :].logsumexp(0)


def _enumerated(program: Program, batch: Batch) -> tuple[Sites, int]:
    """The program's sites, every class of every row side by side."""
    with evaluating(program):
        sites, depth = enumerated_sites(program, batch, {}, 1, {})
    latents = [n for n, s in sites.items() if not s.observed]
    if len(latents) != 1 or not sites[latents[0]].enumerated:
        raise ValueError(f"{type(program).__name__} has latents {latents}: one enumerated class is what can be summed")
    return sites, depth


def likelihood_message(program: ClassMixture, batch: Batch) -> Tensor:
    """log p(x | c) `(N, C)` up to a constant per row: what the module's data say about the class, and no more.

    Responsibilities under a flat prior.  With these the parts of a model that was cut at c add up to the whole.
    """

    def flat(rows: Batch) -> dist.TorchDistribution:
        return dist.Categorical(logits=program.logits.new_zeros(len(rows), program.classes), validate_args=False)

    return log_responsibilities(believe(program, "c", flat), batch)


def posterior_message(program: ClassMixture, batch: Batch) -> Tensor:
    """log p(c | x) `(N, C)` by the module's own p(c): what SERKET sends back.

    The receiver has a p(c) of its own, so classes' shares count twice: sum_c p(c)^2 p(x_1 | c) p(x_2 | c), when both
    have learnt the same shares.  `likelihood_message` is without that.
    """
    return log_responsibilities(program, batch)


def em(program: ClassMixture, batch: Batch, r: Tensor, steps: int = 50) -> Tensor:
    """Expectation maximisation from responsibilities r `(N, C)`; those at the end.

    A step never lowers sum_i `log_evidence` + `log_prior`.
    """
    program.maximise(batch, r)
    for _ in range(steps):
        r = log_responsibilities(program, batch).exp()
        program.maximise(batch, r)
    return log_responsibilities(program, batch).exp()


def k_means(x: Tensor, classes: int, seed: int = 0) -> Tensor:
    """One-hot classes `(N, C)` of x `(N, D)` by k-means: where an expectation maximisation may start."""
    from sklearn.cluster import KMeans

    found = KMeans(classes, n_init=4, random_state=seed).fit_predict(x.detach().cpu().numpy())
    return nn.functional.one_hot(torch.as_tensor(found).long(), classes).to(x)
