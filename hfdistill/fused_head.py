"""The fused head in a step: labels' loss and divergence of language models without a tensor of tokens × vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from hfdistill.cache import StoredTeacher
from hfdistill.config import DistillationConfig
from hfdistill.errors import HfDistillError
from hfdistill.heads import KnownHeads, ModelHead
from hfdistill.knowledge import Fused, Logits, TaskLoss, Term
from hfdistill.losses.fused_linear import Columns, Divergence, FusedLoss, Taught, TopK, fused_linear
from hfdistill.objective import Objective, weight_at
from hfdistill.rows import BatchRows, RowCounts
from hfdistill.schedules import Auto, is_used, options_at
from hfdistill.shards import gathered
from hfdistill.tasks import Classes, Task, Tokens
from hfdistill.teachers import LiveTeacher, Targets, Teacher
from hfdistill.temperatures import TEMPERATURE, has_changing

logger = logging.getLogger(__name__)

MANY = 8192
"""From so many classes on a head is fused by itself: below, logits are small and a plain step is as fast."""


@dataclass
class FusedStep:
    """What the fused loss of a micro-batch has given: filled while the student's forward runs."""

    total: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: int = 0

    def done(self, logits: torch.Tensor) -> Fused | None:
        """What the terms see of it; None where the model has not come to its head.

        The way back leads through the empty `logits` too: by them ZeRO-3 learns that it has to gather the head again.
        """
        if self.total is None:
            return None
        return Fused(self.total + logits.sum().to(self.total.dtype), self.parts, self.classes)


@dataclass(frozen=True, eq=False)
class FusedHead:
    """Computes the terms on labels and logits from hidden states, as `fused_linear` does; one for a training.

    `label` and `divergence` are the terms that it stands for, `student` and `teacher` the heads, `columns` the
    teacher's class of each of the student's.
    """

    task: Task
    student: ModelHead
    label: TaskLoss | None
    divergence: Logits | None
    teacher: ModelHead | None = None
    columns: Columns | None = None
    compiled: bool = False
    threshold: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The terms that it stands for."""
        return tuple(term.name for term in (self.label, self.divergence) if term is not None)

    def targets(self, teacher: Teacher | None, inputs: Mapping[str, Any]) -> Targets | None:
        """What the teacher gives for a batch, its hidden states in the place of its logits."""
        if teacher is None or self.divergence is None:
            return None
        if self.teacher is None or not isinstance(teacher, LiveTeacher):
            return teacher(inputs)
        return teacher.without_head(self.teacher.replaced)(inputs)

    @contextmanager
    def within(
        self,
        rows: BatchRows,
        targets: Targets | None,
        counts: RowCounts,
        epoch: float,
        smoothing: float,
    ) -> Iterator[FusedStep]:
        """Have the student's forward, within the block, compute the loss where its head would have been.

        There, because DistributedDataParallel looks from the outputs for what a step uses, and because weights that
        are sharded are whole only there.
        """
        step = FusedStep(classes=self.student.classes)

        def forward(states: torch.Tensor) -> torch.Tensor:
            with nullcontext() if self.teacher is None else gathered(self.teacher.module):
                loss = self._loss(states, rows, targets, counts, epoch, smoothing)
            step.total = loss.total
            step.parts.update(self._parts(loss, rows, counts))
            # No classes, and yet a way from the outputs to the loss.
            return loss.total.to(states.dtype).expand(*states.shape[:-1], 1)[..., :0]

        with self.student.replaced(forward):
            yield step

    def _loss(
        self,
        states: torch.Tensor,
        rows: BatchRows,
        targets: Targets | None,
        counts: RowCounts,
        epoch: float,
        smoothing: float,
    ) -> FusedLoss:
        every, labels, taught, kind = rows.every, rows.labels, None, None
        label, divergence = self.label, self.divergence
        weight: float | torch.Tensor = 0.0
        divergence_weight: float | torch.Tensor = 0.0
        if label is not None and labels is not None:
            weight = weight_at(label, epoch, {}) / counts.for_term(label.name, needs_labels=True).clamp(min=1)
        if divergence is not None and targets is not None:
            options = options_at(divergence.options, epoch)
            kind = Divergence.of(divergence.loss, options)
            assert kind is not None, "it was asked before"
            taught = self._taught(every, targets, kind.temperature)
            count = counts.for_term(divergence.name, needs_labels=False).clamp(min=1)
            divergence_weight = weight_at(divergence, epoch, {}) / count
        return fused_linear(
            every(states),
            self.student.now(),
            labels=None if label is None else labels,
            label_weight=weight,
            label_smoothing=smoothing,
            teacher=taught,
            divergence=kind,
            divergence_weight=divergence_weight,
            compiled=self.compiled,
            gradient_threshold=self.threshold,
        )

    def _taught(self, every: Callable[[torch.Tensor], torch.Tensor], targets: Targets, temperature: float) -> Any:
        if targets.kept is None:
            assert self.teacher is not None, "logits come from a head"
            return Taught(every(targets.logits), self.teacher.now(), self.columns)
        kept = targets.kept
        places, probabilities = every(kept.places), every(kept.at(temperature))
        compared = self.task.compared or self.student.classes
        outside = (places < 0) | (places >= compared)
        logs = probabilities.log().masked_fill(outside, -torch.inf)
        return TopK(places.masked_fill(outside, 0), logs, self.task.compared)

    def _parts(self, loss: FusedLoss, rows: BatchRows, counts: RowCounts) -> dict[str, torch.Tensor]:
        """Each term's unweighted part: this micro-batch's share of the step's mean."""
        values = ((self.label, loss.label, True), (self.divergence, loss.divergence, False))
        return {
            term.name: each.sum() / counts.for_term(term.name, labelled).clamp(min=1)
            for term, each, labelled in values
            if term is not None and each is not None
        }


class Pair(NamedTuple):
    """The two models of a training, what they learn and from what; `columns` as in a FusedHead."""

    student: torch.nn.Module
    teacher: Teacher | None
    task: Task
    objective: Objective
    columns: tuple[int, ...] | None = None


def fused_head_of(pair: Pair, args: DistillationConfig, heads: KnownHeads) -> FusedHead | None:
    """The fused head of a training, where its models, task and terms allow one; by itself from many classes on.

    `args.fused_head` True refuses what cannot be fused, False fuses nothing.
    Errors: HfDistillError for True and a training that cannot, with the reason.
    """
    asked, task = args.fused_head, pair.task
    if asked is False:
        return None
    found = "a compiled model's head cannot be replaced" if args.torch_compile else _found(pair, heads)
    if isinstance(found, FusedHead):
        found = replace(found, threshold=args.fused_head_threshold, compiled=args.fused_head_compiled)
        return found if asked or found.student.classes >= MANY else None
    if asked:
        raise HfDistillError(
            f"fused_head=True came, and {found}; expected fused_head=None, which then computes logits."
        )
    if task.classes is Classes.VOCABULARY:
        logger.info("Logits are computed whole: %s.", found)
    return None


def _found(pair: Pair, heads: KnownHeads) -> FusedHead | str:
    """The fused head, or why there is none."""
    teacher, task, columns = pair.teacher, pair.task, pair.columns
    if task.classes is not Classes.VOCABULARY or not isinstance(task.layout, Tokens):
        return f"{task.name} has no head over a vocabulary"
    label, divergence, reason = _terms(pair.objective)
    if reason:
        return reason
    own = heads.of(pair.student, task)
    if own is None:
        return f"the head of {type(pair.student).__name__} is not a plain product that could be computed elsewhere"
    if divergence is None or teacher is None:
        return FusedHead(task, own, label, None)
    if isinstance(teacher, StoredTeacher):
        manifest = teacher.store.manifest
        if teacher.live is not None or manifest is None or manifest.contents.top_k is None:
            return "the cache holds whole logits, or is being filled with them"
        return FusedHead(task, own, label, divergence)
    if type(teacher) is not LiveTeacher:
        return f"a {type(teacher).__name__} gives logits"
    theirs = heads.of(teacher.model, task)
    if theirs is None:
        return f"the head of {type(teacher.model).__name__} is not a plain product that could be computed elsewhere"
    if columns is None and own.classes != theirs.classes:
        return f"the heads have {own.classes} and {theirs.classes} classes"
    return FusedHead(task, own, label, divergence, theirs, None if columns is None else Columns(columns))


def _terms(objective: Objective) -> tuple[TaskLoss | None, Logits | None, str]:
    """The terms that are fused, and what speaks against it."""
    active: list[Term] = [term for term in objective.active if is_used(term.weight) or isinstance(term, TaskLoss)]
    labels = [term for term in active if isinstance(term, TaskLoss)]
    logits = [term for term in active if isinstance(term, Logits)]
    if any(isinstance(term.weight, Auto) for term in active):
        return None, None, "a weight is found by measuring each term's gradient"
    if len(labels) > 1 or len(logits) > 1:
        return None, None, "several terms read the same logits"
    for term in logits:
        changing = {name: value for name, value in term.options.items() if name == TEMPERATURE}
        tried = Divergence.of(term.loss, options_at(term.options, 0.0))
        if tried is None or (has_changing(changing) and not isinstance(tried.temperature, (int, float))):
            return None, None, f"{term!r} is not among the divergences that are fused"
    return next(iter(labels), None), next(iter(logits), None), ""
