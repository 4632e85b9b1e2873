"""Figures: every function returns (figure, axes), the axes by name, and saves to `path` when given one.

Matplotlib is imported when a figure is drawn, not before.  Figures stay open, so that notebooks show them; a script
that draws many closes them with `close(figure)`.
"""

from pyro_mm.plots.curves import khat_histogram, loss_curves
from pyro_mm.plots.grids import cross_generation, prior_samples, reconstructions
from pyro_mm.plots.latents import latent_map
from pyro_mm.plots.show import written
from pyro_mm.plots.style import close

__all__ = [
    "close",
    "cross_generation",
    "khat_histogram",
    "latent_map",
    "loss_curves",
    "prior_samples",
    "reconstructions",
    "written",
]
