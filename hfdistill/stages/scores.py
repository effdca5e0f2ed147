"""What a model over tokens is worth on a split: sums for each example, from which all numbers of the report follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PrinterCallback

from hfdistill.data import LabelSpace, whole_batch
from hfdistill.knowledge import StepContext, TaskLoss
from hfdistill.losses import forward_kl
from hfdistill.metrics_text import entity_counts
from hfdistill.objective import Objective
from hfdistill.rows import Rows
from hfdistill.stages.exam import Exam
from hfdistill.stages.several import SeveralTeachers
from hfdistill.sum_sheet import SumSheet
from hfdistill.tasks import TASKS
from hfdistill.trainer import DistillationTrainer

ENTITIES = ("true_positive", "predicted", "gold")


@dataclass(frozen=True)
class Scores:
    """Named sums `(examples,)` over a split in its order, in float64."""

    columns: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """What is written to the stage's folder."""
        return self.columns

    def metrics(self, space: LabelSpace) -> dict[str, float]:
        """The task's metrics and the mean loss against the labels."""
        return SumSheet(space.problem_type, {name: column.numpy() for name, column in self.columns.items()}).metrics()


BatchSums = Callable[[StepContext, range], dict[str, Tensor]]
"""Named sums `(examples, ...)` of the examples of a batch, which stand at these places of their split."""


def token_scores(exam: Exam) -> Scores:
    """Score a model over tokens on a split, beside its teacher where there is one."""
    return scored(exam, lambda context, places: batch_sums(context, len(places), exam.space.names))


def scored(exam: Exam, sums: BatchSums) -> Scores:
    """Go through a split batch by batch; nothing but sums is kept of a batch."""
    config, examples = exam.config, exam.shared_examples()
    # Of several teachers no class tells the task.
    task = TASKS[exam.space.problem_type] if isinstance(exam.model, SeveralTeachers) else None
    trainer = DistillationTrainer(
        exam.model,
        config,
        teacher_model=exam.teacher.description if isinstance(exam.teacher, SeveralTeachers) else exam.teacher,
        objective=Objective([TaskLoss()]) if exam.teacher is None else None,
        processing_class=exam.processors[0],
        teacher_processing_class=exam.processors[1],
        eval_dataset=examples,
        data_collator=whole_batch,
        task=task,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model.to(config.device)
    trainer.model.eval()
    parts: list[dict[str, Tensor]] = []
    size = int(config.eval_batch_size)
    for start in exam.bar(range(0, len(examples), size), "Measuring"):
        places = range(start, min(start + size, len(examples)))
        inputs = trainer._prepare_inputs(examples.__getitems__(places))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            _, context = trainer.outputs_and_context(trainer.model, inputs)
        parts.append({name: column.cpu() for name, column in sums(context, places).items()})
    return Scores({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def batch_sums(context: StepContext, examples: int, names: Sequence[str]) -> dict[str, Tensor]:
    """The sums of one batch. Tokens with a label count; against the teacher all that a divergence would look at."""
    rows, task = context.rows, context.task
    add = example_sums(rows.every, examples)
    logits = rows.every(context.logits).float()
    decided = logits.argmax(-1)
    labelled = torch.ones_like(decided, dtype=torch.bool) if rows.labelled.valid is None else rows.labelled.valid
    assert rows.labels is not None, "a split is scored against its labels"
    loss = torch.where(labelled, task.label_values(context.logits, rows, 0.0, None), 0)
    right = labelled & (decided == rows.labels)
    sums = {"loss_sum": add(loss), "tokens": add(labelled), "correct": add(right)}
    if names:
        counts = _entities(decided, rows.labels, labelled, rows.every, examples, names)
        sums |= dict(zip(ENTITIES, counts.unbind(1), strict=True))
    if context.targets is not None:
        taught = rows.every(context.targets.logits).float()
        followed = taught.argmax(-1)
        teacher_right = labelled & (followed == rows.labels)
        sums |= {
            "kl_sum": add(forward_kl(logits[:, : task.compared], taught, temperature=1.0)),
            "agree": add(decided == followed),
            "compared": add(torch.ones_like(decided)),
            "teacher_wrong_student_right": add(right & ~teacher_right),
            "teacher_right_student_wrong": add(labelled & ~right & teacher_right),
        }
    return sums


def example_sums(rows: Rows, examples: int) -> Callable[[Tensor], Tensor]:
    """A function that sums one value a row for each example, in float64."""
    owner = example_of(rows, examples)

    def summed(values: Tensor) -> Tensor:
        nothing = torch.zeros(examples, dtype=torch.float64, device=values.device)
        return nothing.index_add(0, owner.to(values.device), values.double())

    return summed


def example_of(rows: Rows, examples: int) -> Tensor:
    """The example that each row belongs to: rows lie example by example, all of them or those that are picked."""
    places = torch.arange(rows.size) if rows.index is None else rows.index
    return places // (rows.size // examples)


def _entities(
    decided: Tensor, labels: Tensor, labelled: Tensor, rows: Rows, examples: int, names: Sequence[str]
) -> Tensor:
    owner = example_of(rows, examples)
    counts = torch.zeros(examples, len(ENTITIES), dtype=torch.float64)
    for example in range(examples):
        own = (owner == example) & labelled
        predicted, gold = ([names[place] for place in column[own].tolist()] for column in (decided, labels))
        counts[example] = torch.tensor(entity_counts(predicted, gold), dtype=torch.float64)
    return counts
