"""Classifiers with two heads over the same classes: one learns from labels, the other from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hfdistill.errors import HfDistillError
from hfdistill.rows import BatchRows, Rows
from hfdistill.tasks.layouts import Examples, first_tensor, output_field

if TYPE_CHECKING:
    from hfdistill.tasks.task import Task

TWO_HEADED = ("DeiTForImageClassificationWithTeacher", "LevitForImageClassificationWithTeacher")
"""Architectures of Transformers that give the logits of both heads beside their mean."""


@dataclass(frozen=True)
class TwoHeads(Examples):
    """Two distributions an example: the class head's and the distillation head's, `(examples, 2, classes)`.

    `heads` name the two outputs; a prediction is their mean, which is what such models give as `logits`. With `taught`
    the labels are for the class head and the teacher is for the distillation head, one row an example each. Without,
    nothing but labels teaches, and both heads learn from these, a row for each head: a head left alone would spoil the
    mean. A teacher may have one head, or two, of which the mean teaches.
    Source: Touvron et al. (DeiT), arXiv 2012.12877, section 4; two heads on labels alone are its own baseline there.
    """

    heads: tuple[str, str] = ("cls_logits", "distillation_logits")
    taught: bool = False

    def bound(self, model: nn.Module, task: Task) -> Task:
        """As it is: what the objective holds says which head learns from what, and not the model."""
        return task

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """A row for each head: places 0, 2, ... are the class head's, 1, 3, ... the distillation head's."""
        examples = super().rows(inputs, task)
        size, valid, labels = 2 * examples.every.size, examples.labelled.valid, examples.labels
        places = torch.arange(size, device=first_tensor(inputs).device)
        distilled = Rows(size, index=places[1::2])
        if self.taught:
            return BatchRows(distilled, Rows(size, valid, places[::2]), labels)
        assert valid is not None, "examples are masked"
        both = Rows(size, valid.repeat_interleave(2))
        return BatchRows(distilled, both, None if labels is None else labels.repeat_interleave(2, dim=0))

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Those of both heads, `(examples, 2, classes)`; of a model with one head, as they come."""
        if not isinstance(outputs, Mapping) or any(name not in outputs for name in self.heads):
            return super().logits(outputs, inputs)
        return torch.stack([output_field(outputs, name) for name in self.heads], dim=1)

    def matched(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """The teacher's prediction at the place of each of the student's heads."""
        self._check(student)
        return self.prediction(teacher).unsqueeze(1).expand(-1, 2, -1)

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """Those of the class head, or of both heads where there is no teacher."""
        self._check(logits)
        return rows.labelled(logits)

    def prediction(self, logits: torch.Tensor) -> torch.Tensor:
        """The mean of both heads, `(examples, classes)`; one head's logits pass through."""
        return logits.mean(1) if logits.dim() == 3 else logits

    def _check(self, logits: torch.Tensor) -> None:
        if logits.dim() != 3 or logits.shape[1] != 2:
            raise HfDistillError(
                f"A student with two heads was expected, and it gave one tensor of logits of shape "
                f"{tuple(logits.shape)}; expected a mapping with {' and '.join(self.heads)}, (examples, classes) each. "
                "For a student with one head leave task out."
            )
