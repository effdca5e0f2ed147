"""The stages of a run: what is trained when, what is finished already, and what each leaves behind."""

from __future__ import annotations

from hfdistill.stages.progress import Reporter
from hfdistill.stages.run import run_recipe

__all__ = ["Reporter", "run_recipe"]
