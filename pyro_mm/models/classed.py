"""A model in which the class is a cause of what is seen, rather than one more thing that is seen."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.models.joint import observe, presence
from pyro_mm.models.priors import as_prior
from pyro_mm.tracing import one_hot

__all__ = ["Classed"]


class Classed(nn.Module):
    """c ~ Cat(pi);  z ~ p(z);  label = c;  x_m ~ p(x_m | z, c):  sum_c pi_c 1[label = c] p(z) prod_m p(x_m | z, c).

    M2 of Kingma et al. (2014), for any number of modalities.  Where a row lacks its label, c is summed over exactly:
    the site `c` is enumerated (`infer={"enumerate": "parallel"}`), in likelihoods inside every draw of z.

    Args:
        decoders: name -> network (z, one-hot c) -> p(x_m | z, c).
        prior: a module that returns p(z), or a dimension for N(0, I).
        classes: how many.
        label: the modality that holds the class.

    Raises:
        ValueError: `label` is among the decoders, or fewer than two classes.
    """

    uniform: Tensor

    def __init__(
        self, decoders: Mapping[str, nn.Module], prior: int | nn.Module, classes: int, label: str = "label"
    ) -> None:
        super().__init__()
        if label in decoders:
            raise ValueError(f"'{label}' is the class itself: it has no decoder")
        if classes < 2:
            raise ValueError(f"at least two classes are needed, got {classes}")
        self.decoders = nn.ModuleDict(decoders)
        self.prior = as_prior(prior)
        self.label, self.classes = label, classes
        self.register_buffer("uniform", torch.zeros(classes))

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it generates."""
        return (*self.decoders, self.label)

    def parents_of(self, m: str) -> tuple[str, ...]:
        """The latents that x_m, or the label, depends on."""
        return ("c",) if m == self.label else ("z", "c")

    def forward(self, batch: Batch) -> None:
        with pyro.plate("data", len(batch), dim=-1):
            z = pyro.sample("z", self.prior())
            c = pyro.sample("c", dist.Categorical(logits=self.uniform), infer={"enumerate": "parallel"})
            chosen = one_hot(c, self.classes)
            with pyro.poutine.mask(mask=presence(batch, self.label)):
                certain = torch.where(chosen > 0, 0.0, -torch.inf).to(z.dtype)
                pyro.sample(self.label, dist.Categorical(logits=certain, validate_args=False), obs=self._label(batch))
            lead = torch.broadcast_shapes(z.shape[:-1], chosen.shape[:-1])
            both = torch.cat([z.expand(*lead, z.shape[-1]), chosen.to(z.dtype).expand(*lead, self.classes)], -1)
            for m, decode in self.decoders.items():
                observe(m, decode, both, batch)

    def _label(self, batch: Batch) -> Tensor | None:
        return batch.x.get(self.label)
