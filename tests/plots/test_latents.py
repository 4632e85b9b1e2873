"""The map of latents: exact posterior means, one plane for all panels, colours by class, rows that have something."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from pyro_mm import plots
from pyro_mm.batch import Batch
from pyro_mm.data import LinearGaussian


def made(latent: int, n: int = 40, dims: tuple[str, ...] = ("a", "b")) -> tuple[LinearGaussian, Batch]:
    oracle = LinearGaussian.random({m: 4 for m in dims}, latent)
    return oracle, oracle.sample(n, seed=3)


def points(ax: Any) -> np.ndarray:
    return np.asarray(ax.collections[0].get_offsets())


def test_two_dimensions_are_the_posterior_means() -> None:
    oracle, batch = made(2)
    _, axes = plots.latent_map(oracle.exact_guide(), batch)
    assert list(axes) == [("a",), ("b",), ("a", "b")]
    for group, ax in axes.items():
        mean, _ = oracle.posterior(batch.only(*group))
        assert np.allclose(points(ax), mean.numpy())
    assert (axes["a",].get_xlabel(), axes["a",].get_ylabel()) == ("z₁", "z₂")
    assert [ax.get_title() for ax in axes.values()] == ["given a", "given b", "given a, b"]


def test_more_dimensions_are_shown_on_one_plane() -> None:
    oracle, batch = made(4)
    _, axes = plots.latent_map(oracle.exact_guide(), batch)
    whole, _ = oracle.posterior(batch)
    centred = (whole - whole.mean(0)).numpy()
    values, vectors = np.linalg.eigh(centred.T @ centred)
    axis = vectors[:, [-1, -2]]
    shown = points(axes["a", "b"])
    assert np.allclose(np.abs(shown), np.abs(centred @ axis))  # signs of axes are free
    sign = np.sign((shown * (centred @ axis)).sum(0))
    part = oracle.posterior(batch.only("a"))[0].numpy() - whole.mean(0).numpy()
    assert np.allclose(points(axes["a",]), part @ axis * sign)
    share = values[::-1] / values.sum()
    assert axes["a",].get_xlabel() == f"PC 1  ({share[0]:.0%} of variance)"
    assert axes["a",].get_ylabel() == f"PC 2  ({share[1]:.0%} of variance)"


def test_one_dimension_is_the_horizontal_axis() -> None:
    oracle, batch = made(1)
    _, axes = plots.latent_map(oracle.exact_guide(), batch, sets=["a"])
    assert np.allclose(points(axes["a",])[:, 0], oracle.posterior(batch.only("a"))[0][:, 0])


def test_colours_are_those_of_the_key() -> None:
    oracle, batch = made(2)
    labels = torch.arange(40) % 3
    for given in (labels, labels.tolist(), torch.eye(3)[labels], [f"{c}" for c in labels.tolist()]):
        figure, axes = plots.latent_map(oracle.exact_guide(), batch, given)
        key = figure.legends[0]
        colour = [to_hex(h.get_color()) for h in key.legend_handles]
        assert [t.get_text() for t in key.get_texts()] == ["0", "1", "2"]
        for ax in axes.values():
            faces = [to_hex(c[:3]) for c in ax.collections[0].get_facecolors()]
            assert faces == [colour[c] for c in labels.tolist()]


def test_many_numbers_are_coloured_on_a_scale() -> None:
    oracle, batch = made(2)
    figure, axes = plots.latent_map(oracle.exact_guide(), batch, torch.linspace(0, 5, 40), sets=["a"])
    assert np.allclose(axes["a",].collections[0].get_array(), np.linspace(0, 5, 40))
    assert not figure.legends and len(figure.axes) == 2


def test_rows_without_anything_are_left_out() -> None:
    oracle, batch = made(2)
    seen = torch.arange(40) % 4 != 0
    partial = Batch(batch.x, {"a": seen, "b": ~seen})
    _, axes = plots.latent_map(oracle.exact_guide(), partial)
    assert [len(points(ax)) for ax in axes.values()] == [30, 10, 40]
    assert np.allclose(points(axes["a",]), oracle.posterior(batch.only("a"))[0][seen])


def test_a_label_modality_is_used_where_it_is_present() -> None:
    oracle, batch = made(2)
    known = torch.arange(40) < 25
    labelled = Batch({**batch.x, "label": torch.arange(40) % 2}, {"label": known})
    figure, axes = plots.latent_map(oracle.exact_guide(), labelled, "label", sets=[("a", "b")])
    assert len(points(axes["a", "b"])) == 25
    assert len(figure.legends[0].get_texts()) == 2


def test_four_modalities_have_each_alone_and_all() -> None:
    oracle, batch = made(2, dims=("a", "b", "c", "d"))
    guide = plots_guide(oracle)
    _, axes = plots.latent_map(guide, batch)
    assert list(axes) == [("a",), ("b",), ("c",), ("d",), ("a", "b", "c", "d")]


def plots_guide(oracle: LinearGaussian) -> Any:
    from pyro_mm.guides import Experts, product_of_posteriors

    return Experts(oracle.unimodal_posteriors(), product_of_posteriors)


def test_wrong_input_is_refused_by_name() -> None:
    oracle, batch = made(2)
    guide = oracle.exact_guide()
    with pytest.raises(ValueError, match=r"sets= names \['sound'\]"):
        plots.latent_map(guide, batch, sets=["sound"])
    with pytest.raises(ValueError, match="at least one subset"):
        plots.latent_map(guide, batch, sets=[])
    with pytest.raises(ValueError, match=r"labels have shape \(3,\), the batch has 40 rows"):
        plots.latent_map(guide, batch, [1, 2, 3])
    with pytest.raises(ValueError, match="labels='class' is no modality"):
        plots.latent_map(guide, batch, "class")
    with pytest.raises(ValueError, match="no latent 'w'"):
        plots.latent_map(guide, batch, site="w")
    with pytest.raises(ValueError, match=r"no row has any of \['a'\]"):
        plots.latent_map(guide, batch.without("a"))
