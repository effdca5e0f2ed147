"""A sweep: a student for each combination of settings, and the best of them on validation data."""

from __future__ import annotations

from hfdistill.sweep.grid import Grid, Trial, grid_of
from hfdistill.sweep.results import Results
from hfdistill.sweep.trials import BEST, run_best, run_sweep

__all__ = ["BEST", "Grid", "Results", "Trial", "grid_of", "run_best", "run_sweep"]
