"""Score sheets of tasks with many wide distributions an example (tokens): sums, from which every number follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hfdistill.errors import HfDistillError
from hfdistill.fidelity import Calibration, Fidelity, fidelity_of_sums
from hfdistill.intervals import Estimate, sums_difference, sums_estimate
from hfdistill.main_metric import MAIN_METRIC
from hfdistill.metrics_text import perplexity

if TYPE_CHECKING:
    from hfdistill.score_sheet import ScoreSheet


@dataclass(frozen=True)
class Ratio:
    """A number that is a sum over examples, divided by a sum over examples: F1 is 2 · right / (predicted + gold)."""

    above: tuple[str, ...]
    below: tuple[str, ...]
    factor: float = 1.0

    def addends(self, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """What each example adds to both sums, `(examples, 2)`."""
        return np.stack([_sum([columns[name] for name in names]) for names in (self.above, self.below)], axis=1)

    def __call__(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The number from both sums, `(..., 2)`; 0 of nothing."""
        quotient = np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)
        return self.factor * quotient


@dataclass(frozen=True)
class SumTask:
    """What the sheets of one task hold: metrics, the column that counts what was measured, and what it counts."""

    ratios: Mapping[str, Ratio]
    counted: str = "tokens"
    given: tuple[str, ...] = ("tokens",)

    @property
    def columns(self) -> set[str]:
        """The columns that a sheet must have."""
        return {name for ratio in self.ratios.values() for name in (*ratio.above, *ratio.below)}


_LOSS = Ratio(("loss_sum",), ("tokens",))
_ACCURACY = Ratio(("correct",), ("tokens",))
_LANGUAGE = SumTask({"loss": _LOSS, "accuracy": _ACCURACY})

SUM_TASKS: dict[str, SumTask] = {
    "causal_lm": _LANGUAGE,
    "masked_lm": _LANGUAGE,
    "seq2seq_lm": _LANGUAGE,
    "token_classification": SumTask(
        {
            "f1": Ratio(("true_positive",), ("predicted", "gold"), 2.0),
            "precision": Ratio(("true_positive",), ("predicted",)),
            "recall": Ratio(("true_positive",), ("gold",)),
            "accuracy": _ACCURACY,
            "loss": _LOSS,
        },
        given=("tokens", "gold"),
    ),
    "question_answering": SumTask(
        {"f1": Ratio(("f1",), ("questions",)), "exact_match": Ratio(("exact",), ("questions",)), "loss": _LOSS},
        counted="questions",
        given=("tokens", "questions"),
    ),
}
"""The tasks whose sheets hold sums."""

FOLLOWED = ("kl_sum", "agree", "compared", "teacher_wrong_student_right", "teacher_right_student_wrong")
"""Columns about the teacher at temperature 1; the teacher's own sheet has none of them."""


@dataclass(frozen=True)
class SumSheet:
    """Named sums `(examples,)` in float64: the columns of the task, and those of `FOLLOWED` beside a teacher."""

    problem_type: str
    columns: Mapping[str, NDArray[np.float64]]

    @property
    def task(self) -> SumTask:
        """What the columns mean."""
        return SUM_TASKS[self.problem_type]

    @property
    def shape(self) -> tuple[int, ...]:
        """The examples."""
        return self.columns[self.task.counted].shape

    @property
    def tokens(self) -> int | None:
        """Those with a label; None where a question counts as a whole."""
        return int(self.columns["tokens"].sum()) if self.task.counted == "tokens" else None

    def metrics(self) -> dict[str, float]:
        """All metrics of the task."""
        values = {
            name: float(ratio(ratio.addends(self.columns).sum(axis=0))) for name, ratio in self.task.ratios.items()
        }
        if self.task is _LANGUAGE:
            values["perplexity"] = perplexity(values["loss"])
        return values

    def main(self) -> Estimate:
        """By the bootstrap over examples."""
        ratio = self._main_ratio
        return sums_estimate(ratio.addends(self.columns), ratio)

    def gain_over(self, other: ScoreSheet) -> Estimate:
        """By the paired bootstrap over examples."""
        assert isinstance(other, SumSheet), "a run has one task"
        ratio, sign = self._main_ratio, MAIN_METRIC[self.problem_type].sign
        return sums_difference(ratio.addends(self.columns), ratio.addends(other.columns), ratio, sign)

    def fidelity_to(self, teacher: ScoreSheet) -> Fidelity | None:
        """From this sheet's own columns: the stage looked at the teacher token by token."""
        if not set(FOLLOWED) <= self.columns.keys() or not self.columns["compared"].sum():
            return None
        return fidelity_of_sums(**{name: float(self.columns[name].sum()) for name in FOLLOWED})

    def calibration(self) -> Calibration | None:
        """None: no probabilities are kept."""
        return None

    @property
    def _main_ratio(self) -> Ratio:
        return self.task.ratios[MAIN_METRIC[self.problem_type].key]

    def same_split(self, other: ScoreSheet) -> bool:
        """Whether what the data alone decides is the same for every example."""
        return (
            isinstance(other, SumSheet)
            and self.shape == other.shape
            and all(np.array_equal(self.columns[name], other.columns[name]) for name in self.task.given)
        )


def check_sums(sheet: SumSheet) -> None:
    """Refuse a sheet that cannot be measured.

    Errors: HfDistillError for missing columns, shapes that do not fit, values that are not finite, and a split without
    anything to measure against.
    """
    missing = sorted(sheet.task.columns - sheet.columns.keys())
    if missing:
        raise HfDistillError(f"got the columns {', '.join(sorted(sheet.columns))}, expected also {', '.join(missing)}")
    for name, column in sheet.columns.items():
        if column.ndim != 1 or column.shape != sheet.shape:
            raise HfDistillError(f"got {name} of shape {column.shape}, expected a value for each of {sheet.shape}")
        if not np.isfinite(column).all():
            raise HfDistillError(f"got values in {name} that are not finite, expected sums; did the training diverge?")
    if not sheet.columns[sheet.task.counted].sum():
        raise HfDistillError(f"got no {sheet.task.counted} with a label, expected some; evaluate on a labelled split")


def _sum(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum(columns, axis=0)
    return total
