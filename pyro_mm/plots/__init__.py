"""Figures: every function returns (figure, axes), the axes by name, and saves to `path` when given one.

Matplotlib is imported when a figure is drawn, not before.  Figures stay open, so that notebooks show them; a script
that draws many closes them with `close(figure)`.
"""

from pyro_mm.plots.calibration import bounds_by_subset, calibration_ecdf
from pyro_mm.plots.certificates import certificates
from pyro_mm.plots.curves import khat_histogram, loss_curves
from pyro_mm.plots.evidence import k_curve, khat_over_data, report
from pyro_mm.plots.gaps import gaps_by_subset
from pyro_mm.plots.grids import cross_generation, prior_samples, reconstructions
from pyro_mm.plots.interpolations import interpolation
from pyro_mm.plots.latents import latent_map
from pyro_mm.plots.sheets import cross_generation_sheet
from pyro_mm.plots.show import written
from pyro_mm.plots.signals import spectrogram, stroke
from pyro_mm.plots.style import close
from pyro_mm.plots.tasks import accuracy_curves, retrieval_chart
from pyro_mm.plots.traversals import traversal

__all__ = [
    "accuracy_curves",
    "bounds_by_subset",
    "calibration_ecdf",
    "certificates",
    "close",
    "cross_generation",
    "cross_generation_sheet",
    "gaps_by_subset",
    "interpolation",
    "k_curve",
    "khat_histogram",
    "khat_over_data",
    "latent_map",
    "loss_curves",
    "prior_samples",
    "reconstructions",
    "report",
    "retrieval_chart",
    "spectrogram",
    "stroke",
    "traversal",
    "written",
]
