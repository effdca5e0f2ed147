"""What came of a sweep: each trial's numbers on validation data, the best of them, and both as JSON."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfdistill.errors import HfDistillError
from hfdistill.main_metric import MainMetric, main_metric
from hfdistill.sweep.grid import Grid, Trial

WAITING, RUNNING, FINISHED = "waiting", "running", "finished"


@dataclass
class Result:
    """One trial: its metrics on validation data by seed, as far as it has come, and its seconds of training.

    `elapsed` are all its seconds, measuring included, where it was done in this process.
    """

    trial: Trial
    by_seed: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    elapsed: float = 0.0
    state: str = WAITING

    def values(self, metric: MainMetric) -> list[float]:
        """The main metric of each seed; NaN where a student has diverged."""
        numbers = [metrics.get(metric.key) for metrics in self.by_seed.values()]
        return [math.nan if number is None else float(number) for number in numbers]

    def mean(self, metric: MainMetric) -> float:
        """The main metric over the seeds, NaN before the trial is finished."""
        return statistics.fmean(self.values(metric)) if self.state == FINISHED else math.nan

    def spread(self, metric: MainMetric) -> float | None:
        """Its standard deviation over the seeds, where there are several."""
        values = self.values(metric)
        if len(values) < 2 or self.state != FINISHED or not all(map(math.isfinite, values)):
            return None
        return statistics.stdev(values)


@dataclass
class Results:
    """All trials of a sweep, in their order. `teacher` has its own metrics on validation data."""

    grid: Grid
    problem_type: str
    trials: list[Result]
    teacher: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metric(self) -> MainMetric:
        """What the trials are judged by."""
        measured = next((metrics for result in self.trials for metrics in result.by_seed.values()), self.teacher)
        return main_metric(self.problem_type, measured)

    @property
    def best(self) -> Result | None:
        """The best finished trial, the first of equals; None where no trial has a number."""
        known = [result for result in self.trials if math.isfinite(result.mean(self.metric))]
        # max() keeps the first of equals.
        return max(known, key=lambda result: self.metric.sign * result.mean(self.metric), default=None)

    @property
    def finished(self) -> bool:
        """Whether every trial is."""
        return all(result.state == FINISHED for result in self.trials)

    def seconds_left(self) -> float | None:
        """How long the other trials will take if they are like those that are finished."""
        known = [max(result.seconds, result.elapsed) for result in self.trials if result.state == FINISHED]
        rest = len(self.trials) - len(known)
        return statistics.fmean(known) * rest if known else None

    def command(self, trial: Trial) -> str:
        """The command that runs a trial's recipe whole, with control and test."""
        changes = [f"--{key}={text}" for key, text in {**self.grid.changes, **trial.changes}.items()]
        seeds = ["--seed", *map(str, self.grid.seeds)] if self.grid.other_seeds else []
        return shlex.join(["hfdistill", "run", self.grid.recipe, *changes, *seeds])

    def to_dict(self) -> dict[str, Any]:
        """sweep.json."""
        best = self.best
        return {
            "recipe": self.grid.recipe,
            "keys": list(self.grid.keys),
            "changes": dict(self.grid.changes),
            "seeds": list(self.grid.seeds),
            "judged_on": "validation",
            "metric": {"key": self.metric.key, "better": "higher" if self.metric.sign > 0 else "lower"},
            "finished": self.finished,
            "chosen": None if best is None or not self.finished else best.trial.number,
            "command": None if best is None or not self.finished else self.command(best.trial),
            "teacher": dict(self.teacher),
            "trials": [self._trial(result) for result in self.trials],
        }

    def _trial(self, result: Result) -> dict[str, Any]:
        return {
            "number": result.trial.number,
            "settings": dict(result.trial.settings),
            "folder": result.trial.folder,
            "state": result.state,
            "mean": result.mean(self.metric) if result.state == FINISHED else None,
            "spread": result.spread(self.metric),
            "validation_metrics": {str(seed): dict(metrics) for seed, metrics in result.by_seed.items()},
            "seconds": result.seconds,
        }


@dataclass(frozen=True)
class StageFacts:
    """What a finished stage has recorded."""

    fingerprint: str
    validation_metrics: Mapping[str, Any]
    seconds: float
    steps: int


def read_stage(file: Path) -> StageFacts:
    """What a finished stage has recorded in its file. Errors: HfDistillError where it cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return StageFacts(
            str(content["fingerprint"]),
            dict(content["validation_metrics"]),
            float(content["seconds"]),
            int(content["steps"]),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HfDistillError(
            f"{file} cannot be read ({error}); remove its folder {file.parent} and run again."
        ) from error


def check_folder(output: Path, grid: Grid, overwrite: bool) -> None:
    """Refuse a folder with someone's files or a sweep over other keys. Errors: HfDistillError."""
    if output.exists() and not output.is_dir():
        raise HfDistillError(f"--output: {output} is a file; expected a folder, new or of an earlier sweep.")
    file = output / "sweep.json"
    if not file.is_file():
        if output.is_dir() and any(output.iterdir()):
            what = "a run" if (output / "recipe.yaml").is_file() else "other files"
            raise HfDistillError(
                f"--output: {output} holds {what} and no sweep (sweep.json is missing); expected a new folder, an "
                "empty one, or that of an earlier sweep."
            )
        return
    former = _keys_of(file)
    if sorted(former) != sorted(grid.keys) and not overwrite:
        raise HfDistillError(
            f"--output: {output} holds a sweep over {', '.join(former)}, and this one is over {', '.join(grid.keys)}. "
            "Give a new folder with --output, or --overwrite to put this sweep in its place."
        )


def _keys_of(file: Path) -> Sequence[str]:
    try:
        return [str(key) for key in json.loads(file.read_text(encoding="utf-8"))["keys"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HfDistillError(
            f"{file} cannot be read ({error}); remove it, or give a new folder with --output."
        ) from error
