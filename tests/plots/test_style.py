"""Figures are saved whole, stay open until they are closed, and cost nothing before they are drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyro_mm import likelihoods, plots, variants
from pyro_mm.modality import Modality
from pyro_mm.plots.style import drawing


def test_figures_are_saved_whole_and_closed(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    recipe = variants.vae([Modality("image", (4, 4), likelihoods.Bernoulli())], 2)
    figure, _ = plots.prior_samples(recipe, n=2, path=tmp_path / "new" / "prior.png")
    assert (tmp_path / "new" / "prior.png").read_bytes()[:4] == b"\x89PNG"
    plots.prior_samples(recipe, n=2, path=tmp_path / "prior.pdf")
    assert (tmp_path / "prior.pdf").read_bytes()[:4] == b"%PDF"
    with pytest.raises(ValueError, match=r"writes no '\.docx'"):
        plots.prior_samples(recipe, n=2, path=tmp_path / "prior.docx")
    assert plt.fignum_exists(figure.number)
    plots.close(figure)
    assert not plt.fignum_exists(figure.number)
    plots.close()
    assert plt.get_fignums() == []


def test_importing_plots_does_not_import_matplotlib() -> None:
    code = "import sys, pyro_mm.plots, pyro_mm.describe, pyro_mm.arviz; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "arviz", "xarray"} & set(done.stdout.split())


def test_what_a_backend_turns_on_with_the_first_figure_stays_on() -> None:
    """As a notebook's does: figures drawn later would not be shown."""
    import matplotlib

    before = matplotlib.is_interactive()
    try:
        matplotlib.interactive(False)
        with drawing():
            matplotlib.interactive(True)
        assert matplotlib.is_interactive()
    finally:
        matplotlib.interactive(before)
