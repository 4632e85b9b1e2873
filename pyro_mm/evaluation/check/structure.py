"""Sites, plates and shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.check.pair import Failure, Pair, Skip, Values, copy_of, difference, first_line, latent_names
from pyro_mm.evaluation.proposals import evaluating
from pyro_mm.handlers import DATA_DIM, in_subsets, particles
from pyro_mm.weights import Run, Site, Sites, replay, run, total_log_weight

__all__ = ["modality_order", "particle_plate", "sites", "subset_plate"]

Problem = tuple[str, str]


def sites(pair: Pair) -> str:
    """The guide samples latents of the model and nothing else, all in plate `data`, for every view of the batch."""
    found: dict[Problem, str] = {}
    last: tuple[Sites, Sites] = ({}, {})
    with evaluating(pair.model, pair.guide, seed=pair.seed):
        for label, view in pair.views():
            try:
                last = model, guide = run(pair.model, copy_of(view)), run(pair.guide, copy_of(view))
                problems = [*_matching(model, guide), *_latents(model, view), *_observations(model, view)]
                for program, part in (("model", model), ("guide", guide)):
                    problems += [p for s in part.values() for p in _plates(program, s, len(view))]
            except Exception as error:
                problems = [(f"a program does not run: {first_line(error)}", "make both programs run on this view")]
            for problem in problems:
                found.setdefault(problem, label)
    if found:
        texts = [f"{what} (seen with {label})" for (what, _), label in found.items()]
        raise Failure("; ".join(texts), "; ".join(dict.fromkeys(fix for _, fix in found)))
    model, guide = last
    observed = ", ".join(n for n, s in model.items() if s.observed)
    return f"latents {latent_names(model, list(guide)) or 'none'}; observed {observed}; all in plate 'data'"


def _matching(model: Sites, guide: Sites) -> list[Problem]:
    """Every guide site is a latent of the model, of the same shape, masked alike."""
    out = []
    latents = [n for n, s in model.items() if not s.observed]
    for name, site in guide.items():
        if site.observed:
            out.append((f"guide site '{name}' is observed", "a guide only samples latents: remove obs= or the factor"))
        elif name not in model:
            out.append((
                f"guide site '{name}' is not in the model, whose latents are {latents}: its density would enter the "
                "bound with nothing against it",
                "score a mixture by its density (pyro_mm's Mixture) instead of sampling an index; rename the site, or "
                "give the model its counterpart",
            ))  # fmt: skip
        elif model[name].observed:
            out.append((f"site '{name}' is a latent of the guide but observed in the model", "remove one of the two"))
        else:
            out += _alike(site, model[name])
    return out


def _alike(guide: Site, model: Site) -> list[Problem]:
    ours, theirs = tuple(guide.fn.event_shape), tuple(model.fn.event_shape)
    if ours != theirs or guide.value.shape != model.value.shape:
        shapes = f"{ours} in the guide and {theirs} in the model (values {tuple(guide.value.shape)} and"
        text = f"site '{guide.name}' has event shape {shapes} {tuple(model.value.shape)})"
        return [(text, "give both the same size, and .to_event(1) in both")]
    n = guide.value.shape[DATA_DIM - guide.fn.event_dim]
    differs = _mask(guide, n) != _mask(model, n)
    if bool(differs.any()):
        text = f"site '{guide.name}' is masked in one program only in {int(differs.sum())} of {n} rows"
        return [(text, f"put the same poutine.mask(mask=...) round '{guide.name}' in both programs")]
    return []


def _mask(site: Site, n: int) -> Tensor:
    """Bool `(N,)`: does the site count in this row?"""
    device = site.value.device
    if site.mask is None or isinstance(site.mask, bool):
        return torch.full((n,), site.mask is not False, device=device)
    mask = site.mask.expand(*site.mask.shape[:-1], n)
    return mask.reshape(-1, n).any(0)


def _latents(model: Sites, view: Batch) -> list[Problem]:
    """No observation has become a latent."""
    out = []
    for name, site in model.items():
        if site.observed:
            continue
        if name.endswith("_unobserved") and f"{name.removesuffix('_unobserved')}_observed" in model:
            text = f"site '{name}' comes from obs_mask=, which makes a latent of the missing values"
            out.append((text, "use poutine.mask(mask=batch.mask[...]) round the observation instead of obs_mask="))
        elif name in view.x:
            out.append((f"modality '{name}' is sampled, not observed", f"pass obs=batch.x['{name}'] at its site"))
    return out


def _observations(model: Sites, view: Batch) -> list[Problem]:
    """Observed sites have the data's event shape, and there are some."""
    out = []
    known = [m for m in view.x if m in model]
    if not known:
        text = f"the model has no site for any of the modalities {list(view.x)}; its sites are {list(model)}"
        out.append((text, "name every observation's site after its modality"))
    for m in known:
        ours, data = tuple(model[m].fn.event_shape), tuple(view.x[m].shape[1:])
        if model[m].observed and ours != data:
            text = f"site '{m}' has event shape {ours} in the model, the data have {data}"
            out.append((text, "use .to_event(...) so that everything but the rows is in the event"))
    return out


def _plates(program: str, site: Site, rows: int) -> list[Problem]:
    """The site is in plate `data` at dim -1."""
    frames = {f.name: f for f in site.frames if f.vectorized}
    place = f"{program} site '{site.name}'"
    fix = 'put it inside pyro.plate("data", len(batch), dim=-1)'
    if "data" not in frames:
        return [(f"{place} is outside plate 'data' (its plates: {list(frames) or 'none'})", fix)]
    if (dim := frames["data"].dim) != DATA_DIM:
        return [(f"{place} has plate 'data' at dim {dim}", fix)]
    size = site.value.shape[DATA_DIM - site.fn.event_dim]
    if size != rows:
        return [(f"{place} has {size} rows in plate 'data', the batch {rows} (value {tuple(site.value.shape)})", fix)]
    return []


def particle_plate(pair: Pair) -> str:
    """Three particles at once score as three runs of one."""
    values = pair.latents(pair.holed)
    with evaluating(pair.model, pair.guide, seed=pair.seed):
        three = run(particles(pair.guide, 3), copy_of(pair.holed))
        model = replay(particles(pair.model, 3), copy_of(pair.holed), {n: s.value for n, s in three.items()})
        both = {n: (model | three)[n].value for n in values.tensors}
        guide = replay(particles(pair.guide, 3), copy_of(pair.holed), both)
        together = total_log_weight(Run(replay(particles(pair.model, 3), copy_of(pair.holed), both), guide))
    apart = torch.stack([
        pair.score(pair.holed, Values({n: _particle(v, values.event_dims[n], k) for n, v in both.items()}, {}))
        for k in range(3)
    ])  # fmt: skip
    return _equal(pair, together, apart, "three particles at once and one by one")


def _particle(value: Tensor, event_dim: int, k: int) -> Tensor:
    """One particle of a value `(3, 1, N, *event)`, without the subset dimension unless a nested plate uses it."""
    one = value.select(-3 - event_dim, k)
    return one.squeeze(-2 - event_dim)


def subset_plate(pair: Pair) -> str:
    """Views stacked as a plate, masks `(S, N)`, score as the views one by one."""
    names = pair.holed.names
    groups = [names, names[:1], ()]
    values = pair.latents(pair.holed)
    stacked = Values(
        {n: torch.stack([v] * 3, v.dim() - 1 - values.event_dims[n]) for n, v in values.tensors.items()}, {}
    )
    programs = [in_subsets(p, groups) for p in (pair.model, pair.guide)]
    try:
        with evaluating(*programs, seed=pair.seed):
            model, guide = (replay(p, copy_of(pair.holed), stacked.tensors) for p in programs)
            together = total_log_weight(Run(model, guide))[0]
    except Exception as error:
        raise Skip(
            f"the programs do not take masks (S, N), which only in_subsets(...) needs: {first_line(error)}"
        ) from None
    apart = torch.stack([pair.score(pair.holed.only(*g), values) for g in groups])
    return _equal(pair, together, apart, "subsets in a plate and one by one")


def modality_order(pair: Pair) -> str:
    """The order of the modalities in the batch means nothing."""
    if len(pair.holed.names) < 2:
        raise Skip("there is one modality")

    def turned(batch: Batch) -> Batch:
        names = tuple(reversed(batch.names))
        return Batch._view({m: batch.x[m] for m in names}, {m: batch.mask[m] for m in names}, batch.hidden)

    values = pair.latents(pair.holed)
    a, b = pair.score(pair.holed, values), pair.score(turned(pair.holed), values)
    return _equal(pair, a, b, "log-weights before and after reordering")


def _equal(pair: Pair, a: Tensor, b: Tensor, what: str) -> str:
    if a.shape != b.shape:
        raise Failure(f"{what}: log-weights have shapes {tuple(a.shape)} and {tuple(b.shape)}")
    gap = difference(a, b)
    if gap > pair.tolerance(a):
        raise Failure(f"{what} differ by {gap:.3g} nats")
    return f"{what}: largest difference {gap:.1g}"
