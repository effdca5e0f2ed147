"""An exam: one model before one split of the data, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from hfdistill.config import DistillationConfig
from hfdistill.data import STUDENT, TEACHER, Examples, LabelSpace, PreparedData
from hfdistill.data.examples import Progress
from hfdistill.stages.models import Model


class Outcome(Protocol):
    """What a model gives on a split, as it is kept and measured."""

    def tensors(self) -> dict[str, Tensor]:
        """What is written to the stage's folder."""
        ...

    def metrics(self, space: LabelSpace) -> dict[str, float]:
        """The task's metrics and the mean loss against the labels."""
        ...


def without_bar(items: Sequence[Any], title: str) -> Iterator[Any]:
    """The items, and nothing shown."""
    return iter(items)


@dataclass(frozen=True)
class Exam:
    """A model, the split it is asked about, and its teacher, unless it is the teacher itself.

    `writes` says whether a model that can write texts does so, which takes most of the time; else it is scored on the
    given ones alone. `processors` are the model's and the teacher's: where their vocabularies differ, they tell which
    tokens are the same.
    """

    model: Model
    teacher: Model | None
    prepared: PreparedData
    split: str
    config: DistillationConfig
    bar: Progress = without_bar
    writes: bool = True
    processors: tuple[Any, Any] = (None, None)

    @property
    def space(self) -> LabelSpace:
        """Kind of problem and classes."""
        return self.prepared.data.space

    def own_examples(self) -> Examples:
        """The split as the model sees it."""
        return self.prepared.evaluation(self.split, TEACHER if self.teacher is None else STUDENT)

    def shared_examples(self) -> Examples:
        """The split as model and teacher each see it."""
        return self.prepared.evaluation(self.split, TEACHER if self.teacher is None else "both")
