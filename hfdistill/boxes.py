"""Knowledge of set-prediction heads: boxes and masks of the queries that student and teacher share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hfdistill.errors import HfDistillError
from hfdistill.knowledge import StepContext
from hfdistill.schedules import Weight, checked_weight, described, finite_weight
from hfdistill.tasks import Pairs, Queries, Task
from hfdistill.tasks.matching import (
    DICE_WEIGHT,
    GIOU_WEIGHT,
    L1_WEIGHT,
    PIXELS_WEIGHT,
    box_distance,
    mask_distance,
)


class Boxes:
    """Where the teacher sees objects: the distance of its boxes to those of the student's matched queries.

    sum_i c_i (l1 |b_i - b'_i|_1 + giou (1 - GIoU(b_i, b'_i))) / max(sum_i c_i, 1), one value an example, over the pairs
    i of queries with boxes b, b' (centre and size, shares of the picture), weighed by the teacher's confidence c_i:
    a mean over the objects that the teacher expects, as DETR's own loss is one over those that are there.
    Errors: HfDistillError for a task without boxes.
    Source: Carion et al. (DETR), arXiv 2005.12872, section 3.1; the weights c_i as in KD-DETR, arXiv 2211.08071.
    """

    needs_labels = False
    needs_teacher = True
    fields: tuple[str, ...] = ()

    def __init__(
        self, *, weight: Weight | str = 1.0, name: str = "boxes", l1: float = L1_WEIGHT, giou: float = GIOU_WEIGHT
    ) -> None:
        self.weight = checked_weight(weight, name)
        self.name = name
        self.l1 = finite_weight(l1, "l1")
        self.giou = finite_weight(giou, "giou")

    def __repr__(self) -> str:
        return f"Boxes(weight={described(self.weight)}, l1={self.l1:g}, giou={self.giou:g})"

    def values(self, context: StepContext) -> torch.Tensor:
        """One value an example."""
        pairs = pairs_of(context, repr(self))
        if pairs.boxes is None:
            raise HfDistillError(f"{self!r} needs boxes, and {context.task.name} has none.")
        return _mean_of_objects(box_distance(*pairs.boxes, l1=self.l1, giou=self.giou), pairs.confidence)

    def check(self, num_classes: int | None, task: Task) -> None:
        """Refuse a task whose head gives no boxes."""
        if not isinstance(task.layout, Queries) or task.layout.boxes is None:
            raise HfDistillError(f"{self!r} came for {task.name}, whose head gives no boxes; leave the term out.")


class Masks:
    """Which pixels the teacher sees an object at: the distance of its masks to those of the student's matched queries.

    sum_i c_i (pixels mean_p KL(q'_ip || q_ip) + dice (1 - 2 sum_p q_ip q'_ip / sum_p (q_ip^2 + q'_ip^2))) /
    max(sum_i c_i, 1), one value an example, in nats where `dice` is 0: Bernoulli divergence over the pixels p, and dice
    distance, over the pairs i of queries, weighed by the teacher's confidence c_i. A teacher's mask of another size is
    resized.
    Errors: HfDistillError for a task without masks.
    Source: the two parts of Mask2Former's loss, Cheng et al., arXiv 2112.01527; dice of Milletari et al., 1606.04797.
    """

    needs_labels = False
    needs_teacher = True
    fields: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        weight: Weight | str = 1.0,
        name: str = "masks",
        pixels: float = PIXELS_WEIGHT,
        dice: float = DICE_WEIGHT,
    ) -> None:
        self.weight = checked_weight(weight, name)
        self.name = name
        self.pixels = finite_weight(pixels, "pixels")
        self.dice = finite_weight(dice, "dice")

    def __repr__(self) -> str:
        return f"Masks(weight={described(self.weight)}, pixels={self.pixels:g}, dice={self.dice:g})"

    def values(self, context: StepContext) -> torch.Tensor:
        """One value an example."""
        pairs = pairs_of(context, repr(self))
        if pairs.masks is None:
            raise HfDistillError(f"{self!r} needs masks, and {context.task.name} has none.")
        student, teacher = (masks.flatten(2) for masks in pairs.masks)
        return _mean_of_objects(mask_distance(student, teacher, pixels=self.pixels, dice=self.dice), pairs.confidence)

    def check(self, num_classes: int | None, task: Task) -> None:
        """Refuse a task whose head gives no masks."""
        if not isinstance(task.layout, Queries) or task.layout.masks is None:
            raise HfDistillError(f"{self!r} came for {task.name}, whose head gives no masks; leave the term out.")


def with_pairs(context: StepContext, outputs: Any) -> StepContext:
    """The context with the student's queries matched to the teacher's, once for all terms; others pass through.

    Its logits are then those of the pairs, and its rows weigh them.
    """
    layout, targets = context.task.layout, context.targets
    if not isinstance(layout, Queries) or targets is None:
        return context
    if len(context.logits) != context.rows.every.size or len(targets.logits) != context.rows.every.size:
        raise HfDistillError(
            f"{context.rows.every.size} examples came, for which the student gives {len(context.logits)} sets of "
            f"queries and the teacher {len(targets.logits)}; expected one an example."
        )
    pairs = layout.pairs(context.logits, outputs, targets.logits, targets.fields)
    every = replace(context.rows.every, shares=pairs.shares)
    return replace(
        context,
        logits=pairs.logits[0],
        targets=replace(targets, logits=pairs.logits[1]),
        rows=replace(context.rows, every=every),
        pairs=pairs,
    )


def pairs_of(context: StepContext, term: str) -> Pairs:
    """The matched queries; raises HfDistillError where there is no teacher."""
    if context.pairs is None:
        raise HfDistillError(f"{term} needs a teacher; pass teacher_model.")
    return context.pairs


def _mean_of_objects(values: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    return (confidence * values).sum(-1) / confidence.sum(-1).clamp(min=1)
