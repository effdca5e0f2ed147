"""The splits as each stage reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hfdistill.data.changes import Changes
from hfdistill.data.examples import STUDENT, TEACHER, Examples, Source
from hfdistill.data.images import MEMORY, ImageView, Progress, image_source
from hfdistill.data.splits import IMAGE, Split, TaskData
from hfdistill.data.texts import TextView, text_source

View = ImageView | TextView


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
        return examples if every else examples.among(self.data.labelled)

    def student_train(self) -> Examples:
        """What the student is distilled on: every row, labelled or not, seen by both."""
        return self._train(self.data.masked_labels(), self._views())

    def control_train(self) -> Examples:
        """What a student without a teacher can learn from: the labelled rows."""
        return self._train(self.data.masked_labels(), {"": self._own(STUDENT)}).among(self.data.labelled)

    def evaluation(self, split: str, role: str) -> Examples:
        """The rows of "validation" or "test" as one model sees them; with `role` "both" as both do."""
        source, part = {"validation": (self.validation, self.data.validation), "test": (self.test, self.data.test)}[
            split
        ]
        views = self._views() if role == "both" else {"": self._own(role)}
        return Examples(source, part.labels, views, torch.arange(len(part)))

    def _train(self, labels: torch.Tensor, views: Mapping[str, str]) -> Examples:
        kinds = tuple(self.data.section.augment)
        rows = torch.arange(len(self.data.train))
        return Examples(self.train, labels, views, rows, Changes(kinds) if kinds else None)

    def _own(self, role: str) -> str:
        return STUDENT if self.shared else role

    def _views(self) -> dict[str, str]:
        return {"": STUDENT} if self.shared else {"": STUDENT, "teacher_": TEACHER}


def prepare(data: TaskData, student: View, teacher: View | None, bar: Progress) -> PreparedData:
    """Process the inputs for a student and, where its view differs (`teacher` is not None), for the teacher."""
    views: dict[str, Any] = {STUDENT: student} if teacher is None else {STUDENT: student, TEACHER: teacher}
    total = len(data.train) + len(data.validation) + len(data.test)

    def source(split: Split, augment: tuple[str, ...]) -> Source:
        if data.kind == IMAGE:
            budget = MEMORY * len(split) // total
            return image_source(split.dataset, data.columns[0], views, budget, augment, bar)
        return text_source(split.dataset, data.columns, views, bar)

    train = source(data.train, tuple(data.section.augment))
    validation = source(data.validation, ())
    test = validation if data.test is data.validation else source(data.test, ())
    return PreparedData(data, train, validation, test, teacher is None)
