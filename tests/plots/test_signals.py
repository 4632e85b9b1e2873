"""Strokes and spectrograms: what is drawn, by itself or through a hook, is the value and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb

from pyro_mm import likelihoods, networks, plots, variants
from pyro_mm.batch import Batch
from pyro_mm.modality import Modality
from pyro_mm.plots.show import kind_of
from pyro_mm.plots.signals import spectrogram, stroke
from pyro_mm.plots.style import colours

SMALL = networks.MLP((4,))
BOUNDED = likelihoods.Normal(0.5, bounded=True)


def points(ax: Any) -> np.ndarray:
    """The points `(L, 2)` of a stroke, read back from its segments."""
    segments = np.stack(ax.collections[0].get_segments())
    assert np.array_equal(segments[1:, 0], segments[:-1, 1]), "segments join"
    return np.concatenate([segments[:, 0], segments[-1:, 1]])


def spiral(length: int = 50) -> torch.Tensor:
    turn, radius = torch.linspace(0, 9, length), torch.linspace(0.1, 0.4, length)
    return torch.cat([0.5 + radius * turn.cos(), 0.5 + radius * turn.sin()])


@pytest.mark.parametrize("flat", [True, False])
def test_a_stroke_is_x_and_y_from_dark_to_pale(flat: bool) -> None:
    import matplotlib.pyplot as plt

    value = spiral() if flat else spiral().reshape(2, 50)
    ax = plt.figure(figsize=(4, 2)).add_subplot()
    stroke(ax, value, "#0072B2")
    assert np.allclose(points(ax), value.reshape(2, 50).T)
    assert np.allclose(np.ravel(ax.lines[0].get_data()), value.reshape(2, 50)[:, 0])
    assert to_hex(ax.lines[0].get_color()) == "#0072b2"
    light = ax.collections[0].get_colors()[:, :3].sum(1)
    assert np.allclose(ax.collections[0].get_colors()[0, :3], to_rgb("#0072B2"))
    assert (np.diff(light) > 0).all() and light[-1] < 2.8
    ax.figure.canvas.draw()
    (left, down), (right, up) = ax.transData.transform([(0, 0), (1, 1)])
    assert right - left == pytest.approx(up - down) and up > down


def test_a_spectrogram_has_time_to_the_right_and_frequency_upwards() -> None:
    import matplotlib.pyplot as plt

    value = torch.zeros(1, 3, 5)
    value[0, 2, 4] = 1.0  # the last frame, the highest band
    ax = plt.figure().add_subplot()
    spectrogram(ax, value)
    ax.figure.canvas.draw()
    image = ax.images[0]
    assert np.array_equal(image.get_array(), value[0].T) and image.get_clim() == (0, 1)
    assert image.cmap.name == "magma" and image.origin == "lower"
    assert np.all(ax.transData.transform((2, 4)) > ax.transData.transform((0, 0)))


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("trajectory", (200,), "stroke"),
        ("trajectory", (2, 30), "stroke"),
        ("trajectory", (7,), "vector"),
        ("trajectory", (2,), "vector"),
        ("gesture", (200,), "vector"),
        ("sound", (1, 32, 128), "spectrogram"),
        ("sound", (32, 128), "spectrogram"),
        ("sound", (800,), "vector"),
        ("line_of_text", (1, 32, 128), "image"),
    ],
)
def test_a_signal_is_known_by_its_name_and_shape(name: str, shape: tuple[int, ...], kind: str) -> None:
    assert kind_of(Modality(name, shape, BOUNDED)) == kind


def test_a_sequence_of_tokens_is_no_stroke_whatever_its_name() -> None:
    assert kind_of(Modality("trajectory", (8,), likelihoods.Tokens(5))) == "tokens"


@pytest.mark.parametrize("names", [("trajectory", "sound"), ("gesture", "noise")])
def test_cells_show_data_and_decoders_means(names: tuple[str, str]) -> None:
    """By name, and by hook for other names: the same cells, in the modality's colour and its support."""
    pen, heard = names
    recipe = variants.mvae([Modality(pen, (100,), BOUNDED, SMALL), Modality(heard, (1, 4, 6), BOUNDED, SMALL)], 2)
    x = {pen: torch.stack([spiral(), 1 - spiral()]), heard: torch.rand(2, 1, 4, 6)}
    show = {} if pen == "trajectory" else {pen: stroke, heard: spectrogram}
    figure, axes = plots.reconstructions(recipe, Batch(x), show=show, seed=2)
    from pyro_mm.evaluation import generate

    made = generate(recipe.model, recipe.guide, Batch(x), seed=2)
    for row in range(2):
        for line, strokes, sounds in (
            ("data", x[pen], x[heard]),
            ("reconstruction", made[pen].mean[0], made[heard].mean[0]),
        ):
            cell = axes[line, pen, row]
            assert np.allclose(points(cell), strokes[row].reshape(2, 50).T)
            assert to_hex(cell.lines[0].get_color()) == colours(names)[pen].lower()
            assert cell.get_xlim() == cell.get_ylim() == pytest.approx((-0.1, 1.1))
            assert np.allclose(axes[line, heard, row].images[0].get_array(), sounds[row, 0].T)
            assert axes[line, heard, row].images[0].get_clim() == (0, 1)
    figure.canvas.draw()
    box = axes["data", pen, 0].get_window_extent()
    assert box.width == pytest.approx(box.height)


def test_a_bounded_image_keeps_its_greys() -> None:
    """The noise of an observation, which a picture does not show, does not widen its range."""
    for likelihood, limits in ((BOUNDED, (0, 1)), (likelihoods.Normal(5.0), None)):
        recipe = variants.vae([Modality("image", (4, 4), likelihood, SMALL)], 2)
        _, axes = plots.reconstructions(recipe, Batch({"image": torch.rand(2, 4, 4)}))
        cells = [ax.images[0] for ax in axes.values()]
        low, high = limits or (min(c.get_array().min() for c in cells), max(c.get_array().max() for c in cells))
        assert all(c.get_clim() == pytest.approx((low, high)) for c in cells)


def test_what_is_no_signal_is_refused() -> None:
    import matplotlib.pyplot as plt

    ax = plt.figure().add_subplot()
    with pytest.raises(ValueError, match=r"a stroke has shape \(2 L,\) or \(2, L\), got \(7,\)"):
        stroke(ax, torch.zeros(7))
    with pytest.raises(ValueError, match=r"a spectrogram has shape .*, got \(3, 4, 5\)"):
        spectrogram(ax, torch.zeros(3, 4, 5))
