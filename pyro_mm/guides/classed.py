"""A guide for models with a class c: q(c | x) q(z | x, c)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.distributions import Mixture
from pyro_mm.guides.joint_encoder import Concatenation
from pyro_mm.modality import Modality, positive
from pyro_mm.models.joint import presence
from pyro_mm.tracing import one_hot

__all__ = ["ClassExperts", "Classifier", "Enumerated"]


class ClassExperts(nn.Module):
    """z ~ sum_c q(c | x) q(z | x, c), c summed out; q(c | x) is the label where that is known.

    A row with nothing but a label gets the prior N(0, I), since z does not depend on the class.

    Args:
        modalities: what it sees; missing ones enter as zeros.
        dim: of z.
        classes: how many.
        label: the modality that holds the class.
    """

    def __init__(
        self, modalities: Sequence[Modality], dim: int, classes: int, label: str = "label", width: int = 512
    ) -> None:
        super().__init__()
        self.label, self.classes = label, classes
        self.features = Concatenation(modalities, dim, width)
        del self.features.out  # the layers before it are what is wanted
        self.classifier = nn.Linear(width, classes)
        self.experts = nn.Sequential(nn.Linear(width + classes, width), nn.ReLU(), nn.Linear(width, 2 * dim))

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return (*self.features.names, self.label)

    def logits(self, batch: Batch) -> Tensor:
        """log q(c | x) `(..., N, C)` up to a constant, of what is seen besides the label."""
        out: Tensor = self.classifier(self.features.hidden(batch))
        return out

    def experts_of(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """log q(c | x, label) `(..., N, C)`, and loc and scale of q(z | x, c) `(..., N, C, D)`."""
        h = self.features.hidden(batch)
        log_q = self.classifier(h).log_softmax(-1)
        known = presence(batch, self.label).unsqueeze(-1)
        if self.label in batch.x:
            is_label = one_hot(batch.x[self.label], self.classes) > 0
            log_q = torch.where(known, torch.where(is_label, 0.0, -torch.inf).to(log_q.dtype), log_q)
        every = torch.eye(self.classes, dtype=h.dtype, device=h.device)
        some = batch.present(self.features.names)[..., None, None]
        # With nothing seen at all q(c) is p(c), whatever the network makes of zeros.
        log_q = torch.where(some[..., 0] | known, log_q, -math.log(self.classes))
        wide = h.unsqueeze(-2).expand(*h.shape[:-1], self.classes, h.shape[-1])
        loc, raw = self.experts(torch.cat([wide, every.expand(*wide.shape[:-1], -1)], -1)).chunk(2, -1)
        return log_q, torch.where(some, loc, 0.0), torch.where(some, positive(raw), 1.0)

    def posterior(self, batch: Batch) -> Mixture:
        """q(z | x) `(N,)`."""
        log_q, loc, scale = self.experts_of(batch)
        return Mixture(loc, scale, log_q.detach().exp())

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            pyro.sample("z", self.posterior(batch))


class Enumerated(nn.Module):
    """c ~ q(c | x), enumerated;  z ~ q(z | x, c):  for training, where q(c | x) needs a gradient of its own."""

    def __init__(self, guide: ClassExperts) -> None:
        super().__init__()
        self.guide = guide

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return self.guide.names

    def latent_sites(self, names: Sequence[str]) -> tuple[str, ...]:
        """Class and latent."""
        return ("c", "z")

    def forward(self, batch: Batch) -> None:
        log_q, loc, scale = self.guide.experts_of(batch)
        with pyro.plate("data", len(batch), dim=-1):
            # Impossible classes keep a finite logarithm: 0 times it is 0, and -inf is no number to differentiate.
            c = pyro.sample("c", dist.Categorical(logits=log_q.clamp(min=-1e3)), infer={"enumerate": "parallel"})
            chosen = one_hot(c, self.guide.classes).unsqueeze(-1).to(loc.dtype)
            q = dist.Normal((chosen * loc).sum(-2), (chosen * scale).sum(-2), validate_args=False)
            pyro.sample("z", q.to_event(1))


class Classifier(nn.Module):
    """label ~ q(c | x), observed: a model of labels, whose likelihood trains the classifier."""

    symbol = "q"

    def __init__(self, guide: ClassExperts) -> None:
        super().__init__()
        self.guide = guide

    @property
    def names(self) -> tuple[str, ...]:
        """The label."""
        return (self.guide.label,)

    def latent_sites(self, names: Sequence[str]) -> tuple[str, ...]:
        """None."""
        return ()

    def parents_of(self, m: str) -> tuple[str, ...]:
        """What the label is read from."""
        return tuple(self.guide.features.names)

    def forward(self, batch: Batch) -> None:
        seen = presence(batch, self.guide.label) & batch.present(self.guide.features.names)
        with pyro.plate("data", len(batch), dim=-1), pyro.poutine.mask(mask=seen):
            known = batch.x.get(self.guide.label)
            pyro.sample(self.guide.label, dist.Categorical(logits=self.guide.logits(batch)), obs=known)
