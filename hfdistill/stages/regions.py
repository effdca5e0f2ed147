"""What a model over pixels is worth on a split: sums for each image, on the label maps as the student sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hfdistill.contract import aligned_classes, class_names
from hfdistill.data import STUDENT, Examples
from hfdistill.data.changes import Draws
from hfdistill.data.regions import DiskRegions, MemoryRegions
from hfdistill.knowledge import StepContext
from hfdistill.losses import forward_kl
from hfdistill.metrics_dense import region_counts
from hfdistill.stages.exam import Exam
from hfdistill.stages.scores import Scores, scored
from hfdistill.tasks.pixels import pixel_cross_entropy


def region_scores(exam: Exam) -> Scores:
    """Score a model over pixels on a split, beside its teacher where there is one."""
    classes = len(exam.space.names)
    # A teacher used as it is may have the classes of the data in another order, or further ones.
    columns = aligned_classes(list(exam.space.names), class_names(exam.model)).tensor()
    return scored(RegionExam(**vars(exam)), lambda context, places: region_sums(context, len(places), classes, columns))


@dataclass(frozen=True)
class RegionExam(Exam):
    """An exam in which every model is held against the same label maps."""

    def shared_examples(self) -> Examples:
        """The split as model and teacher each see it; a teacher alone gets the student's label maps."""
        examples = super().shared_examples()
        if self.teacher is not None or self.prepared.shared:
            return examples
        assert isinstance(examples.source, (DiskRegions, MemoryRegions)), "the images of this kind"
        return replace(examples, source=StudentsMaps(examples.source))


@dataclass(frozen=True)
class StudentsMaps:
    """Images as one model sees them, with the label maps that the student's view shows."""

    source: DiskRegions | MemoryRegions

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, rows: Tensor, view: str, draws: Draws | None) -> dict[str, Tensor]:
        """One view of some rows, and the student's labels."""
        return {**self.source.batch(rows, view, draws), "labels": self.source.labels(rows, STUDENT)}


def region_sums(context: StepContext, examples: int, classes: int, columns: Tensor | None) -> dict[str, Tensor]:
    """The sums of one batch at the size of the label maps.

    Pixels with a label count; against the teacher every pixel does. Image by image, since logits of this size are many.
    """
    rows = context.rows
    assert rows.labels is not None, "a split is scored against its labels"
    valid = torch.ones(rows.labels.numel(), dtype=torch.bool) if rows.labelled.valid is None else rows.labelled.valid
    counted = valid.reshape(rows.labels.shape)
    parts = []
    for place in range(examples):
        own = replace(rows, labels=rows.labels[place : place + 1])
        logits = context.task.layout.label_logits(context.logits[place : place + 1], own).float()
        if columns is not None:
            logits = logits[:, columns.to(logits.device)]
        sums, right = _image_sums(logits, rows.labels[place], counted[place], classes)
        if context.targets is not None:
            # Targets have the student's classes already.
            taught = context.task.layout.label_logits(context.targets.logits[place : place + 1], own).float()
            sums |= _beside_teacher(logits, taught, right, rows.labels[place], counted[place])
        parts.append(sums)
    return {name: torch.stack([part[name].double() for part in parts]) for name in parts[0]}


def _image_sums(logits: Tensor, labels: Tensor, counted: Tensor, classes: int) -> tuple[dict[str, Tensor], Tensor]:
    """The sums of one image, logits (1, classes, height, width), and at which pixels the model is right."""
    decided = logits.argmax(1)[0]
    loss = pixel_cross_entropy(logits, labels[None], 0.0).reshape(labels.shape)
    right = counted & (decided == labels)
    truth = labels.masked_fill(~counted, -1)
    intersection, union = region_counts(decided.cpu().numpy(), truth.cpu().numpy(), classes, ignore=None)
    sums = {
        "loss_sum": torch.where(counted, loss, 0).double().sum(),
        "pixels": counted.sum(),
        "correct": right.sum(),
        "intersection": torch.from_numpy(intersection),
        "union": torch.from_numpy(union),
    }
    return sums, right


def _beside_teacher(
    logits: Tensor, taught: Tensor, right: Tensor, labels: Tensor, counted: Tensor
) -> dict[str, Tensor]:
    """What one image adds to the comparison with the teacher; disputes are over pixels with a label."""
    decided, followed = logits.argmax(1)[0], taught.argmax(1)[0]
    teacher_right = counted & (followed == labels)
    rows = [each[0].flatten(1).T for each in (logits, taught)]
    return {
        "kl_sum": forward_kl(*rows, temperature=1.0).double().sum(),
        "agree": (decided == followed).sum(),
        "compared": torch.tensor(decided.numel()),
        "teacher_wrong_student_right": (right & ~teacher_right).sum(),
        "teacher_right_student_wrong": (teacher_right & ~right).sum(),
    }
