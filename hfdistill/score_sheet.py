"""Score sheets: how a finished stage did on each example of the test split, and every number that follows from it.

Where an example has one small distribution (classifiers, regressions) the sheet holds logits and labels. Where it has
many (tokens, pixels, frames) it holds sums: what the example adds to the numerator and the denominator of each number.
Of an image with objects it holds what was detected and what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hfdistill.detection_sheet import DETECTION, detection_sheet
from hfdistill.errors import HfDistillError, nearest
from hfdistill.fidelity import Calibration, Fidelity, calibration, fidelity
from hfdistill.intervals import Estimate, model_difference, model_estimate
from hfdistill.main_metric import MAIN_METRIC, MainMetric
from hfdistill.metrics import LOGIT_TASKS, REGRESSION, metric_values
from hfdistill.sum_sheet import SUM_TASKS, SumSheet, check_sums


class ScoreSheet(Protocol):
    """What the report asks of a finished stage."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Examples first."""
        ...

    @property
    def counts(self) -> dict[str, int]:
        """How many tokens, words, pixels or objects were measured; nothing where an example counts as a whole."""
        ...

    @property
    def main_metric(self) -> MainMetric:
        """What the model is judged by."""
        ...

    def metrics(self) -> dict[str, float]:
        """All metrics of the task."""
        ...

    def main(self) -> Estimate:
        """The main metric with its interval over the test examples."""
        ...

    def gain_over(self, other: ScoreSheet) -> Estimate:
        """How much better the main metric is than the other's on the same examples; above zero is better."""
        ...

    def fidelity_to(self, teacher: ScoreSheet) -> Fidelity | None:
        """How far the model follows its teacher; None where that was not measured."""
        ...

    def calibration(self) -> Calibration | None:
        """How far its probabilities are to be trusted; None where none are kept."""
        ...

    def same_split(self, other: ScoreSheet) -> bool:
        """Whether both are about the same examples."""
        ...


@dataclass(frozen=True)
class LogitSheet:
    """Logits `(examples, classes)` and labels of a classifier or a regression."""

    problem_type: str
    logits: NDArray[Any]
    labels: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Examples and classes."""
        return self.logits.shape

    @property
    def counts(self) -> dict[str, int]:
        """Nothing: an example counts as a whole."""
        return {}

    @property
    def main_metric(self) -> MainMetric:
        """The task's."""
        return MAIN_METRIC[self.problem_type]

    def metrics(self) -> dict[str, float]:
        """All metrics of the task."""
        return metric_values(self.problem_type, self.logits, self.labels)

    def main(self) -> Estimate:
        """Wilson's interval of an accuracy, the bootstrap of other metrics."""
        return model_estimate(self.problem_type, self.logits, self.labels)

    def gain_over(self, other: ScoreSheet) -> Estimate:
        """Paired by example."""
        assert isinstance(other, LogitSheet), "a run has one task"
        return model_difference(self.problem_type, self.logits, other.logits, self.labels)

    def fidelity_to(self, teacher: ScoreSheet) -> Fidelity | None:
        """From both models' logits."""
        assert isinstance(teacher, LogitSheet), "a run has one task"
        return fidelity(self.problem_type, teacher.logits, self.logits, self.labels)

    def calibration(self) -> Calibration | None:
        """Reliability curve and calibration error; None for a regression."""
        if self.problem_type == REGRESSION:
            return None
        return calibration(self.problem_type, self.logits, self.labels)

    def same_split(self, other: ScoreSheet) -> bool:
        """Whether classes and labels are the same."""
        return (
            isinstance(other, LogitSheet)
            and self.shape == other.shape
            and bool(np.array_equal(self.labels, other.labels, equal_nan=True))
        )


def sheet_of(problem_type: str, columns: Mapping[str, NDArray[Any]]) -> ScoreSheet:
    """The sheet of a task from what predictions.safetensors holds.

    Errors: HfDistillError for a task that no run can measure, and for columns that do not fit it.
    """
    if problem_type in SUM_TASKS:
        sums = SumSheet(problem_type, {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()})
        check_sums(sums)
        return sums
    if problem_type == DETECTION:
        return detection_sheet(columns)
    if problem_type not in LOGIT_TASKS:
        known = ", ".join(sorted(MAIN_METRIC))
        raise HfDistillError(
            f"got problem_type {problem_type!r}, expected one of {known}" + nearest(problem_type, MAIN_METRIC)
        )
    if not {"logits", "labels"} <= columns.keys():
        raise HfDistillError(f"got the columns {', '.join(sorted(columns))}, expected logits and labels")
    logits, labels = np.asarray(columns["logits"]), np.asarray(columns["labels"])
    if logits.ndim != 2 or not len(logits) or len(logits) != len(labels):
        raise HfDistillError(f"got logits of shape {logits.shape} for labels of shape {labels.shape}")
    return LogitSheet(problem_type, logits, labels)


def pooled(sheets: Sequence[LogitSheet]) -> LogitSheet:
    """Several sheets as one, as if their examples were different ones."""
    logits = np.concatenate([sheet.logits for sheet in sheets])
    return LogitSheet(sheets[0].problem_type, logits, np.concatenate([sheet.labels for sheet in sheets]))
