"""Linear-Gaussian graphs of any shape: every node an affine map of others plus noise, so all densities are exact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_mm import likelihoods, variants
from pyro_mm.batch import Batch
from pyro_mm.links import Link
from pyro_mm.modality import Modality, decoders
from pyro_mm.models import Hierarchical, Private
from pyro_mm.networks import Linear
from pyro_mm.recipe import Recipe


@dataclass
class Graph:
    """Nodes in order: name -> (parents with matrices, offset, standard deviation); observed ones are modalities."""

    parents: dict[str, dict[str, Tensor]]
    offset: dict[str, Tensor]
    sd: dict[str, Tensor]
    observed: tuple[str, ...]
    mean: dict[str, Tensor] = field(init=False)
    loading: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Every node as mean + loading @ (all noise, standardised)."""
        sizes = {n: len(o) for n, o in self.offset.items()}
        total, start = sum(sizes.values()), 0
        self.mean, self.loading = {}, {}
        for n, size in sizes.items():
            mean, loading = self.offset[n].clone(), torch.zeros(size, total, dtype=torch.float64)
            loading[:, start : start + size] = torch.diag(self.sd[n].expand(size))
            for p, w in self.parents[n].items():
                mean, loading = mean + w @ self.mean[p], loading + w @ self.loading[p]
            self.mean[n], self.loading[n] = mean, loading
            start += size

    def sample(self, n: int, seed: int) -> Batch:
        noise = torch.randn(
            n,
            next(iter(self.loading.values())).shape[1],
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
        )
        return Batch({m: self.mean[m] + noise @ self.loading[m].T for m in self.observed})

    def log_marginal(self, batch: Batch) -> Tensor:
        """log p(x_S) per row, S what is present."""
        out = torch.zeros(len(batch), dtype=torch.float64)
        for i in range(len(batch)):
            seen = [m for m in self.observed if bool(batch.mask[m][i])]
            if seen:
                mean = torch.cat([self.mean[m] for m in seen])
                loading = torch.cat([self.loading[m] for m in seen])
                x = torch.cat([batch.x[m][i] for m in seen])
                out[i] = MultivariateNormal(mean, loading @ loading.T).log_prob(x)
        return out


def affine(module: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and offset of the one linear layer inside."""
    (layer,) = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    return layer.weight.detach().double(), layer.bias.detach().double()


def gaussian(link: torch.nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, offset and standard deviation of a link whose standard deviation does not depend on what is above."""
    w, b = affine(link)
    if link.given:
        return w, b, link.log_scale.detach().double().exp()
    (w, slope), (b, raw) = w.chunk(2), b.chunk(2)
    assert not bool(slope.any()), "the scale of this link depends on the latent above: call constant_scales first"
    return w, b, torch.nn.functional.softplus(raw) + 1e-4


def constant_scales(model: torch.nn.Module) -> None:
    """Links whose networks give the scale get one that does not depend on what is above."""
    with torch.no_grad():
        for link in model.modules():
            if isinstance(link, Link) and not link.given:
                (layer,) = [m for m in link.modules() if isinstance(m, torch.nn.Linear)]
                layer.weight[link.dim :] = 0.0
                layer.bias[link.dim :] = 0.2


def modalities(sizes: dict[str, int], scale: float = 0.6) -> list[Modality]:
    return [Modality(m, (d,), likelihoods.Normal(scale), Linear()) for m, d in sizes.items()]


def randomise(module: torch.nn.Module, seed: int, size: float = 0.8) -> None:
    """Weights of a size that makes every latent matter."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() > 1:
                p.copy_(size * torch.randn(p.shape, generator=noise))


def graph_of(model: Hierarchical | Private, scale: float = 0.6) -> Graph:
    """The exact graph of a model whose links and decoders are affine, in double precision."""
    dim = model.prior().event_shape[0]
    parents: dict[str, dict[str, Tensor]] = {"z": {}}
    offset, sd = {"z": torch.zeros(dim, dtype=torch.float64)}, {"z": torch.ones(dim, dtype=torch.float64)}

    def add(name: str, above: dict[str, Tensor], b: Tensor, s: Tensor | float) -> None:
        parents[name], offset[name] = above, b
        sd[name] = torch.as_tensor(s, dtype=torch.float64).expand(len(b))

    lowest, shared = "z", ["z"]
    for level, link in zip(range(len(getattr(model, "trunk", ())), 0, -1), getattr(model, "trunk", ()), strict=True):
        w, b, s = gaussian(link)
        widths = [len(offset[n]) for n in shared]
        add(f"z_{level}", dict(zip(shared, w.split(widths, 1), strict=True)), b, s)
        lowest = f"z_{level}"
        shared.append(lowest)
    for m, decoder in model.decoders.items():
        above = lowest
        if isinstance(model, Hierarchical) and m in model.branches:
            depth = len(model.branches[m])
            for level, link in zip(range(depth, 0, -1), model.branches[m], strict=True):
                name = f"z_{m}" if level == 1 else f"z_{m}_{level}"
                w, b, s = gaussian(link)
                add(name, {above: w}, b, s)
                above = name
        w, b = affine(decoder)
        own = {above: w}
        if isinstance(model, Private) and m in model.private:
            size = model.private[m]().event_shape[0]
            add(f"w_{m}", {}, torch.zeros(size, dtype=torch.float64), 1.0)
            own = {"z": w[:, :dim], f"w_{m}": w[:, dim:]}
        add(m, own, b, scale)
    return Graph(parents, offset, sd, tuple(model.decoders))


def two_levels(sizes: dict[str, int], dim: int = 2, code: int = 3, seed: int = 0, depth: int = 1) -> Hierarchical:
    """z -> z_m -> x_m, or with longer branches, in double precision."""
    torch.manual_seed(seed)
    branches = {
        m: [Link(dim if i == 0 else code, code, Linear(), scale=0.5 + 0.1 * i) for i in range(depth)] for m in sizes
    }
    model = Hierarchical(decoders(modalities(sizes), code), branches, dim).double()
    randomise(model, seed)
    return model


def three_levels(sizes: dict[str, int], dims: tuple[int, ...] = (2, 2, 3), seed: int = 0) -> Hierarchical:
    """z -> z_2 -> z_1 -> x_m, levels that all modalities share."""
    torch.manual_seed(seed)
    trunk = [Link(dims[: i + 1], d, Linear(), scale=0.6) for i, d in enumerate(dims[1:])]
    model = Hierarchical(decoders(modalities(sizes), dims[-1]), {}, dims[0], trunk).double()
    randomise(model, seed)
    return model


def hidden(batch: Batch, seed: int, share: float = 0.35) -> Batch:
    """Each modality missing at random in this share of rows; some rows lose everything."""
    noise = torch.Generator().manual_seed(seed)
    return Batch(batch.x, {m: torch.rand(len(batch), generator=noise) >= share for m in batch.mask})


def trained(objective: torch.nn.Module, data: Batch, steps: int, seed: int = 0, lr: float = 2e-2) -> None:
    """Fit what requires a gradient."""
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(data[torch.randint(len(data), (128,))]).backward()
        optimiser.step()
        schedule.step()


def randomised(name: str, sizes: dict[str, int], rows: int, **options: Any) -> tuple[Recipe, Batch]:
    """A variant on linear-Gaussian modalities with random decoders, in double precision, and data."""
    torch.manual_seed(0)
    recipe = getattr(variants, name)(modalities(sizes), 2, **options)
    for module in (*recipe.modules.values(), recipe.objective):
        module.double()
    randomise(recipe.model, 1, 0.5)
    noise = torch.Generator().manual_seed(2)
    return recipe, Batch({m: torch.randn(rows, d, generator=noise, dtype=torch.float64) for m, d in sizes.items()})
