"""Training: `fit` over an objective or stages, checkpoints and exact resume, logs, and stock SVI."""

from pyro_mm.training.errors import NonFiniteLoss
from pyro_mm.training.fit import fit
from pyro_mm.training.history import Callback, History, State
from pyro_mm.training.stages import Stage, in_turn
from pyro_mm.training.stock import StockSVI, stock_trains_nothing, svi

__all__ = [
    "Callback",
    "History",
    "NonFiniteLoss",
    "Stage",
    "State",
    "StockSVI",
    "fit",
    "in_turn",
    "stock_trains_nothing",
    "svi",
]
