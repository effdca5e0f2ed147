"""An ensemble of teachers brought together with a student: loaded, each checked against it, all of one view."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from hfdistill import vocabulary
from hfdistill.arguments import AnyTeacher, processing_class_of, teacher_module
from hfdistill.config import DistillationConfig
from hfdistill.errors import HfDistillError, nearest
from hfdistill.features import FeatureTerm
from hfdistill.objective import Objective
from hfdistill.pairing import Pairing, paired, view_differences
from hfdistill.tasks import Task
from hfdistill.teachers import EnsembleTeacher, LiveEnsemble, LiveMember, LiveTeacher, MappedTeacher
from hfdistill.teachers.division import is_whole
from hfdistill.teachers.ensemble import check_task
from hfdistill.views import Views

Prepare = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Member:
    """One teacher of several: the module, the name it was loaded by, and the mapping of its classes, if it has one."""

    place: int
    module: nn.Module
    name: str | None
    mapping: MappedTeacher | None

    @property
    def who(self) -> str:
        """How it is called in messages."""
        return _called(self.place, self.name or type(self.module).__name__)


@dataclass(frozen=True)
class Gathered:
    """An ensemble whose members are in memory."""

    description: EnsembleTeacher
    members: tuple[Member, ...]

    def processing_classes(self, given: Any, like: Any) -> list[Any]:
        """What each member's view is made by: what was given for all, or its own, of the same kind as `like`."""
        if given is not None:
            return [given] * len(self.members)
        return [processing_class_of(member.module, member.name, like, None) for member in self.members]

    @property
    def first(self) -> tuple[nn.Module, str | None]:
        """The module that stands for all where one is looked at, and the name of all."""
        return self.members[0].module, self.name

    @property
    def name(self) -> str | None:
        """The names of those that have one, as a model card tells them."""
        names = dict.fromkeys(member.name for member in self.members if member.name is not None)
        return ", ".join(names) or None


@dataclass(frozen=True)
class Pupil:
    """What an ensemble has to know of the student.

    `row` is the task as the table has it, `task` the same bound to the student; `processing_class` is the student's.
    """

    model: nn.Module
    row: Task
    task: Task
    objective: Objective
    processing_class: Any
    label_names: Sequence[str]
    device: torch.device


class EnsembleViews(Views):
    """Splits a batch for a student and several teachers, each of which takes its own view of the whole batch."""

    def __init__(self, pupil: Pupil, members: Sequence[Member], by: str | None) -> None:
        super().__init__(pupil.model, members[0].module, pupil.label_names, pupil.task)
        self.members = [Views(pupil.model, each.module, pupil.label_names, pupil.task) for each in members]
        own = [*self.student_names, *(name for each in self.members for name in each.teacher_names)]
        if by in own:
            raise HfDistillError(
                f"by={by!r} names an input of a model, and the column that tells which member teaches an example is "
                "none; give it another name."
            )
        self.beside = () if by is None else (by,)
        for each in self.members:
            each.beside = self.beside

    @property
    def columns(self) -> list[str]:
        """Every column that a model may read, and the one that the batch is divided by."""
        return list(dict.fromkeys([*super().columns, *(name for each in self.members for name in each.columns)]))

    def teacher(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The whole batch: the members take of it what is theirs."""
        return dict(batch)

    def read_by_teacher(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What any member's forward is given."""
        return {key: value for each in self.members for key, value in each.teacher(batch).items()}


def gathered(
    ensemble: AnyTeacher, args: DistillationConfig, objective: Objective | None, task: Task | None
) -> Gathered | None:
    """The members, loaded where they are names; None for another teacher, and where the objective needs none.

    Errors: HfDistillError, with place and name of the member that cannot be had.
    """
    if not isinstance(ensemble, EnsembleTeacher) or (objective is not None and not objective.needs_teacher):
        return None
    if args.teacher_model_revision is not None:
        raise HfDistillError(
            f"teacher_model_revision={args.teacher_model_revision!r} came beside an EnsembleTeacher, whose members "
            "have revisions of their own; expected modules, loaded with from_pretrained(..., revision=...)."
        )
    members = []
    for place, given in enumerate(ensemble.members):
        if isinstance(given, MappedTeacher) and given.unmapped == "ignore":
            raise HfDistillError(
                f"members[{place}] of an EnsembleTeacher ignores classes (unmapped='ignore'), and all members are "
                "mixed over the same ones; expected such a teacher alone."
            )
        model = given.model if isinstance(given, MappedTeacher) else given
        with _about(_called(place, model if isinstance(model, str) else type(model).__name__)):
            module, name = teacher_module(given, args, objective, task)
        assert module is not None, "a member is a module or the name of one"
        members.append(Member(place, module, name, given if isinstance(given, MappedTeacher) else None))
    return Gathered(ensemble, tuple(members))


def bound(
    ensemble: Gathered, pupil: Pupil, processing_classes: Sequence[Any], example: Mapping[str, Any], prepare: Prepare
) -> tuple[LiveEnsemble, EnsembleViews]:
    """The ensemble as it teaches a student, and how both read a batch.

    `processing_classes` are the members', `example` is the first of the data set, and `prepare` brings a module to its
    device. The task with what is compared of it is that of the ensemble. Errors: HfDistillError for a member that does
    not fit the student, and for members that do not fit each other.
    """
    description, members = ensemble.description, ensemble.members
    check_task(description, pupil.task)
    _check_terms(pupil.objective)
    _check_views(members, processing_classes, pupil.task)
    if description.by is not None and example:
        _check_column(description.by, example)
    pairings = []
    for member, processing_class in zip(members, processing_classes, strict=True):
        both = (pupil.processing_class, processing_class)
        with _about(member.who):
            pairings.append(
                paired(
                    pupil.model,
                    member.module,
                    pupil.row,
                    pupil.task,
                    pupil.objective,
                    both,
                    pupil.device,
                    member.mapping,
                )
            )
    task, same = _of_one_width(pupil.task, members, pairings)
    views = EnsembleViews(pupil, members, description.by)
    live = []
    for member, view, pairing in zip(members, views.members, same, strict=True):
        view.translate = pairing.tokens.translation(task)
        teacher = LiveTeacher(prepare(member.module), pairing.columns, pairing.read)
        live.append(LiveMember(member.who, teacher, view.teacher))
    return LiveEnsemble(live, description, task), views


def _of_one_width(task: Task, members: Sequence[Member], pairings: Sequence[Pairing]) -> tuple[Task, Sequence[Pairing]]:
    """The task with the number of tokens that all members are compared over, and each read up to there.

    A member whose head agrees with the student's is compared over all of it, padding included; others are not.
    """
    compared = zip(members, (pairing.task.compared for pairing in pairings), strict=True)
    widths = {width: member for member, width in compared if width is not None}
    if not widths:
        return task, pairings
    if len(widths) > 1:
        shown = " and ".join(f"{member.who} over {width}" for width, member in widths.items())
        raise HfDistillError(
            f"The members of an ensemble are compared with the student over different numbers of tokens: {shown}; "
            "expected one vocabulary in all of them. Pass teacher_processing_class, if they share a tokenizer."
        )
    (width,) = widths
    same = [
        pairing if pairing.task.compared else replace(pairing, read=vocabulary.AlignedLogits(task.logits, range(width)))
        for pairing in pairings
    ]
    return replace(task, compared=width), same


def _check_terms(objective: Objective) -> None:
    for term in objective.active:
        if term.fields or isinstance(term, FeatureTerm):
            raise HfDistillError(
                f"{term!r} came beside an EnsembleTeacher; it compares the student with the insides of one teacher, "
                "and those of several have no mean. Expected terms on logits, or a single teacher."
            )


def _check_views(members: Sequence[Member], processing_classes: Sequence[Any], task: Task) -> None:
    """Refuse members that read something else than the first: there is one view for all teachers."""
    first, *others = members
    for other, processing_class in zip(others, processing_classes[1:], strict=True):
        both = (processing_classes[0], processing_class)
        differences = view_differences(first.module, other.module, task, both)
        if differences:
            raise HfDistillError(
                f"{first.who} and {other.who} read different inputs ({'; '.join(differences)}), and an ensemble has "
                "one view for all its teachers; expected members that read the same. If they do, pass "
                "teacher_processing_class, which is then that of all."
            )


def _check_column(column: str, example: Mapping[str, Any]) -> None:
    if column not in example:
        raise HfDistillError(
            f"by={column!r} names no column of the train_dataset{nearest(column, example)} It has "
            f"{', '.join(example)}; expected one with the number of the member that teaches the example."
        )
    value = example[column]
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if isinstance(value, torch.Tensor):
        whole = value.dim() == 0 and is_whole(value)
    if not whole:
        raise HfDistillError(
            f"The column {column!r} that EnsembleTeacher(by=...) names holds {value!r}; expected the number of a "
            f"member, from 0. Names become numbers, in their order, by dataset.class_encode_column({column!r})."
        )


def _called(place: int, name: str) -> str:
    return f"members[{place}] ({name})"


@contextmanager
def _about(who: str) -> Iterator[None]:
    """Say of whom an error speaks."""
    try:
        yield
    except HfDistillError as error:
        raise HfDistillError(f"{who}: {error}") from error
