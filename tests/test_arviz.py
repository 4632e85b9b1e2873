"""What goes to ArviZ comes back equal, in memory and from a file."""

from __future__ import annotations

import builtins
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pyro_mm import arviz as bridge
from pyro_mm.batch import Batch
from pyro_mm.data import LinearGaussian
from pyro_mm.evaluation import Evidence, Posterior, encode, generate, log_marginal
from pyro_mm.evaluation.compare import compare
from pyro_mm.evaluation.psis import threshold
from pyro_mm.files import BadFile

N, K = 7, 20
GROUPS = {"log_likelihood", "sample_stats", "posterior", "posterior_predictive", "observed_data"}
Found = tuple[dict[str, Evidence], Posterior, Batch, dict[str, Any]]


@pytest.fixture(scope="module")
def found() -> Found:
    """A linear-Gaussian pair on rows of which one lacks `b`; `label` is a modality of whole numbers."""
    oracle = LinearGaussian.random({"a": 3, "b": 2}, 2)
    seen = torch.ones(N, dtype=torch.bool)
    seen[3] = False
    x = oracle.sample(N).x | {"label": torch.arange(N)}
    batch = Batch(x, {"b": seen})
    model, guide = oracle.model(), oracle.exact_guide()
    evidences = {
        "joint": log_marginal(model, guide, batch, 50, seed=0),
        "a": log_marginal(model, guide, batch.only("a"), 80, seed=0),  # a name that a modality has too
    }
    torch.manual_seed(5)
    predictive = {m: fn.sample() for m, fn in generate(model, guide, batch, K, seed=2).items()}
    return evidences, encode(guide, batch, K, seed=1), batch, predictive


def groups_of(data: Any) -> set[str]:
    """InferenceData has `groups()`, DataTree `groups` with slashes."""
    names = data.groups() if callable(data.groups) else data.groups
    return {name.strip("/") for name in names} - {""}


def check(data: Any, found: Found) -> None:
    """Every number and every dimension."""
    evidences, posterior, batch, predictive = found
    assert groups_of(data) == GROUPS
    for name, evidence in evidences.items():
        variable = data["log_likelihood"][name]
        assert variable.dims == ("chain", "draw", "datum") and variable.shape == (1, 1, N)
        assert np.array_equal(variable.values[0, 0], evidence.estimate.numpy())
        assert variable.attrs["quantity"] == evidence.quantity and variable.attrs["k"] == evidence.k
        assert variable.attrs["khat_threshold"] == pytest.approx(threshold(evidence.k))
        assert variable.attrs["proposal"] == evidence.proposal and variable.attrs["units"] == "nats"
        for field in ("se", "ess", "khat", "bias"):
            statistic = data["sample_stats"][field].sel(quantity=name)
            assert np.array_equal(statistic.values[0, 0], getattr(evidence, field).numpy())
    z = data["posterior"]["z"]
    assert z.dims == ("chain", "draw", "datum", "z_dim_0") and z.shape == (1, K, N, 2)
    assert np.array_equal(z.values[0], posterior.draws["z"].numpy())
    for m, x in predictive.items():
        assert np.array_equal(data["posterior_predictive"][m].values[0], x.numpy())
    observed = data["observed_data"]
    assert observed["a"].dims == ("datum", "a_dim_0") and np.array_equal(observed["a"].values, batch.x["a"])
    assert np.isnan(observed["b"].values[3]).all()
    rest = [i for i in range(N) if i != 3]
    assert np.array_equal(observed["b"].values[rest], batch.x["b"][rest])
    assert observed["label"].dtype == np.int64 and observed["label"].values.tolist() == list(range(N))
    assert observed["datum"].values.tolist() == list(range(N))


def test_every_value_arrives(found: Found) -> None:
    check(bridge.to_arviz(*found), found)


def test_a_file_gives_it_back(found: Found, tmp_path: Path) -> None:
    path = bridge.save(bridge.to_arviz(*found), tmp_path / "new" / "evidence.nc")
    back = bridge.load(path)
    path.unlink()  # it is in memory
    check(back, found)
    assert list((tmp_path / "new").iterdir()) == []


def test_saving_again_replaces_the_file(found: Found, tmp_path: Path) -> None:
    evidences, _, batch, _ = found
    path = bridge.save(bridge.to_arviz(*found), tmp_path / "evidence.nc")
    bridge.load(path)
    bridge.save(bridge.to_arviz(evidences, None, batch), path)
    assert groups_of(bridge.load(path)) == {"log_likelihood", "sample_stats", "observed_data"}


def test_only_what_is_given_becomes_a_group(found: Found) -> None:
    _, posterior, batch, _ = found
    assert groups_of(bridge.to_arviz(None, None, batch)) == {"observed_data"}
    assert groups_of(bridge.to_arviz({}, posterior, batch)) == {"posterior", "observed_data"}


def test_missing_labels_are_nan(found: Found) -> None:
    batch = Batch({"label": torch.tensor([2, 1, 0])}, {"label": torch.tensor([True, False, True])})
    values = bridge.to_arviz(None, None, batch)["observed_data"]["label"].values
    assert np.array_equal(values, [2, np.nan, 0], equal_nan=True)


def test_distributions_are_sampled_once_per_draw() -> None:
    oracle = LinearGaussian.random({"a": 3}, 2, scales=1e-6)
    batch = oracle.sample(N)
    made = generate(oracle.model(), oracle.exact_guide(), batch, K, seed=2)
    data = bridge.to_arviz(None, None, batch, made)["posterior_predictive"]["a"]
    assert data.shape == (1, K, N, 3)
    assert np.allclose(data.values[0], made["a"].mean.numpy(), atol=1e-4)


def test_arviz_reads_it(found: Found) -> None:
    import arviz as az

    data = bridge.to_arviz(*found)
    summary = az.summary(data["posterior"] if not hasattr(data, "posterior") else data, var_names=["z"], kind="stats")
    assert len(summary) == 2 * N


@pytest.fixture(scope="module")
def models() -> dict[str, Evidence]:
    """Three models of 150 rows that the second of them made; only the last has unreliable rows."""
    data = LinearGaussian.random({"a": 4, "b": 3}, 2).sample(150, seed=3)
    found = {}
    for name, scale in {"wide": 0.8, "true": 0.6, "narrow": 0.5}.items():
        oracle = LinearGaussian.random({"a": 4, "b": 3}, 2, scales=scale)
        found[name] = log_marginal(oracle.model(), oracle.exact_guide(), data, 200, seed=0)
    khat = found["narrow"].khat.clone()
    khat[:5], khat[5:10] = 0.8, 1.5
    return found | {"narrow": replace(found["narrow"], khat=khat)}


def test_arviz_compares_as_we_do(models: dict[str, Evidence]) -> None:
    """N times our differences and errors; its variances divide by N, ours by N - 1."""
    import arviz as az

    ours, n = compare(models), 150
    exact = {} if bridge._major() < 1 else {"round_to": "none"}
    table = az.compare({name: bridge.elpd(e) for name, e in models.items()}, **exact)
    assert list(table.index) == list(ours.names) and ours.best == "true"
    elpd = table["elpd_loo" if "elpd_loo" in table else "elpd"]
    for name, evidence in models.items():
        assert elpd[name] == pytest.approx(evidence.estimate.sum().item(), abs=1e-8)
        assert table["se"][name] == pytest.approx(n * evidence.mean_se, rel=1e-9)
    for name, d in ours.differences.items():
        assert abs(table["elpd_diff"][name]) == pytest.approx(-n * d.mean, rel=1e-9)
        assert table["dse"][name] == pytest.approx(n * d.se * ((n - 1) / n) ** 0.5, rel=1e-9)
    assert table["weight"].sum() == pytest.approx(1)


def test_arviz_plots_the_comparison(models: dict[str, Evidence]) -> None:
    import arviz as az
    import matplotlib.pyplot as plt

    found = {name: bridge.elpd(e) for name, e in models.items()}
    az.plot_compare(az.compare(found))
    az.plot_khat(found["narrow"])
    plt.close("all")


def test_elpd_says_what_it_is(models: dict[str, Evidence]) -> None:
    evidence, found = models["narrow"], bridge.elpd(models["narrow"])
    old = bridge._major() < 1
    pointwise = found["loo_i" if old else "elpd_i"]
    assert pointwise.dims == ("datum",) and np.array_equal(pointwise.values, evidence.estimate.numpy())
    assert np.array_equal(found["pareto_k"].values, evidence.khat.numpy())
    assert (found["n_data_points"], found["n_samples"], found["scale"]) == (150, 200, "log")
    assert found["good_k"] == pytest.approx(threshold(200)) and np.isnan(found["p_loo" if old else "p"])
    assert found["warning"] and not bridge.elpd(models["true"])["warning"]
    lines = [line.split() for line in str(found).splitlines() if line.rstrip().endswith("%")]
    assert [int(line[-2]) for line in lines] == [140, 5, 5]
    flat = bridge.elpd(replace(evidence, khat=torch.full((150,), -torch.inf)))
    assert not flat["warning"] and " 150  100.0%" in str(flat)


def test_elpd_refuses_what_arviz_would_drop(models: dict[str, Evidence]) -> None:
    estimate = models["true"].estimate.clone()
    estimate[7], estimate[9] = -torch.inf, torch.nan
    with pytest.raises(ValueError, match=r"log p\(a, b\) is not finite in 2 of 150 rows"):
        bridge.elpd(replace(models["true"], estimate=estimate))


def test_what_does_not_fit_is_named(found: Found) -> None:
    evidences, posterior, batch, predictive = found
    with pytest.raises(ValueError, match="evidence 'joint' has 7 rows, the batch has 4"):
        bridge.to_arviz(evidences, None, batch[:4])
    with pytest.raises(ValueError, match=r"site 'z' has draws of shape \(20, 7, 2\), expected \(K, 4, ...\)"):
        bridge.to_arviz(None, posterior, batch[:4])
    with pytest.raises(ValueError, match="modality 'sound' is predicted"):
        bridge.to_arviz(None, None, batch, {"sound": predictive["a"]})
    with pytest.raises(ValueError, match=r"modality 'b' is predicted with event shape \(3,\), the batch has \(2,\)"):
        bridge.to_arviz(None, None, batch, {"b": predictive["a"]})
    with pytest.raises(ValueError, match="quantity 'a/b' cannot be stored"):
        bridge.to_arviz({"a/b": evidences["a"]}, None, batch)
    with pytest.raises(ValueError, match="modality 'draw' cannot be stored"):
        bridge.to_arviz(None, None, Batch({"draw": torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"mask of modality 'a' has shape \(1, 7\)"):
        bridge.to_arviz(None, None, batch.subsets([["a"]]))


def test_bad_files_are_named(found: Found, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.nc"):
        bridge.load(tmp_path / "nothing.nc")
    path = bridge.save(bridge.to_arviz(*found), tmp_path / "evidence.nc")
    whole = path.read_bytes()
    for content in (b"", b"no netCDF", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(BadFile, match=r"evidence\.nc is no netCDF file"):
            bridge.load(path)


def test_without_a_netcdf_library_the_error_says_what_to_install(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bridge.to_arviz(None, None, found[2])
    there = importlib.util.find_spec
    monkeypatch.setattr(bridge, "find_spec", lambda n: None if n in ("h5netcdf", "netCDF4") else there(n))
    with pytest.raises(ImportError, match="pip install h5netcdf"):
        bridge.save(data, tmp_path / "x.nc")


def test_no_arviz_is_imported_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's own name is no obstacle: `import arviz` inside it is the library."""
    imported: list[str] = []
    real = builtins.__import__

    def watch(name: str, *args: Any) -> ModuleType:
        imported.append(name)
        return real(name, *args)

    spec = importlib.util.find_spec("pyro_mm.arviz")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(builtins, "__import__", watch)
    spec.loader.exec_module(module)
    assert "arviz" not in imported
    module.to_arviz(None, None, Batch({"a": torch.zeros(2)}))
    assert "arviz" in imported
