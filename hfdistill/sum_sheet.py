"""Score sheets of tasks with many distributions an example (tokens, pixels, frames): sums, which give every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from hfdistill.errors import HfDistillError
from hfdistill.fidelity import Calibration, Fidelity, fidelity_of_sums
from hfdistill.intervals import Estimate, sums_difference, sums_estimate
from hfdistill.main_metric import MainMetric, main_metric
from hfdistill.metrics_dense import mean_iou
from hfdistill.metrics_generation import ROUGE
from hfdistill.metrics_text import perplexity

if TYPE_CHECKING:
    from hfdistill.score_sheet import ScoreSheet


class Number(Protocol):
    """A number that follows from sums over the examples."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it is made of."""
        ...

    def addends(self, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """What each example adds to the sums, `(examples, sums)`."""
        ...

    def __call__(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The number from the sums, `(..., sums)`; 0 of nothing."""
        ...


@dataclass(frozen=True)
class Ratio:
    """A number that is a sum over examples, divided by a sum over examples: F1 is 2 · right / (predicted + gold)."""

    above: tuple[str, ...]
    below: tuple[str, ...]
    factor: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of both sums."""
        return (*self.above, *self.below)

    def addends(self, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """What each example adds to both sums, `(examples, 2)`."""
        return np.stack([_sum([columns[name] for name in names]) for names in (self.above, self.below)], axis=1)

    def __call__(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The number from both sums, `(..., 2)`; 0 of nothing."""
        quotient = np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)
        return self.factor * quotient


@dataclass(frozen=True)
class RegionOverlap:
    """Mean over classes of intersection / union, each class summed over the examples; from `(examples, classes)`."""

    columns: tuple[str, str] = ("intersection", "union")

    def addends(self, columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Intersections, then unions, `(examples, 2 · classes)`."""
        return np.concatenate([columns[name] for name in self.columns], axis=1)

    def __call__(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over the classes with a union."""
        intersection, union = np.split(sums, 2, axis=-1)
        overlap: NDArray[np.float64] = mean_iou(intersection, union)
        return overlap


@dataclass(frozen=True)
class SumTask:
    """What the sheets of one task hold: metrics, the column that counts what was measured, what the data decides.

    `written` are further metrics of texts that the model has written; their columns are all there, or none.
    """

    ratios: Mapping[str, Number]
    counted: str = "tokens"
    given: tuple[str, ...] = ("tokens",)
    written: Mapping[str, Number] = field(default_factory=dict)

    @property
    def columns(self) -> set[str]:
        """The columns that a sheet must have."""
        return _columns(self.ratios)

    @property
    def per_class(self) -> set[str]:
        """The columns that have a value for each class of an example."""
        return _columns({name: each for name, each in self.ratios.items() if isinstance(each, RegionOverlap)})


def _columns(numbers: Mapping[str, Number]) -> set[str]:
    return {name for number in numbers.values() for name in number.columns}


_LOSS = Ratio(("loss_sum",), ("tokens",))
_ACCURACY = Ratio(("correct",), ("tokens",))
_LANGUAGE = SumTask({"loss": _LOSS, "accuracy": _ACCURACY})
_ERROR_RATES = {"wer": Ratio(("word_errors",), ("words",)), "cer": Ratio(("char_errors",), ("chars",))}

SUM_TASKS: dict[str, SumTask] = {
    "causal_lm": _LANGUAGE,
    "masked_lm": _LANGUAGE,
    "seq2seq_lm": SumTask(_LANGUAGE.ratios, written={name: Ratio((name,), ("texts",)) for name in ROUGE}),
    "speech_seq2seq": SumTask(
        {**_ERROR_RATES, "loss": _LOSS, "accuracy": _ACCURACY}, counted="words", given=("words", "chars", "tokens")
    ),
    "ctc": SumTask(
        {**_ERROR_RATES, "loss": Ratio(("loss_sum",), ("texts",))}, counted="words", given=("words", "chars", "texts")
    ),
    "semantic_segmentation": SumTask(
        {
            "mean_iou": RegionOverlap(),
            "pixel_accuracy": Ratio(("correct",), ("pixels",)),
            "loss": Ratio(("loss_sum",), ("pixels",)),
        },
        counted="pixels",
        given=("pixels",),
    ),
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

FOLLOWED = ("kl_sum", "agree", "compared")
DISPUTED = ("teacher_wrong_student_right", "teacher_right_student_wrong")
"""Columns about the teacher at temperature 1; the teacher's own sheet has none of them.

`compared` counts tokens, pixels or frames. A frame has no label of its own, so that `DISPUTED` may be missing there.
"""

PERPLEXED = ("causal_lm", "masked_lm", "seq2seq_lm")
"""The tasks whose loss is also given as perplexity."""


@dataclass(frozen=True)
class SumSheet:
    """Named sums in float64: the columns of the task, and those of `FOLLOWED` and `DISPUTED` beside a teacher.

    They are `(examples,)`, and `(examples, classes)` where a task counts class by class.
    """

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
    def counts(self) -> dict[str, int]:
        """What was measured and has a label, by its name; nothing where a question counts as a whole."""
        counted = self.task.counted
        return {} if counted == "questions" else {counted: int(self.columns[counted].sum())}

    @property
    def numbers(self) -> dict[str, Number]:
        """Each metric of the task whose columns are there."""
        measured = {**self.task.written, **self.task.ratios}
        return {name: each for name, each in measured.items() if self.columns.keys() >= set(each.columns)}

    @property
    def main_metric(self) -> MainMetric:
        """The task's, or the loss where the model has written no texts."""
        return main_metric(self.problem_type, self.numbers)

    def metrics(self) -> dict[str, float]:
        """All metrics of the task."""
        values = {name: float(each(each.addends(self.columns).sum(axis=0))) for name, each in self.numbers.items()}
        if self.problem_type in PERPLEXED:
            values["perplexity"] = perplexity(values["loss"])
        return values

    def main(self) -> Estimate:
        """By the bootstrap over examples."""
        number = self._main_number
        return sums_estimate(number.addends(self.columns), number)

    def gain_over(self, other: ScoreSheet) -> Estimate:
        """By the paired bootstrap over examples."""
        assert isinstance(other, SumSheet), "a run has one task"
        number, sign = self._main_number, self.main_metric.sign
        return sums_difference(number.addends(self.columns), number.addends(other.columns), number, sign)

    def fidelity_to(self, teacher: ScoreSheet) -> Fidelity | None:
        """From this sheet's own columns: the stage looked at the teacher token by token, or pixel by pixel."""
        if not set(FOLLOWED) <= self.columns.keys() or not self.columns["compared"].sum():
            return None
        told = [name for name in (*FOLLOWED, *DISPUTED) if name in self.columns]
        return fidelity_of_sums(**{name: float(self.columns[name].sum()) for name in told})

    def calibration(self) -> Calibration | None:
        """None: no probabilities are kept."""
        return None

    @property
    def _main_number(self) -> Number:
        return self.numbers[self.main_metric.key]

    def same_split(self, other: ScoreSheet) -> bool:
        """Whether what the data alone decides is the same for every example."""
        return (
            isinstance(other, SumSheet)
            and self.shape == other.shape
            and all(self.columns[name].shape == other.columns[name].shape for name in self.task.per_class)
            and all(np.array_equal(self.columns[name], other.columns[name]) for name in self.task.given)
        )


def check_sums(sheet: SumSheet) -> None:
    """Refuse a sheet that cannot be measured.

    Errors: HfDistillError for missing columns, shapes that do not fit, values that are not finite, and a split without
    anything to measure against.
    """
    task = sheet.task
    written = _columns(task.written)
    missing = sorted((task.columns | (written if written & sheet.columns.keys() else set())) - sheet.columns.keys())
    if missing:
        raise HfDistillError(f"got the columns {', '.join(sorted(sheet.columns))}, expected also {', '.join(missing)}")
    _check_per_class(sheet)
    for name, column in sheet.columns.items():
        if name not in task.per_class and (column.ndim != 1 or column.shape != sheet.shape):
            raise HfDistillError(f"got {name} of shape {column.shape}, expected a value for each of {sheet.shape}")
        if not np.isfinite(column).all():
            raise HfDistillError(f"got values in {name} that are not finite, expected sums; did the training diverge?")
    for name in (task.counted, "texts"):
        if name in sheet.columns and not sheet.columns[name].sum():
            raise HfDistillError(f"got no {name} with a label, expected some; evaluate on a labelled split")


def _check_per_class(sheet: SumSheet) -> None:
    names = sorted(sheet.task.per_class)
    shapes = [sheet.columns[name].shape for name in names]
    if any(len(shape) != 2 or shape[:1] != sheet.shape or shape != shapes[0] for shape in shapes):
        raise HfDistillError(
            f"got the shapes {' and '.join(map(str, shapes))}, expected a value for each class of each of "
            f"{sheet.shape}, of the same classes in {' and '.join(names)}"
        )


def _sum(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum(columns, axis=0)
    return total
