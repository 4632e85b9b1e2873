"""Guides that descend a hierarchy: every level's posterior is given the levels above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mm.batch import Batch
from pyro_mm.guides.fusion import product_of_experts
from pyro_mm.links import Link
from pyro_mm.modality import Modality
from pyro_mm.models.hierarchical import branch_sites, chain, trunk_sites
from pyro_mm.networks import MLP, Net

__all__ = ["Evidences", "TopDown", "corrected"]


class Evidences(nn.Module):
    """x_m -> features h_m; for every shared level an expert q(z_l | h_m, levels above), a Gaussian.

    Args:
        modality: whose network gives h_m.
        dims: sizes of the shared levels from the top down.
        width: of h_m.
        net: blueprint of the small network of every level.
    """

    def __init__(self, modality: Modality, dims: Sequence[int], width: int = 256, net: Net | None = None) -> None:
        super().__init__()
        self.modality = modality
        self.body = modality.net.encoder(modality.likelihood.feature_shape(modality.shape), width)
        above = [sum(dims[:level]) for level in range(len(dims))]
        self.heads = nn.ModuleList([Link(width + a, d, net or MLP((width,))) for a, d in zip(above, dims, strict=True)])

    def features(self, x: Tensor) -> Tensor:
        """h_m `(..., width)`."""
        return self.modality.apply_net(self.body, x).relu()

    def expert(self, level: int, h: Tensor, above: Sequence[Tensor]) -> dist.TorchDistribution:
        """q(z_l | h_m, z_{>l}), level 0 being the top."""
        lead = torch.broadcast_shapes(h.shape[:-1], *(z.shape[:-1] for z in above))
        return self.heads[level](torch.cat([t.expand(*lead, t.shape[-1]) for t in (h, *above)], -1))


class TopDown(nn.Module):
    """z ~ q(z | x_S), then every level given those above it, each corrected by the model's own conditional:

        q(z_l | z_{>l}, x_S) = p(z_l | z_{>l}) prod_{m in S} q_m(z_l | x_m, z_{>l}), normalised
        q(z_m | z, x_m)      = p(z_m | z) q_m(z_m | x_m), normalised

    (Dorent et al. 2023, eq. 6, for the shared levels; the same rule for the branches.)  What is missing leaves the
    model's conditional, so nothing of a hidden modality can leak.

    Args:
        model: the `Hierarchical` model; its links are shared, not copied.
        evidences: name -> `Evidences` with an expert for z and every shared level.
        private: name -> network x_m -> q_m(z_m | x_m), or several from the top of the branch down.
    """

    model: Any

    def __init__(
        self,
        model: nn.Module,
        evidences: Mapping[str, Evidences],
        private: Mapping[str, nn.Module | Sequence[nn.Module]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.evidences = nn.ModuleDict(evidences)
        self.private = nn.ModuleDict({m: chain(c) for m, c in (private or {}).items()})

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities it can see."""
        return tuple(self.evidences)

    def latent_sites(self, names: Sequence[str]) -> tuple[str, ...]:
        """The latents it infers from these modalities."""
        own = [s for m in names if m in self.private for s in branch_sites(m, len(self.private[m]))]  # type: ignore[arg-type]
        return ("z", *trunk_sites(len(self.model.trunk)), *own)

    def forward(self, batch: Batch) -> None:
        seen = [m for m in self.evidences if m in batch.x]
        h = {m: self.evidences[m].features(batch.x[m]) for m in seen}  # type: ignore[operator]
        mask = torch.stack(torch.broadcast_tensors(*(batch.mask[m] for m in seen)), -1)
        trunk = self.model.trunk
        with pyro.plate("data", len(batch), dim=-1):
            shared: list[Tensor] = []
            for level, site in enumerate(("z", *trunk_sites(len(trunk)))):
                p = trunk[level - 1](torch.cat(shared, -1)) if level else self.model.prior()
                found = [self.evidences[m].expert(level, h[m], shared).base_dist for m in seen]  # type: ignore[operator]
                shared.append(pyro.sample(site, corrected(p, found, mask)))
            for m in self.private:
                self._branch(m, shared[-1], batch)

    def _branch(self, m: str, above: Tensor, batch: Batch) -> None:
        links, experts = list(self.model.branches[m]), list(self.private[m])  # type: ignore[call-overload]
        if m not in batch.x:
            return
        with poutine.mask(mask=batch.mask[m]):
            for site, link, encode in zip(branch_sites(m, len(links)), links, experts, strict=True):
                q = encode(batch.x[m]).base_dist
                above = pyro.sample(site, corrected(link(above), [q], batch.mask[m].unsqueeze(-1)))


def corrected(p: Any, experts: Sequence[Any], mask: Tensor) -> dist.TorchDistribution:
    """p(z) prod_{m in S} q_m(z), normalised: Gaussians; `mask` `(..., M)`."""
    base = p.base_dist
    loc = torch.stack(torch.broadcast_tensors(*(q.loc for q in experts)), -2)
    scale = torch.stack(torch.broadcast_tensors(*(q.scale for q in experts)), -2)
    return product_of_experts(loc, scale, mask, (base.loc, base.scale))
