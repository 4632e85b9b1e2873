"""Running a model/guide pair, and per-datum importance weights from what was recorded.

`run_pair` executes the guide, then the model at the guide's values, under one light handler; no Trace objects, no
global parameters.  Everything above (objectives, likelihoods) is arithmetic on the `Site`s it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.distributions import DiffusedBound, log_prob_of
from pyro_mm.distributions.lazy import Lazy
from pyro_mm.handlers import DATA_DIM, PARTICLE_DIM, SUBSET_DIM, Program, particles

__all__ = ["Run", "Site", "depth_of", "log_weights", "per_datum", "replay", "run", "run_pair"]


@dataclass
class Site:
    """One sample statement: its distribution, value, scale, mask and plates."""

    name: str
    fn: Any
    value: Tensor
    scale: Any
    mask: Any
    observed: bool
    frames: tuple[Any, ...]
    enumerated: bool = False
    """A latent marked `infer={"enumerate": "parallel"}`."""

    def log_prob(self, scaled: bool = True) -> Tensor:
        """Masked log-density over the batch shape; `scaled=False` drops every training weight."""
        if type(self.fn) is Lazy:  # of a modality that is hidden in every row
            return self.fn.masked_log_prob()
        return scale_and_mask(log_prob_of(self.fn, self.value), self.scale if scaled else 1.0, self.mask)


KEPT = {DATA_DIM: "data", SUBSET_DIM: "subset", PARTICLE_DIM: "particles"}
Sites = dict[str, Site]
ModifyValue = Callable[[Any], Tensor | None]


@dataclass
class Run:
    """What the two programs did.  `prior_sites` are latents of the model that the guide does not know."""

    model: Sites
    guide: Sites

    @property
    def latents(self) -> tuple[str, ...]:
        """Sites in both programs, in the guide's order."""
        return tuple(self.guide)

    @property
    def prior_sites(self) -> tuple[str, ...]:
        """Model latents that were drawn from the model itself: they add nothing to any weight."""
        return tuple(n for n, s in self.model.items() if not s.observed and n not in self.guide)


class _Record(Messenger):
    """Collect sample sites; first set the values that `values` gives, in the rows of `where` alone."""

    def __init__(
        self,
        values: Mapping[str, Tensor] | None = None,
        choose: ModifyValue | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.sites: Sites = {}
        self.values, self.choose, self.where = values or {}, choose, where or {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["is_observed"]:
            return
        value = self.values.get(msg["name"])
        if value is None and self.choose is not None:
            value = self.choose(msg)
        seen = self.where.get(msg["name"])
        if value is not None and seen is not None and seen is not msg["mask"]:
            seen = torch.as_tensor(seen, device=value.device)
            draw = msg["fn"].rsample if msg["fn"].has_rsample else msg["fn"].sample
            value = torch.where(seen.reshape(seen.shape + (1,) * msg["fn"].event_dim), value, draw())
        if value is not None:
            msg["value"], msg["done"] = value, True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        name = msg["name"]
        if name in self.sites:
            raise ValueError(f"site '{name}' occurs twice in one program")
        # Where an enumerated latent is masked, its probabilities must still sum to 1, not to the number of its values.
        summed_over = msg["infer"].get("_enumerate_dim") is not None
        self.sites[name] = Site(
            name,
            msg["fn"],
            msg["value"],
            _scale_per_row(msg),
            None if summed_over else msg["mask"],
            msg["is_observed"],
            msg["cond_indep_stack"],
            not msg["is_observed"] and msg["infer"].get("enumerate") == "parallel",
        )


def _scale_per_row(msg: Any) -> Any:
    """The site's scale without the data plate's N / B, which would stand inside the exponential of a weight."""
    for f in msg["cond_indep_stack"]:
        if f.name == "data" and f.full_size not in (None, f.size):
            return msg["scale"] * f.size / f.full_size
    return msg["scale"]


def run(program: Program, batch: Batch, choose: ModifyValue | None = None) -> Sites:
    """The sites of one execution; `choose(msg)` may give a latent's value."""
    with _Record(choose=choose) as record:
        program(batch)
    return record.sites


def replay(program: Program, batch: Batch, values: Mapping[str, Tensor], depth: int | None = None) -> Sites:
    """The sites of an execution at given latent values.

    With `depth`, the number of plate dimensions (`depth_of`), marked discrete latents that have no value here are
    enumerated: their values, and log-densities that depend on them, have one more dimension each, left of the plates.

    Raises:
        ValueError: two of them share a dimension, so that no sum over each is possible.
    """
    enumerating = nullcontext() if depth is None else EnumMessenger(first_available_dim=-1 - depth)
    # Entered last, the record acts first: a latent that has a value is not enumerated.
    with enumerating, _Record(values) as record:
        program(batch)
    if depth is not None:
        _check_dims({n: s for n, s in record.sites.items() if s.enumerated and n not in values})
    return record.sites


def _check_dims(enumerated: Sites) -> None:
    """Every latent that is summed over needs a dimension of its own."""
    taken: dict[int, str] = {}
    for name, site in enumerated.items():
        other = taken.setdefault(site.value.dim() - site.fn.event_dim, name)
        if other != name:
            raise ValueError(
                f"enumerated latents '{other}' and '{name}' share a dimension, as pyro.markov makes them do: write the "
                "chain as a plain loop, or leave out infer={'enumerate': ...}"
            )


def depth_of(sites: Sites) -> int:
    """How many dimensions are taken by plates, at least those of particles, subsets and data."""
    return max([-PARTICLE_DIM, *(-f.dim for s in sites.values() for f in s.frames if f.vectorized)])


def run_pair(model: Program, guide: Program, batch: Batch) -> Run:
    """Sample the guide, then run the model at its values.

    A latent is scored, in both, where the guide drew it.  Where the guide's is masked (its modality is hidden from it)
    it is the model's own: drawn from the model, and cancelling in every weight.

    Raises:
        ValueError: a guide site is observed, or is no latent of the model (its density would silently inflate
            every bound).
    """
    guide_sites = run(guide, batch)
    model_sites = replay_where_seen(model, batch, guide_sites)
    check_sites(model_sites, guide_sites)
    return Run(model_sites, guide_sites)


def replay_where_seen(program: Program, batch: Batch, drawn: Sites) -> Sites:
    """`program` at the values of `drawn`, where these are not masked; its latents are scored there, and there alone."""
    where = {n: s.mask for n, s in drawn.items() if s.mask is not None and s.mask is not True}
    with _Record({n: s.value for n, s in drawn.items()}, where=where) as record:
        program(batch)
    for name, site in drawn.items():
        if name in record.sites and not record.sites[name].observed:
            record.sites[name].mask = site.mask
    return record.sites


def check_sites(model: Sites, guide: Sites) -> None:
    """Every guide site must be a latent of the model; see `run_pair`."""
    for name, site in guide.items():
        if site.observed:
            raise ValueError(f"guide site '{name}' is observed; a guide only samples latents")
        if name not in model:
            latents = [n for n, s in model.items() if not s.observed]
            raise ValueError(
                f"guide site '{name}' is not in the model, whose latents are {latents}: its density would enter the "
                "bound with nothing against it.  Score a mixture by its density instead of sampling an index"
            )
        if model[name].observed:
            raise ValueError(f"site '{name}' is a latent of the guide but observed in the model")
        if model[name].value.shape != site.value.shape:
            raise ValueError(
                f"site '{name}' has shape {tuple(site.value.shape)} in the guide and "
                f"{tuple(model[name].value.shape)} in the model"
            )


def per_datum(site: Site, scaled: bool = False, depth: int | None = None) -> Tensor:
    """The site's log-density `(K, S, N)`, each of the three 1 where the site lacks that plate.

    Plates nested inside the datum are summed; particle, subset and data dimensions are kept, and so are those of
    enumerated latents, `(..., K, S, N)`, which are what is left of `depth` plates.

    Raises:
        ValueError: the site stands outside the data plate, so that it has no value per datum; or it stands in a plate
            nested inside the datum and depends on an enumerated latent.
    """
    logp = site.log_prob(scaled)
    dims = {f.dim: f.name for f in site.frames if f.vectorized}
    if dims.get(DATA_DIM) != "data":
        raise ValueError(
            f"site '{site.name}' is outside the plate 'data' at dim -1 (its plates: {dims or 'none'}): "
            "it has no log-density per datum"
        )
    logp = logp.expand(torch.broadcast_shapes(logp.shape, (1, 1, 1)))
    lead = logp.shape[: max(logp.dim() - depth, 0)] if depth is not None else ()
    nested = [d for d in range(len(lead) - logp.dim(), 0) if logp.shape[d] > 1 and KEPT.get(d) != dims.get(d)]
    if nested and any(size > 1 for size in lead):
        raise ValueError(
            f"site '{site.name}' stands in a plate nested inside the datum and depends on an enumerated latent: the "
            "sum over its values and the product over the plate do not commute; leave out infer={'enumerate': ...}"
        )
    logp = logp.sum(nested, keepdim=True) if nested else logp
    return logp.reshape(*lead, *logp.shape[-3:])


def log_weights(model: Program, guide: Program, batch: Batch, k: int, *, scaled: bool = False) -> Tensor:
    """log w = log p(x, z_k) - log q(z_k | x), z_k ~ q: shape `(K, N)`; nats; differentiable.

    Model latents that the guide lacks are drawn from the model and cancel.  Scales (beta, likelihood weights, plate
    subsampling) are left out unless `scaled`; masks are kept.  A pair under `in_subsets` gives `(K, S, N)`.

    Raises:
        ValueError: a guide-only or observed guide site, a site outside the data plate; with several draws, a prior that
            gives a draw of a bound in place of its density.
    """
    pair = run_pair(particles(model, k), particles(guide, k), batch)
    require_densities(pair, k)
    return total_log_weight(pair, scaled)


def require_densities(pair: Run, k: int) -> None:
    """Raise ValueError where an average of several weights would exponentiate a draw of a bound."""
    for site in pair.model.values() if k > 1 else ():
        if isinstance(site.fn, DiffusedBound):
            raise ValueError(
                f"'{site.name}' gives a noisy draw of a bound (DiffusionPrior.bound) for its log-density: only elbo, "
                "or k = 1, may use it"
            )


def total_log_weight(pair: Run, scaled: bool = False) -> Tensor:
    """The log-weights of one recorded run, `(K, N)` or `(K, S, N)`."""
    skip = set(pair.prior_sites)
    log_w: Any = 0.0
    for site in pair.model.values():
        if site.name not in skip:
            log_w = log_w + per_datum(site, scaled)
    for site in pair.guide.values():
        log_w = log_w - per_datum(site, scaled)
    return log_w.squeeze(1) if log_w.shape[1] == 1 else log_w
