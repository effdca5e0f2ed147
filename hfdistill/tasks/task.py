"""What a row of the table of tasks says about a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hfdistill.errors import HfDistillError
from hfdistill.rows import BatchRows
from hfdistill.tasks.layouts import EXAMPLES, ModelLayout
from hfdistill.tasks.queries import Queries

if TYPE_CHECKING:
    from hfdistill.tasks.layouts import Layout

LabelLoss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


class Classes(Enum):
    """What the last axis of a head's logits counts, which decides how two heads are matched."""

    NAMED = "classes with the names of config.id2label"
    VOCABULARY = "tokens of a vocabulary"
    PLACES = "places in the input, such as tokens or choices, the same for both models"
    VALUES = "real numbers"
    COORDINATES = "coordinates of an embedding, of any width that the loss allows"


@dataclass(frozen=True)
class Task:
    """One kind of head: one row of `TASKS`.

    `default_loss` is the divergence that fits the head's outputs. `label_loss(logits, labels, label_smoothing)` gives
    one value a row, in nats or squared units; None where only the model itself can compute it (detection): its mean
    over the batch is then taken for each example. `layout` says which outputs are logits and how they fall into rows.
    `auto_classes` are the names of the Transformers auto classes that load such heads. `labelled` is False where there
    is nothing but a teacher to learn from. `predictions` are the outputs that evaluation keeps, all of them by default;
    `logits` there stands for what the layout reads. `unread` begins the names of parameters without a say in the
    logits, which may be untrained. `compared` is how many classes, from the first one on, a divergence compares, where
    the rest of the student's head is padding that stands for nothing; None: all. `known` are the places of the classes
    that a teacher knows, where it does not know all.
    """

    name: str
    default_loss: Callable[..., torch.Tensor]
    label_loss: LabelLoss | None
    layout: Layout = EXAMPLES
    label_names: tuple[str, ...] = ("labels",)
    integer_labels: bool = True
    classes: Classes = Classes.NAMED
    auto_classes: tuple[str, ...] = ()
    labelled: bool = True
    predictions: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    compared: int | None = None
    known: tuple[int, ...] | None = None

    @property
    def loss_inside(self) -> bool:
        """Whether the model has to be given the labels, because only it can compute the loss against them."""
        return self.label_loss is None and self.labelled

    @property
    def fields(self) -> tuple[str, ...]:
        """The teacher's outputs that the task needs beside its logits."""
        return self.layout.fields if isinstance(self.layout, Queries) else ()

    def bound(self, student: nn.Module) -> Task:
        """The row with what it has to know of the student, such as how many frames it makes of a sound."""
        return self.layout.bound(student, self) if isinstance(self.layout, ModelLayout) else self

    def matched(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """The teacher's logits at the places of the student's: the same pixels, the same frames."""
        return self.layout.matched(teacher, student) if isinstance(self.layout, ModelLayout) else teacher

    def rows(self, inputs: Mapping[str, Any]) -> BatchRows:
        """Rows of a micro-batch, from its inputs alone; errors name the labels that do not fit."""
        return self.layout.rows(inputs, self)

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """A model's logits with the classes on the last axis; rows come first."""
        return self.layout.logits(outputs, inputs)

    def label_values(
        self, logits: torch.Tensor, rows: BatchRows, label_smoothing: float, model_loss: torch.Tensor | None
    ) -> torch.Tensor:
        """One value for each row of `rows.labelled`."""
        if self.label_loss is None:
            if model_loss is None:
                raise HfDistillError(
                    f"The student gave no loss for {self.name}, and only the model itself can compute it; expected "
                    f"{' and '.join(self.label_names)} in the batch in the form that the model reads."
                )
            return model_loss.expand(len(rows.labelled))
        if rows.labels is None:
            raise HfDistillError("A batch without labels came to TaskLoss.")
        return self.label_loss(self.layout.label_logits(logits, rows), rows.labels, label_smoothing)
