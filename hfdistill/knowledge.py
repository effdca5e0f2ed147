"""Knowledge: what is matched between student and teacher, with a weight and a name. Terms of an objective."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import nn

from hfdistill.errors import HfDistillError, nearest
from hfdistill.losses import LOSSES, bernoulli_kl, check_classes, forward_kl, top_k_kl
from hfdistill.rows import BatchRows
from hfdistill.schedules import Weight, checked_weight, described, is_used, options_at
from hfdistill.tasks import Classes, Pairs, Task, architecture_task
from hfdistill.tasks.embeddings import encoder_width
from hfdistill.tasks.pairs import ImageTextPairs, scores_by_sigmoid
from hfdistill.teachers import KeptLogits, Targets
from hfdistill.temperatures import (
    TEMPERATURE,
    LearnedTemperature,
    check_rows_soften,
    constants,
    distance,
    has_changing,
    mixing_temperature,
)

if TYPE_CHECKING:
    from hfdistill.features.watch import FeatureStep

Loss = Callable[..., torch.Tensor]

LATE = 1e9
"""An epoch after the end of every schedule."""


@dataclass(frozen=True)
class StepContext:
    """What the terms of one micro-batch see: both models' outputs, the rows, the task.

    `model_loss` is the student's own loss, where the task can be scored by nothing else; `fields` are its further
    outputs that the terms have asked for, by name; `pairs` are the matched queries of a set-prediction head; `inputs`
    are the batch's, and `features` what both models have shown of their insides. `epoch` counts the epochs done so far,
    `balanced` holds the weights that were found by measuring, by the term's name, and `learned` the temperatures that
    are learnt. `fused` is what was computed in the forward already; then there are no logits, but tensors without
    classes.
    """

    logits: torch.Tensor
    targets: Targets | None
    rows: BatchRows
    task: Task
    label_smoothing: float = 0.0
    model_loss: torch.Tensor | None = None
    fields: Mapping[str, torch.Tensor] = field(default_factory=dict)
    pairs: Pairs | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    features: FeatureStep | None = None
    epoch: float = 0.0
    balanced: Mapping[str, float] = field(default_factory=dict)
    learned: Mapping[str, torch.Tensor] = field(default_factory=dict)
    fused: Fused | None = None


@dataclass(frozen=True)
class Fused:
    """What was computed without logits: the weighted `total` of some terms, their unweighted `parts`, and `classes`."""

    total: torch.Tensor
    parts: Mapping[str, torch.Tensor]
    classes: int


class Term(Protocol):
    """One weighted, named part of an objective."""

    @property
    def name(self) -> str:
        """Name of the part in logs: `loss/<name>`."""
        ...

    @property
    def weight(self) -> Weight:
        """Factor of the part in the total: a number, a schedule, or one that is found by measuring."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether only rows with a label count."""
        ...

    @property
    def needs_teacher(self) -> bool:
        """Whether targets are needed."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the outputs that it reads of both models, beside the logits."""
        ...

    def values(self, context: StepContext) -> torch.Tensor:
        """One value a row, `(rows,)`, over all rows; those that do not count hold any finite number."""
        ...

    def check(self, num_classes: int | None, task: Task) -> None:
        """Raise before training if the term is dead for so many classes, or needs what the task has not."""
        ...


class TaskLoss:
    """The loss against labels, from the student's logits: cross-entropy, binary cross-entropy or squared error.

    Which one follows from the task (`config.problem_type`). It averages over the labelled rows of an optimizer step.
    """

    name = "task"
    needs_labels = True
    needs_teacher = False
    fields: tuple[str, ...] = ()

    def __init__(self, weight: Weight | str = 1.0) -> None:
        self.weight = checked_weight(weight, self.name)

    def __repr__(self) -> str:
        return f"TaskLoss(weight={described(self.weight)})"

    def values(self, context: StepContext) -> torch.Tensor:
        """One value a row."""
        return context.task.label_values(context.logits, context.rows, context.label_smoothing, context.model_loss)

    def check(self, num_classes: int | None, task: Task) -> None:
        """Refuse a task that has no labels; else the task decides the loss."""
        if not task.labelled and is_used(self.weight):
            raise HfDistillError(
                f"TaskLoss came for {task.name}, which has no labels; expected terms that learn from the teacher "
                "alone: leave objective out, or pass Objective([Logits(...)])."
            )


class Comparison:
    """A loss between something that the student gives and the same of the teacher: what such terms share.

    `loss` is a name in `hfdistill.losses.LOSSES` or any callable `(student, teacher, **options) -> (rows,)`; `options`
    (`temperature=4.0`, `beta=8.0`, ...) are bound to its signature here, so that a wrong one is an error now. A loss
    with a parameter `labels` gets the labels and averages over the labelled rows only. `weight` is a number, a schedule
    (`Linear`, `Cosine`, `WarmUp`) or "auto".
    Errors: HfDistillError for an unknown loss or option, naming the nearest.
    """

    needs_teacher = True
    fields: tuple[str, ...] = ()
    changing_options: ClassVar[bool] = False
    """Whether options may be schedules and temperatures of rows."""

    def __init__(self, loss: Loss | str, *, weight: Weight | str, name: str, **options: Any) -> None:
        self.loss = loss_named(loss)
        self.weight = checked_weight(weight, name)
        self.name = name
        self.options = bound_options(self.loss, options)
        self.needs_labels = "labels" in inspect.signature(self.loss).parameters
        if has_changing(self.options) and not self.changing_options:
            raise HfDistillError(
                f"{self!r}: options that change are for Logits; expected a number. (Any term's weight may be a "
                "schedule.)"
            )
        self._try_options()

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"{type(self).__name__}({loss_name(self.loss)}, weight={described(self.weight)}{options})"

    def _try_options(self) -> None:
        """Have the loss look at its options now, on nothing of interest, and not in the first step."""
        if self.loss not in LOSSES.values():
            return
        if "indices" in inspect.signature(self.loss).parameters:
            raise HfDistillError(
                f"{loss_name(self.loss)} compares with the k highest probabilities of a teacher, and a model gives "
                "all of its logits; use forward_kl here, or call the function yourself."
            )
        nothing = torch.zeros(*self._trial_shape(), 4)
        labels = {"labels": torch.zeros(4, dtype=torch.long)} if self.needs_labels else {}
        try:
            for epoch in (0.0, LATE):
                self.loss(nothing, nothing, **labels, **constants(self.options, epoch))
        except (TypeError, ValueError) as error:
            raise HfDistillError(f"{self!r} cannot be used: {error}") from error
        check_rows_soften(self.loss, self.options, labels, loss_name(self.loss))

    def _trial_shape(self) -> tuple[int, ...]:
        """The shape before the width of what the loss looks at, large enough for any."""
        return (4,)

    def check_models(self, student: nn.Module, teacher: nn.Module, task: Task) -> None:
        """Refuse, before training, two models that this loss cannot compare; by default none."""

    def _check_widths(self, student: int | None, teacher: int | None, what: str) -> None:
        """Refuse widths that the loss cannot compare, where both are known."""
        if student is None or teacher is None or student == teacher or self.loss not in LOSSES.values():
            return
        try:
            self.loss(torch.zeros(4, student), torch.zeros(4, teacher), **self.options)
        except ValueError as error:
            raise HfDistillError(
                f"The student's {what} are {student} wide and the teacher's {teacher}, and {loss_name(self.loss)} "
                f"compares them entry by entry; expected equal widths. Build the student {teacher} wide, or take a "
                "loss on how the rows of a batch relate: similarity_preserving, probabilistic_transfer, "
                "relational_distance or relational_angle."
            ) from error


class Logits(Comparison):
    """What the teacher says: a divergence between the student's and the teacher's logits.

    For embeddings of sentences, which stand in the place of logits, a distance between these. The arguments and errors
    are those of every `Comparison`; an option may be a schedule, and the temperature a `TeacherEntropy` or a
    `LearnedTemperature` too.
    """

    changing_options = True

    def __init__(
        self, loss: Loss | str = forward_kl, *, weight: Weight | str = 1.0, name: str = "kd", **options: Any
    ) -> None:
        super().__init__(loss, weight=weight, name=name, **options)
        tempered = inspect.signature(self.loss).parameters.get(TEMPERATURE)
        self.default_temperature = 1.0 if tempered is None or tempered.default is tempered.empty else tempered.default

    def values(self, context: StepContext) -> torch.Tensor:
        """One value a row."""
        if context.targets is None:
            raise HfDistillError(f"{self!r} needs a teacher; pass teacher_model.")
        options = options_at(self.options, context.epoch)
        if context.targets.kept is not None:
            return self._of_kept(context, context.targets.kept, options)
        learned = options.get(TEMPERATURE)
        if isinstance(learned, LearnedTemperature):
            options[TEMPERATURE] = learned.reversed(context.learned[self.name], context.epoch)
        temperature = mixing_temperature(options, self.default_temperature)
        matched = context.targets.at(temperature, lambda logits: context.task.matched(logits, context.logits))
        # Rows are picked by their number, which means the same place in equal shapes only.
        if context.rows.every.index is not None and context.logits.shape[:-1] != matched.shape[:-1]:
            raise HfDistillError(different_places(context))
        student, teacher = context.rows.every(context.logits), context.rows.every(matched)
        if context.task.compared is not None:
            student = student[:, : context.task.compared]
        if context.task.known is not None:
            student = student[:, context.task.known]
        if student.shape[:1] != teacher.shape[:1] or (
            context.task.classes is Classes.PLACES and student.shape != teacher.shape
        ):
            raise HfDistillError(different_places(context))
        if student.shape != teacher.shape and context.task.classes is not Classes.COORDINATES:
            raise HfDistillError(
                f"The student gives {student.shape[-1]} logits a row and the teacher {teacher.shape[-1]}; expected the "
                "same classes. Build the student with num_labels, id2label and label2id of the teacher."
            )
        labels = {"labels": context.rows.labels} if self.needs_labels else {}
        values = distance(self.loss, student, teacher, {**options, **labels})
        if values.shape != student.shape[:1]:
            raise HfDistillError(
                f"The loss {loss_name(self.loss)} gave a tensor of shape {tuple(values.shape)} for "
                f"{len(student)} rows; expected one value a row: reduce over classes only."
            )
        return context.rows.every.folded(values)

    def _of_kept(self, context: StepContext, kept: KeptLogits, options: Mapping[str, Any]) -> torch.Tensor:
        """The loss against a teacher of whom the most likely classes are kept."""
        temperature = options.get(TEMPERATURE, self.default_temperature)
        if self.loss is not forward_kl or options.get("standardized") or not isinstance(temperature, (int, float)):
            raise HfDistillError(
                f"{self!r} came with a cache that keeps the most likely classes of its teacher (top_k), which is "
                "enough for forward_kl at a fixed temperature; expected that, or a cache of all logits (top_k=None)."
            )
        if context.logits.shape[:-1] != kept.indices.shape[:-1]:
            raise HfDistillError(different_places(context))
        every = context.rows.every
        student, places = every(context.logits), every(kept.places)
        if context.task.compared is not None:
            student = student[:, : context.task.compared]
        # A class that the student does not have is of probability 0 by now.
        outside = (places < 0) | (places >= student.shape[-1])
        values = top_k_kl(
            student,
            every(kept.at(float(temperature))).masked_fill(outside, 0),
            indices=places.masked_fill(outside, 0),
            temperature=float(temperature),
        )
        return every.folded(values)

    def check(self, num_classes: int | None, task: Task) -> None:
        """Refuse a loss that is constant for so many classes, or needs labels where rows have none of their own."""
        if self.needs_labels and not task.layout.labels_match:
            raise HfDistillError(
                f"{loss_name(self.loss)} needs the label of each row, and the labels of {task.name} are of other rows "
                "than its logits; take a loss without labels, such as forward_kl."
            )
        if num_classes is None:
            return
        try:
            check_classes(self.loss, num_classes, standardized=bool(self.options.get("standardized", False)))
        except ValueError as error:
            raise HfDistillError(str(error)) from error

    def check_models(self, student: nn.Module, teacher: nn.Module, task: Task) -> None:
        """Refuse embeddings of widths that do not fit, and sigmoids beside a softmax."""
        if task.classes is Classes.COORDINATES:
            heads = [type(model).__name__ for model in (student, teacher) if architecture_task(type(model).__name__)]
            if heads:
                raise HfDistillError(
                    f"A {heads[0]} came for {task.name}; expected an encoder without a head, whose last_hidden_state "
                    "is pooled. Load it with AutoModel."
                )
            self._check_widths(encoder_width(student), encoder_width(teacher), "hidden states")
        one_by_one = self.loss is bernoulli_kl and isinstance(task.layout, ImageTextPairs)
        if one_by_one and not (scores_by_sigmoid(student) and scores_by_sigmoid(teacher)):
            raise HfDistillError(
                f"bernoulli_kl takes each similarity for the logit of a sigmoid, as SigLIP's are; the student is a "
                f"{type(student).__name__} and the teacher a {type(teacher).__name__}, not both of that kind. Expected "
                "a loss over their softmax: objective=Objective([TaskLoss(), Logits('forward_kl', temperature=2.0)])."
            )


def different_places(context: StepContext) -> str:
    """What to say of two models whose logits are about different tokens, frames or pixels."""
    theirs = None if context.targets is None else tuple(context.targets.logits.shape)
    return (
        f"The student gives logits of shape {tuple(context.logits.shape)} and the teacher {theirs}; expected the same "
        "places in both. They have to read the same tokens, frames or pixels: one tokenizer or processor for both, "
        "with the same maximum length."
    )


def loss_named(loss: Loss | str) -> Loss:
    """The function for a name in `LOSSES`; a function passes through."""
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise HfDistillError(f"There is no loss {loss!r}{nearest(loss, LOSSES)} Known: {', '.join(sorted(LOSSES))}.")
    return LOSSES[loss]


def loss_name(loss: Loss) -> str:
    """A readable name of a loss, also of a partial or a callable object."""
    if isinstance(loss, functools.partial):
        return loss_name(loss.func)
    return loss.__name__ if inspect.isroutine(loss) else type(loss).__name__


def bound_options(loss: Loss, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` checked against the signature of `loss`; the batch's own arguments cannot be options."""
    parameters = inspect.signature(loss).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(options)
    allowed = [name for name in list(parameters)[2:] if name != "labels"]
    for option in options:
        if option not in allowed:
            raise HfDistillError(
                f"The loss {loss_name(loss)} has no option {option!r}{nearest(option, allowed)} "
                f"Its options: {', '.join(allowed) or 'none'}."
            )
    return dict(options)
