"""Checks of a recipe before a long run: do the two models fit together, does the teacher know, do the terms pull?"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfdistill import contract
from hfdistill.data import STUDENT, TEACHER, whole_batch
from hfdistill.data.labels import SINGLE
from hfdistill.data.objects import TASK as DETECTION
from hfdistill.data.regions import TASK as SEGMENTATION
from hfdistill.data.windows import Windows
from hfdistill.errors import HfDistillError
from hfdistill.objective import Objective
from hfdistill.schedules import is_used
from hfdistill.stages import models
from hfdistill.stages.exam import Exam
from hfdistill.stages.exams import outcome_of
from hfdistill.stages.run import Run
from hfdistill.stages.settings import STUDENT as STUDENT_STAGE
from hfdistill.stages.settings import stage_settings
from hfdistill.stages.several import SeveralTeachers
from hfdistill.teachers import ZeroShotTeacher
from hfdistill.trainer import DistillationTrainer
from hfdistill.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from rich.table import Table

    from hfdistill.recipe import Recipe
    from hfdistill.stages import Reporter

GOOD, NOTE, BAD = "good", "note", "bad"
TRAIN_ROWS, EVALUATION_ROWS = 512, 256
"""Rows that are looked at: enough to tell a teacher from chance."""
ESSENTIAL = ("data", "teacher", "student", "classes", "objective")
"""Without these there is nothing to look at further."""
SEES = 0.01
"""A mean average precision that a detector does not reach by chance."""
UNEVEN = 100.0
"""A term whose gradient is so many times another's drowns it."""


@dataclass(frozen=True)
class Check:
    """One thing looked at: `state` is good, note (worth knowing) or bad (the run would fail or be worthless)."""

    name: str
    state: str
    finding: str


@dataclass(frozen=True)
class Diagnosis:
    """All checks of a recipe."""

    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether no check is bad."""
        return all(check.state != BAD for check in self.checks)

    def table(self) -> Table:
        """The checks for the terminal."""
        from rich.table import Table
        from rich.text import Text

        colours = {GOOD: "green", NOTE: "yellow", BAD: "red"}
        table = Table("check", "", "finding", show_lines=True)
        for check in self.checks:
            table.add_row(check.name, Text(check.state, style=colours[check.state]), Text(check.finding))
        return table


def diagnose(recipe: Recipe, reporter: Reporter) -> Diagnosis:
    """Look at data, models, objective and one batch of a recipe; nothing is trained and nothing is kept.

    What is wrong becomes a bad check with its remedy; only the checks that build on it are left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        return Diagnosis(tuple(Doctor(_smaller(recipe), Path(folder), reporter).checks()))


def _smaller(recipe: Recipe) -> Recipe:
    section = recipe.data
    rows = max(TRAIN_ROWS, 2 * (section.labelled or 0))
    fewer = replace(
        section,
        max_train_samples=min(rows, section.max_train_samples or rows),
        max_eval_samples=min(EVALUATION_ROWS, section.max_eval_samples or EVALUATION_ROWS),
    )
    return replace(recipe, data=fewer)


class Doctor:
    """Goes through the checks in the order in which they build on each other."""

    def __init__(self, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        self.recipe = recipe
        self.run = Run(recipe, folder, reporter)
        self.settings = stage_settings(recipe, STUDENT_STAGE, recipe.seeds[0])
        self.folder = folder
        self.done: list[Check] = []

    def checks(self) -> list[Check]:
        """All checks, up to the first bad one that the rest needs."""
        self._needed("data", self._data)
        if self.recipe.teacher.beside:
            return self._checks_beside()
        self._needed("teacher", self._teacher)
        self._needed("student", self._student)
        self._needed("classes", self._classes)
        self._needed("objective", self._objective)
        self._needed("inputs", self._inputs)
        self._needed("teacher's knowledge", self._knowledge)
        self._needed("one batch", self._batch)
        return self.done

    def _checks_beside(self) -> list[Check]:
        """Those that a teacher which learns beside the student allows: it knows nothing yet."""
        self._needed("teacher", lambda: (NOTE, f"{models.summary(self.recipe, 'teacher')}; it has learnt nothing yet"))
        self._needed("student", self._student_alone)
        self._needed("objective", lambda: (GOOD, repr(self._made().distillation_objective)))
        self._needed("inputs", self._inputs)
        return self.done

    def _needed(self, name: str, look: Callable[[], tuple[str, str]]) -> None:
        if any(check.state == BAD and check.name in ESSENTIAL for check in self.done):
            return
        try:
            state, finding = look()
        except HfDistillError as error:
            state, finding = BAD, str(error)
        self.done.append(Check(name, state, finding))

    # ---- one method a check: its state and what was found --------------------------------------------------------

    def _data(self) -> tuple[str, str]:
        data = self.run.data
        names = ", ".join(data.space.names[:6]) + (", ..." if len(data.space.names) > 6 else "")
        rows = f"{len(data.train)} + {len(data.validation)} + {len(data.test)} rows looked at"
        over = f" over {names}" if names else ""
        finding = f"{data.kind.name} in {', '.join(data.kind.columns)}; {data.space.problem_type}{over}; {rows}"
        return (NOTE, f"{finding}. {'; '.join(data.notices)}") if data.notices else (GOOD, finding)

    def _teacher(self) -> tuple[str, str]:
        self.teacher = self._original()
        finding = f"{models.summary(self.recipe, 'teacher')}, {_size(self.teacher)}"
        if isinstance(self.teacher, ZeroShotTeacher):
            classes, templates = len(self.teacher.classes or ()), len(self.teacher.templates)
            return GOOD, f"{finding}; {classes} classes by name, in {templates} templates"
        if self.recipe.teacher.finetune is None:
            return GOOD, f"{finding}; every tensor came from its checkpoint"
        return NOTE, f"{finding}; it will be fine-tuned first: what is said of it below holds before that"

    def _original(self) -> models.AnyTeacher:
        return models.load_teacher_in_use(self.recipe, self.run.data.kind)

    def _student(self) -> tuple[str, str]:
        data = self.run.data
        self.student = models.build_student(self.recipe, data.kind, self.recipe.seeds[0])
        contract.check_distinct(self.student, self.teacher)
        contract.check_same_problem(self.student, self.teacher)
        share = _parameters(self.student) / _parameters(self.teacher)
        finding = f"{models.summary(self.recipe, 'student')}, {_size(self.student)}, {share:.1%} of the teacher's"
        return (GOOD, finding) if share < 1 else (NOTE, f"{finding}: it is no smaller than its teacher")

    def _student_alone(self) -> tuple[str, str]:
        self.student = models.build_student(self.recipe, self.run.data.kind, self.recipe.seeds[0])
        return GOOD, f"{models.summary(self.recipe, 'student')}, {_size(self.student)}"

    def _classes(self) -> tuple[str, str]:
        names = list(self.run.data.space.names)
        if isinstance(self.run.prepared.validation, Windows):
            return GOOD, "an answer's start and end are places among the tokens, the same in both"
        if not names:
            sizes = [vocabulary_size(model) for model in (self.student, self._one_teacher())]
            return GOOD, f"a vocabulary of {sizes[0]:,} tokens in the student's head and {sizes[1]:,} in the teacher's"
        teachers = self.teacher.members if isinstance(self.teacher, SeveralTeachers) else [self.teacher]
        notices = [contract.aligned_classes(names, contract.class_names(each)).notice for each in teachers]
        found = "; ".join(dict.fromkeys(notice for notice in notices if notice))
        return (NOTE, found) if found else (GOOD, f"{len(names)} classes, the same in both")

    def _one_teacher(self) -> torch.nn.Module:
        """The teacher, or the first of several."""
        return self.teacher.members[0] if isinstance(self.teacher, SeveralTeachers) else self.teacher

    def _objective(self) -> tuple[str, str]:
        teacher, inner = self._made().teacher, self.teacher
        if teacher is None or inner.training or any(parameter.requires_grad for parameter in inner.parameters()):
            return BAD, "the teacher is not frozen in eval mode; report this as a bug"
        return (
            GOOD,
            f"{self.trainer.distillation_objective!r}; the teacher is frozen, in eval mode, and no part of the student",
        )

    def _made(self) -> DistillationTrainer:
        prepared = self.run.prepared
        student, teacher = self.run.views
        given = None if self.recipe.teacher.beside else self.teacher
        self.trainer = DistillationTrainer(
            self.student,
            self.settings.config(self.folder, eval_strategy="no", load_best_model_at_end=False),
            teacher_model=self.run.teaching(self.recipe.seeds[0]) if given is None else models.as_teaching(given),
            objective=self.recipe.objective.build(),
            processing_class=student.processor,
            teacher_processing_class=(student if prepared.shared else teacher).processor,
            train_dataset=prepared.student_train(),
            data_collator=whole_batch,
        )
        return self.trainer

    def _inputs(self) -> tuple[str, str]:
        example = self.run.prepared.student_train().__getitems__([0])
        views = self.trainer.views
        given = {STUDENT: views.student(example), TEACHER: views.read_by_teacher(example)}
        read = {name: ", ".join(key for key in each if key != "use_cache") for name, each in given.items()}
        finding = f"the student reads {read[STUDENT]}, the teacher {read[TEACHER]}"
        differences = self.run.views[0].differences(self.run.views[1])
        if differences:
            return NOTE, f"{finding}; each has its own view of an example ({'; '.join(differences)})"
        return GOOD, f"{finding}, made by the same processor"

    def _knowledge(self) -> tuple[str, str]:
        data, space = self.run.data, self.run.data.space
        config = self.settings.config(self.folder)
        known = outcome_of(Exam(self.teacher, None, self.run.prepared, "validation", config, writes=False)).metrics(
            space
        )
        rows = len(self.run.prepared.validation)
        shown = f"on {rows} validation rows: {', '.join(f'{key} {value:.3g}' for key, value in known.items())}"
        if "wer" in known:
            return self._judged(known["wer"] < 1, shown)
        if not space.whole and not space.names:
            source = self.run.prepared.validation
            guess = source.guess if isinstance(source, Windows) else math.log(vocabulary_size(self._one_teacher()) or 1)
            return self._judged(known["loss"] < guess, shown)
        if space.problem_type == SEGMENTATION:
            # One class everywhere reaches its own share of the pixels, divided by the number of classes.
            return self._judged(known["mean_iou"] > 1 / len(space.names), shown)
        if space.problem_type == DETECTION:
            return self._judged(known["map"] > SEES, shown)
        if space.problem_type != SINGLE:
            return GOOD, shown
        chance = float(torch.bincount(data.validation.labels).max()) / rows
        margin = 2 * math.sqrt(chance * (1 - chance) / rows)
        on = f"on {rows} validation rows; always the largest class {chance:.1%}"
        return self._judged(known["accuracy"] > chance + margin, f"accuracy {known['accuracy']:.1%} {on}")

    def _judged(self, knows: bool, finding: str) -> tuple[str, str]:
        """Whether a teacher that does no better than a guess is as it should be."""
        if knows:
            return GOOD, finding
        if self.recipe.teacher.finetune is not None:
            return NOTE, f"{finding}: as expected before its fine-tuning"
        if self.recipe.teacher.zero_shot is not None:
            return BAD, (
                f"{finding}: it knows nothing of these data. Check its processor (teacher.processor), and give words "
                "that say what the classes look like (teacher.zero_shot.class_names, templates)."
            )
        return BAD, (
            f"{finding}: it knows nothing of these data. Check the order of its classes and its processor "
            "(teacher.processor), or add teacher.finetune."
        )

    def _batch(self) -> tuple[str, str]:
        trainer = self.trainer
        trainer.model.train()
        loader = iter(trainer.get_train_dataloader())
        batches, counts = trainer.get_batch_samples(loader, 1, trainer.args.device)
        if counts is None:
            return BAD, "the train split gives no batch: lower training.per_device_train_batch_size"
        inputs = trainer._prepare_inputs(batches[0])
        _, context = trainer.outputs_and_context(trainer.model, inputs)
        norms, findings = {}, []
        for term in trainer.distillation_objective.active:
            if not is_used(term.weight) or (term.needs_labels and int(counts.labelled) == 0):
                findings.append(f"{term.name}: no row of this batch counts, or its weight is 0")
                continue
            total, parts = Objective([term])(context, counts)
            norms[term.name] = _gradient_norm(total, trainer.model)
            findings.append(
                f"{term.name} {float(parts[term.name]):.4g}, gradient norm of its share {norms[term.name]:.3g}"
            )
        return _balance(norms, f"{len(context.rows.every)} rows: {'; '.join(findings)}")


def _gradient_norm(total: torch.Tensor, model: torch.nn.Module) -> float:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(total, trainable, retain_graph=True, allow_unused=True)
    squares = [float(gradient.float().pow(2).sum()) for gradient in gradients if gradient is not None]
    return math.sqrt(sum(squares))


def _balance(norms: dict[str, float], finding: str) -> tuple[str, str]:
    if any(not math.isfinite(norm) for norm in norms.values()):
        return BAD, f"{finding}. A gradient is not finite: train in float32 or bf16, not fp16, and lower the weights."
    if any(norm == 0 for norm in norms.values()):
        dead = ", ".join(name for name, norm in norms.items() if norm == 0)
        return BAD, f"{finding}. {dead} moves nothing: take another loss, or check that student and teacher differ."
    if norms and max(norms.values()) > UNEVEN * min(norms.values()):
        small, large = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
        return NOTE, f"{finding}. {large} drowns {small}: lower the weight of {large}, or raise that of {small}."
    return GOOD, finding


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _size(model: torch.nn.Module) -> str:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adapters = f", {trained:,} of them in adapters" if contract.bare(model) is not model else ""
    return f"{_parameters(model):,} parameters{adapters}"
