"""How a student reads its teacher: both checked, and their classes, queries or tokens brought in line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hfdistill import contract, vocabulary
from hfdistill.objective import Objective
from hfdistill.tasks import Classes, Queries, Task, TeacherLogits
from hfdistill.teachers import ZeroShotTeacher
from hfdistill.teachers.live import Read

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairing:
    """What the two models have in common.

    `task` is the student's, with what is compared of it; `columns` order the teacher's classes as the student's; `read`
    takes the teacher's logits from its outputs; `tokens` is the alignment of two vocabularies.
    """

    task: Task
    read: Read
    columns: torch.Tensor | None = None
    tokens: vocabulary.VocabularyAlignment = field(default_factory=vocabulary.VocabularyAlignment)


def paired(
    student: nn.Module,
    teacher: nn.Module,
    row: Task,
    task: Task,
    objective: Objective,
    processing_classes: Sequence[Any],
    device: torch.device,
) -> Pairing:
    """Check two models against each other and say how the teacher is read.

    `row` is the task as the table has it, `task` the same bound to the student; `processing_classes` are the student's
    and the teacher's. Errors: HfDistillError, each with its remedy, for models that do not fit together.
    """
    contract.check_distinct(student, teacher)
    contract.check_trained(teacher, unread=task.unread)
    contract.check_same_problem(student, teacher)
    objective.check_models(contract.bare(student), contract.bare(teacher), task)
    if isinstance(teacher, ZeroShotTeacher):
        teacher.bind(contract.class_names(student), task, device)
    columns = _class_columns(student, teacher) if task.classes is Classes.NAMED else None
    if isinstance(task.layout, Queries):
        theirs = row.bound(contract.bare(teacher)).layout
        if isinstance(theirs, Queries):
            return Pairing(task, TeacherLogits(task.layout, theirs, columns))
    tokens = vocabulary.aligned_tokens(row, student, teacher, *processing_classes)
    if tokens.columns is None:
        return Pairing(task, task.logits, columns, tokens)
    vocabulary.check_losses(objective, tokens)
    read = vocabulary.AlignedLogits(task.logits, tokens.columns)
    return Pairing(replace(task, compared=tokens.compared), read, columns, tokens)


def _class_columns(student: nn.Module, teacher: nn.Module) -> torch.Tensor | None:
    alignment = contract.aligned_classes(contract.class_names(student), contract.class_names(teacher))
    if alignment.notice:
        logger.warning("Classes: %s.", alignment.notice)
    return alignment.tensor()
