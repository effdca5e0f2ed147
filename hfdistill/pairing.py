"""How a student reads its teacher: both checked, and their classes, queries or tokens brought in line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hfdistill import contract, vocabulary
from hfdistill.errors import HfDistillError
from hfdistill.knowledge import Logits, TaskLoss
from hfdistill.losses import bernoulli_kl
from hfdistill.objective import Objective
from hfdistill.tasks import Classes, Queries, Task, TeacherLogits, TwoHeads
from hfdistill.teachers import MappedLogits, MappedTeacher, ZeroShotTeacher
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
    mapping: MappedTeacher | None = None,
    learning: bool = False,
) -> Pairing:
    """Check two models against each other and say how the teacher is read.

    `row` is the task as the table has it, `task` the same bound to the student; `processing_classes` are the student's
    and the teacher's; `mapping` is what the teacher came as, where its classes are mapped; a teacher that is `learning`
    beside the student need not be trained. Errors: HfDistillError, each with its remedy, for models that do not fit
    together.
    """
    contract.check_distinct(student, teacher)
    if not learning:
        contract.check_trained(teacher, unread=task.unread)
    contract.check_same_problem(student, teacher)
    objective.check_models(contract.bare(student), contract.bare(teacher), task)
    mapped = None
    if mapping is not None:
        mapped, task = _mapped(student, teacher, task, mapping, objective)
    if isinstance(teacher, ZeroShotTeacher):
        teacher.bind(contract.class_names(student), task, device)
    columns = _class_columns(student, teacher) if task.classes is Classes.NAMED and mapping is None else None
    if isinstance(task.layout, Queries):
        theirs = row.bound(contract.bare(teacher)).layout
        if isinstance(theirs, Queries):
            return Pairing(task, TeacherLogits(task.layout, theirs, columns))
    tokens = vocabulary.aligned_tokens(row, student, teacher, *processing_classes)
    if tokens.columns is None:
        return Pairing(task, mapped or task.logits, columns, tokens)
    vocabulary.check_losses(objective, tokens)
    read = vocabulary.AlignedLogits(task.logits, tokens.columns)
    return Pairing(replace(task, compared=tokens.compared), read, columns, tokens)


def view_differences(
    student: nn.Module, teacher: nn.Module, task: Task, processing_classes: Sequence[Any]
) -> list[str]:
    """What speaks against feeding two models the same tensors; `processing_classes` are those of both, where known."""
    if vocabulary.reads_tokens(task):
        return contract.input_differences(student, teacher, vocabulary=False)
    own, other = processing_classes
    if own is not None and other is not None:
        return contract.processing_differences(own, other)
    return contract.input_differences(student, teacher)


def with_heads(task: Task, objective: Objective) -> Task:
    """The task of a student with two heads, told which of them learns from what; any other passes through.

    A term on logits teaches the distillation head, and the labels are left to the class head; without one both heads
    learn from the labels. Errors: HfDistillError where a teacher comes and no labels count, since the class head would
    learn nothing.
    """
    if not isinstance(task.layout, TwoHeads):
        return task
    taught = any(isinstance(term, Logits) for term in objective.active)
    if taught and not any(isinstance(term, TaskLoss) and term.weight != 0 for term in objective.terms):
        raise HfDistillError(
            f"{objective!r} came for {task.name}, whose class head learns from labels alone and would learn nothing, "
            "while predictions are the mean of both heads; expected labels to count. Set alpha below 1 (DeiT: 0.5), "
            "put a TaskLoss into the objective, or take a student with one head."
        )
    return replace(task, layout=replace(task.layout, taught=taught))


def _mapped(
    student: nn.Module, teacher: nn.Module, task: Task, mapping: MappedTeacher, objective: Objective
) -> tuple[MappedLogits, Task]:
    """How the teacher is read at the student's classes, and the task with those of them that it knows."""
    if task.classes is not Classes.NAMED or isinstance(task.layout, Queries):
        raise HfDistillError(
            f"A MappedTeacher came for {task.name}, and it maps classes that have names; expected a task that sorts "
            "into such, as classifiers and taggers do."
        )
    if isinstance(teacher, ZeroShotTeacher):
        raise HfDistillError(
            "A ZeroShotTeacher came as MappedTeacher; it is asked by the student's own classes. Give it their words "
            "instead: ZeroShotTeacher(..., classes={'student name': 'words'})."
        )
    sigmoid = task.default_loss is bernoulli_kl
    names = contract.class_names(student), contract.class_names(teacher)
    ignored = mapping.unmapped == "ignore"
    groups = contract.mapped_classes(*names, mapping.classes, overlapping=sigmoid, ignored=ignored)
    known = tuple(place for place, group in enumerate(groups) if group)
    if len(known) < len(groups):
        labelled = [term for term in objective.active if isinstance(term, Logits) and term.needs_labels]
        if labelled:
            raise HfDistillError(
                f"{labelled[0]!r} needs the label of each row among the compared classes, and the teacher does not "
                "know all of them (unmapped='ignore'); expected a loss without labels, such as forward_kl."
            )
        task = replace(task, known=known)
    return MappedLogits(task.logits, [group for group in groups if group], sigmoid), task


def _class_columns(student: nn.Module, teacher: nn.Module) -> torch.Tensor | None:
    alignment = contract.aligned_classes(contract.class_names(student), contract.class_names(teacher))
    if alignment.notice:
        logger.warning("Classes: %s.", alignment.notice)
    return alignment.tensor()
