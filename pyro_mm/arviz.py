"""The bridge to ArviZ: log-likelihoods, posterior draws and data as one labelled, saveable object.

ArviZ 0.x holds them in an InferenceData, ArviZ 1.x in an xarray DataTree; groups, variables and dimensions are the same
in both.  ArviZ is the cross-check and the plotting side: `az.loo` on draws of a latent is *not* a test likelihood
(it concerns posteriors of global parameters), the `log_likelihood` group here is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_mm.batch import Batch
from pyro_mm.evaluation.evidence import Evidence
from pyro_mm.evaluation.generation import Posterior
from pyro_mm.evaluation.psis import threshold
from pyro_mm.files import BadFile

__all__ = ["elpd", "load", "save", "to_arviz"]

Arrays = dict[str, np.ndarray]
Dims = dict[str, list[str]]
Group = tuple[Arrays, Dims]
STATISTICS = ("se", "ess", "khat", "bias")
RESERVED = ("chain", "draw", "datum", "quantity")


def to_arviz(
    evidences: Mapping[str, Evidence] | None,
    posterior: Posterior | None,
    batch: Batch,
    predictive: Mapping[str, Any] | None = None,
) -> Any:
    """An InferenceData (ArviZ 0.x) or DataTree (ArviZ 1.x) of what is known about the rows of `batch`.

    Groups, with N rows and K draws:
        log_likelihood: per quantity the estimates in nats, dims (chain 1, draw 1, datum N): one number per datum, an
            integral over the latents, hence one "draw"; attributes say K, the proposal and k-hat's threshold.
        sample_stats: se, ess, khat, bias, dims (chain 1, draw 1, quantity, datum N).
        posterior: every latent's draws, dims (chain 1, draw K, datum N, ...).
        posterior_predictive: every modality's draws, dims (chain 1, draw K, datum N, ...).
        observed_data: every modality, dims (datum N, ...); NaN where it is missing.

    Args:
        evidences: by name, e.g. `{"joint": log_marginal(...)}`; None or empty leaves their groups out.
        posterior: from `encode(guide, batch, k)`.
        predictive: by modality, tensors `(K, N, *event)` or the distributions that `generate` returns, from which one
            observation is drawn for every draw of the latents.

    Raises:
        ValueError: naming the quantity, site or modality, when it has another number of rows than `batch`, is not in
            the batch, has another event shape, or has a name that the format keeps for itself.
    """
    groups: dict[str, Group] = {}
    if evidences:
        _require_names("quantity", evidences)
        estimates = {q: _estimates(q, e, batch) for q, e in evidences.items()}
        groups["log_likelihood"] = estimates, {q: ["datum"] for q in evidences}
        statistics = {s: _stacked(evidences, s) for s in STATISTICS}
        groups["sample_stats"] = statistics, {s: ["quantity", "datum"] for s in STATISTICS}
    if posterior is not None:
        _require_names("site", posterior.draws)
        draws = {n: _draws("site", n, v, len(batch)) for n, v in posterior.draws.items()}
        groups["posterior"] = draws, _event_dims(draws, lead=3)
    _require_names("modality", batch.names)
    if predictive:
        predicted = {m: _predicted(m, p, batch) for m, p in predictive.items()}
        groups["posterior_predictive"] = predicted, _event_dims(predicted, lead=3)
    observed = {m: _observed(m, batch) for m in batch.names}
    groups["observed_data"] = observed, _event_dims(observed, lead=1)
    data = _container(groups, {"datum": np.arange(len(batch)), "quantity": list(evidences or ())})
    for name, evidence in (evidences or {}).items():
        data["log_likelihood"][name].attrs.update(_attributes(evidence))
    return data


def elpd(evidence: Evidence) -> Any:
    """Held-out log-likelihoods as the ELPDData that `az.compare` and `az.plot_compare` take.

    With N rows, elpd = sum_n l_n and se = sqrt(N) sd_n(l_n), so that `az.compare({"a": elpd(a), "b": elpd(b)})` has N
    times the differences and standard errors of `compare` (its `dse` divides by N where ours divides by N - 1).
    ArviZ files it under "loo", the one kind of held-out result it knows; nothing was left out and refitted, and `p`,
    the effective number of parameters, is not defined (NaN).  Rows with k-hat above its threshold count as warnings.
    Rows that are not `scored` are left out.  `az.compare` finds model weights by exponentiating l_n, which is 0 below
    about -745 nats: pass `method="pseudo-bma"` there.

    Raises:
        ValueError: naming the quantity, when an estimate is not finite (ArviZ would drop such rows silently).
    """
    from xarray import DataArray

    if bad := int((~torch.isfinite(evidence.estimate)).sum()):
        raise ValueError(f"{evidence.quantity} is not finite in {bad} of {len(evidence)} rows")
    evidence = evidence.of_scored()
    rows = {"datum": np.arange(len(evidence))}
    pointwise, khat = (DataArray(_array(v), coords=rows, dims=["datum"]) for v in (evidence.estimate, evidence.khat))
    n = len(evidence)
    values: dict[str, Any] = {
        "elpd_loo": n * evidence.mean,
        "se": n * evidence.mean_se,
        "p_loo": np.nan,
        "n_samples": evidence.k,
        "n_data_points": n,
        "warning": not bool(evidence.reliable.all()),
        "loo_i": pointwise,
        "pareto_k": khat,
        "scale": "log",
        "good_k": threshold(evidence.k),
    }
    return _elpd_data(values)


def save(data: Any, path: str | os.PathLike[str]) -> Path:
    """Write what `to_arviz` made to a netCDF file, which ArviZ, xarray and R read; returns its path.

    The file appears complete or not at all.

    Raises:
        ImportError: neither h5netcdf nor netCDF4, which write such files, is installed.
        OSError: naming the file, as the system reports it.
    """
    path, engine = Path(path), _engine()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        data.to_netcdf(str(part), engine=engine)
        os.replace(part, path)
    return path


def load(path: str | os.PathLike[str]) -> Any:
    """What `save` wrote, held in memory: the file may be removed or overwritten at once.

    Raises:
        FileNotFoundError: there is no such file.
        BadFile: it is no netCDF file, or a damaged one.
        ImportError: as `save`.
    """
    import arviz as az

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    engine = _engine()
    try:
        if _major() >= 1:
            with az.from_netcdf(str(path), engine=engine) as tree:
                return tree.load()
        with az.rc_context({"data.load": "eager"}):
            return az.InferenceData.from_netcdf(str(path), engine=engine)
    except (OSError, ValueError, KeyError) as error:
        raise BadFile(f"{path} is no netCDF file, or is damaged: {error}") from error


def _elpd_data(values: Mapping[str, Any]) -> Any:
    """The class that this version of ArviZ has for them, which its 0.x names for the method."""
    import arviz as az

    if _major() < 1:
        return az.ELPDData(data=list(values.values()), index=list(values))
    renamed = {"elpd_loo": "elpd", "p_loo": "p", "loo_i": "elpd_i"}
    made = {renamed.get(name, name): value for name, value in values.items()}
    found: Any = import_module("arviz_stats.utils")  # a package of ArviZ 1.x alone
    return found.ELPDDataLOO(**made) if hasattr(found, "ELPDDataLOO") else found.ELPDData(kind="loo", **made)


def _container(groups: Mapping[str, Group], coords: Mapping[str, Any]) -> Any:
    """The groups in whatever this version of ArviZ holds them in.

    Each is made by itself: a modality and its likelihood may share a name, but have other dimensions.
    """
    import arviz as az

    def made(group: str) -> Any:
        arrays, dims = groups[group]
        build: Any = az.from_dict  # its signature depends on the version
        used = {d: coords[d] for d in coords if any(d in names for names in dims.values())}
        if _major() >= 1:
            return build({group: arrays}, dims=dims, coords=used)[group].to_dataset()
        return build(**{group: arrays}, dims=dims, coords=used)[group]

    datasets = {group: made(group) for group in groups}
    if _major() >= 1:
        from xarray import DataTree

        return DataTree.from_dict(datasets)
    return az.InferenceData(**datasets)


def _major() -> int:
    """The installed ArviZ's major version."""
    import arviz as az

    return int(az.__version__.split(".")[0])


def _engine() -> str:
    for engine in ("h5netcdf", "netCDF4"):
        if find_spec(engine) is not None:
            return engine.lower()
    raise ImportError("netCDF files need h5netcdf: pip install h5netcdf h5py")


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    # numpy has no bfloat16
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def _estimates(quantity: str, evidence: Evidence, batch: Batch) -> np.ndarray:
    if len(evidence) != len(batch):
        raise ValueError(f"evidence '{quantity}' has {len(evidence)} rows, the batch has {len(batch)}")
    return _array(evidence.estimate)[None, None]


def _stacked(evidences: Mapping[str, Evidence], field: str) -> np.ndarray:
    """One diagnostic of every quantity, `(1, 1, Q, N)`."""
    return np.stack([_array(getattr(e, field)) for e in evidences.values()])[None, None]


def _attributes(evidence: Evidence) -> dict[str, Any]:
    return {
        "quantity": evidence.quantity,
        "units": "nats",
        "k": evidence.k,
        "proposal": evidence.proposal,
        "khat_threshold": threshold(evidence.k),
        "prior_sites": ", ".join(evidence.prior_sites),
    }


def _draws(kind: str, name: str, value: Tensor, n: int) -> np.ndarray:
    """`(K, N, *event)` as `(1, K, N, *event)`."""
    if value.dim() < 2 or value.shape[1] != n:
        raise ValueError(f"{kind} '{name}' has draws of shape {tuple(value.shape)}, expected (K, {n}, ...)")
    return _array(value)[None]


def _predicted(name: str, value: Any, batch: Batch) -> np.ndarray:
    if name not in batch.x:
        raise ValueError(f"modality '{name}' is predicted, but the batch has {list(batch.names)}")
    drawn = _draws("modality", name, value if isinstance(value, Tensor) else value.sample(), len(batch))
    if (found := drawn.shape[3:]) != (want := tuple(batch.x[name].shape[1:])):
        raise ValueError(f"modality '{name}' is predicted with event shape {found}, the batch has {want}")
    return drawn


def _observed(name: str, batch: Batch) -> np.ndarray:
    """Values `(N, *event)`; NaN under the mask, which turns whole numbers into floating point."""
    mask = batch.mask[name]
    if mask.dim() != 1:
        raise ValueError(
            f"the mask of modality '{name}' has shape {tuple(mask.shape)}: pass the batch itself, not batch.subsets()"
        )
    value, seen = _array(batch.x[name]), _array(mask)
    if seen.all():
        return value
    return np.where(seen.reshape(-1, *[1] * (value.ndim - 1)), value, np.nan)


def _event_dims(arrays: Arrays, lead: int) -> Dims:
    """Dimensions of each variable after chain and draw: the datum's, then those of one event."""
    return {name: ["datum", *(f"{name}_dim_{i}" for i in range(a.ndim - lead))] for name, a in arrays.items()}


def _require_names(kind: str, names: Iterable[str]) -> None:
    for name in names:
        if name in RESERVED or "/" in name or name != name.strip() or not name:
            raise ValueError(f"{kind} '{name}' cannot be stored: a name without '/' other than {list(RESERVED)}")
