"""The splits as each stage reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from hfdistill.data.changes import Changes
from hfdistill.data.examples import STUDENT, TEACHER, Examples, Progress, Source
from hfdistill.data.images import MEMORY
from hfdistill.data.kind import SourceRequest, View
from hfdistill.data.splits import Split, TaskData

BESIDE = "teacher_"
"""Begins the names of the teacher's inputs in a batch of both."""


@dataclass(frozen=True)
class PreparedData:
    """Examples for each role. A teacher that reads as the student does shares its view, and nothing is made twice."""

    data: TaskData
    train: Source
    validation: Source
    test: Source
    shared: bool

    def teacher_train(self) -> Examples:
        """What the teacher is fine-tuned on: its view, and the labels that it may use."""
        every = self.data.section.teacher_labels == "all"
        labels = self.data.train.labels if every else self.data.masked_labels()
        examples = self._train(labels, {"": self._own(TEACHER)})
        return examples if every else self._labelled(examples)

    def student_train(self) -> Examples:
        """What the student is distilled on: every row, labelled or not, seen by both."""
        views = self._views()
        if self.data.section.teacher_sees == "same":
            return self._train(self.data.masked_labels(), views)
        views.setdefault(BESIDE, self._own(TEACHER))
        return replace(self._train(self.data.masked_labels(), views), unchanged=(BESIDE,))

    def control_train(self) -> Examples:
        """What a student without a teacher can learn from: the labelled rows."""
        return self._labelled(self._train(self.data.masked_labels(), {"": self._own(STUDENT)}))

    def evaluation(self, split: str, role: str) -> Examples:
        """The rows of "validation" or "test" as one model sees them; with `role` "both" as both do."""
        source, part = {"validation": (self.validation, self.data.validation), "test": (self.test, self.data.test)}[
            split
        ]
        views = self._views() if role == "both" else {"": self._own(role)}
        return Examples(source, self.data.kind.of_rows(source, part.labels), views, torch.arange(len(source)))

    def _train(self, labels: torch.Tensor, views: Mapping[str, str]) -> Examples:
        changes = self.data.section.augment or self.data.kind.drawn
        return Examples(
            self.train,
            self.data.kind.of_rows(self.train, labels),
            views,
            torch.arange(len(self.train)),
            Changes(tuple(self.data.section.augment)) if changes else None,
        )

    def _labelled(self, examples: Examples) -> Examples:
        """Only rows with a label."""
        labelled = self.data.kind.of_rows(self.train, self.data.labelled)
        return examples if labelled is None or bool(labelled.all()) else examples.among(labelled)

    def _own(self, role: str) -> str:
        return STUDENT if self.shared else role

    def _views(self) -> dict[str, str]:
        return {"": STUDENT} if self.shared else {"": STUDENT, BESIDE: TEACHER}


def prepare(data: TaskData, student: View, teacher: View | None, bar: Progress) -> PreparedData:
    """Process the inputs for a student and, where its view differs (`teacher` is not None), for the teacher."""
    views = {STUDENT: student} if teacher is None else {STUDENT: student, TEACHER: teacher}
    total = len(data.train) + len(data.validation) + len(data.test)

    def source(split: Split, name: str, augment: Sequence[str] = ()) -> Source:
        budget = MEMORY * len(split) // total
        return data.kind.source(SourceRequest(split.dataset, name, views, budget, bar, augment))

    train = source(data.train, "train", data.section.augment)
    validation = source(data.validation, "validation")
    test = validation if data.test is data.validation else source(data.test, "test")
    return PreparedData(data, train, validation, test, teacher is None)
