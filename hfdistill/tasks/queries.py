"""Layout of set-prediction heads: each query gives one class distribution, and a box or a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from hfdistill.errors import HfDistillError
from hfdistill.losses import bernoulli_kl, forward_kl
from hfdistill.rows import BatchRows, Rows
from hfdistill.tasks.layouts import first_tensor, output_field
from hfdistill.tasks.matching import (
    assignment,
    box_distance,
    class_cost,
    class_weight,
    confidence,
    mask_cost,
    taken,
)
from hfdistill.tasks.objects import check_classes, masked_objects, objects

if TYPE_CHECKING:
    from hfdistill.tasks.task import Task


@dataclass(frozen=True)
class Pairs:
    """Queries of student and teacher that stand for each other, n an example, where n is the smaller number of queries.

    `logits` `(examples, n, classes)`, `boxes` `(examples, n, 4)` and `masks` `(examples, n, height, width)`, each of
    the student and of the teacher; `confidence` `(examples, n)` is the teacher's.
    """

    logits: tuple[torch.Tensor, torch.Tensor]
    boxes: tuple[torch.Tensor, torch.Tensor] | None
    masks: tuple[torch.Tensor, torch.Tensor] | None
    confidence: torch.Tensor

    @property
    def shares(self) -> torch.Tensor:
        """What each pair counts in its example's class divergence, `(examples, n)`, adding up to 1."""
        weights = class_weight(self.confidence)
        return weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Queries:
    """A set of queries an example, each with class logits, and a box or a mask or both.

    `output`, `boxes` and `masks` name the model's outputs: class logits `(examples, queries, classes)`, boxes
    `(examples, queries, 4)` as centre and size in shares of the picture, masks `(examples, queries, height, width)` as
    logits. With `no_object` the classes are a softmax whose last one means that there is no object; without, they are a
    sigmoid each. `classes` is the number of real classes; where it is None, it, `no_object` and `queries` are read off
    a Transformers model. `queries` is how many queries inference has, where training has more of them. An example gives
    one value; a batch without labels learns from the teacher alone.
    """

    output: str = "logits"
    boxes: str | None = None
    masks: str | None = None
    no_object: bool = True
    classes: int | None = None
    queries: int | None = None
    labels_match: ClassVar[bool] = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The outputs that queries are matched by, beside the classes."""
        return tuple(name for name in (self.boxes, self.masks) if name is not None)

    def bound(self, model: nn.Module, task: Task) -> Task:
        """The task with what a Transformers model tells of its queries, unless `classes` says that all is known.

        A head with a class more than `config.num_labels` is a softmax with no-object; any other has a sigmoid a class,
        and the Bernoulli KL fits it. Models with groups of queries (LW-DETR) read the first at inference.
        """
        if self.classes is not None or not isinstance(model, PreTrainedModel):
            return task
        classes = len(model.config.id2label or {})
        no_object = any(
            "class" in name and module.out_features == classes + 1
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        )
        settings = model.config.to_dict()
        queries = settings["num_queries"] if "group_detr" in settings else None
        layout = replace(self, no_object=no_object, classes=classes, queries=queries)
        return replace(task, default_loss=forward_kl if no_object else bernoulli_kl, layout=layout)

    def matched(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """As they come: `pairs` has brought both to the same queries."""
        return teacher

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """An example each; raises HfDistillError for labels that the model could not read.

        The labels are looked at here, which makes the host wait for the device; the model's own matching does anyway.
        """
        size = len(first_tensor(inputs, "pixel_values"))
        device = first_tensor(inputs, "pixel_values").device
        every = Rows(size, spread=True)
        given = [inputs.get(name) for name in task.label_names]
        if any(labels is None for labels in given):
            return BatchRows(every, Rows(size, torch.zeros(size, dtype=torch.bool, device=device)), None)
        classes = objects(given[0], size, self.masks is not None) if len(given) == 1 else masked_objects(given, size)
        check_classes(classes, self.classes)
        counts = torch.tensor([len(each) for each in classes], device=device)
        return BatchRows(every, Rows(size), counts)

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Class logits of the queries that inference has."""
        logits = output_field(outputs, self.output)
        if self.classes is not None and logits.shape[-1] != self.classes + self.no_object:
            raise HfDistillError(
                f"The model gives {logits.shape[-1]} class logits a query for {self.classes} classes; expected "
                f"{self.classes + self.no_object}. For a head of your own pass task= with a row whose Queries say so."
            )
        return self.kept(logits, outputs)

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """Never asked for: only the model itself holds queries against labels."""
        raise NotImplementedError("A set-prediction head computes the loss against its labels itself.")

    def kept(self, tensor: torch.Tensor, outputs: Any) -> torch.Tensor:
        """Of `(examples, queries, ...)` those queries that inference has.

        In training RT-DETR and its kin put denoised labels in front, and LW-DETR has several groups of queries, of
        which inference reads the first.
        """
        noise = outputs.get("denoising_meta_values") if isinstance(outputs, Mapping) else None
        if noise is not None:
            tensor = tensor[:, noise["dn_num_split"][0] :]
        return tensor if self.queries is None else tensor[:, : self.queries]

    def pairs(
        self, logits: torch.Tensor, outputs: Any, teacher_logits: torch.Tensor, teacher: Mapping[str, torch.Tensor]
    ) -> Pairs:
        """The student's queries matched to the teacher's, whose logits and `fields` are given.

        The teacher's queries are taken in order of its confidence c, as many as the student has. The Hungarian
        algorithm picks the student's so that the sum of c' class_cost + c (box_distance + mask_cost) is least, where
        c' = c + 0.1 (1 - c): the weights that the terms give them, so that background never pulls an object away.
        Sources: DETRDistill (arXiv 2211.10156: Hungarian matching with the teacher's predictions as
        targets), KD-DETR (arXiv 2211.08071: pairs weighed by the teacher's highest class score).
        """
        boxes = None if self.boxes is None else self.kept(output_field(outputs, self.boxes), outputs)
        masks = None if self.masks is None else self.kept(output_field(outputs, self.masks), outputs)
        most = min(logits.shape[1], teacher_logits.shape[1])
        best, chosen = confidence(teacher_logits, self.no_object).topk(most, dim=1)
        teacher_logits = taken(teacher_logits, chosen)
        with torch.no_grad():
            cost = class_weight(best)[:, None] * class_cost(logits, teacher_logits, self.no_object)
            if self.boxes is not None and boxes is not None:
                teacher_boxes = taken(teacher[self.boxes], chosen)
                cost = cost + best[:, None] * box_distance(boxes[:, :, None], teacher_boxes[:, None])
            if self.masks is not None and masks is not None:
                teacher_masks = resized(taken(teacher[self.masks], chosen), masks)
                cost = cost + best[:, None] * mask_cost(masks.flatten(2), teacher_masks.flatten(2))
            own = assignment(cost)
        return Pairs(
            (taken(logits, own), teacher_logits),
            None if boxes is None else (taken(boxes, own), teacher_boxes),
            None if masks is None else (taken(masks, own), teacher_masks),
            best,
        )


@dataclass(frozen=True)
class TeacherLogits:
    """Reads a teacher's class logits as the student has them.

    `columns` are the teacher's places of the student's classes. What a softmax gives to classes that the student lacks
    is no object to the student. A softmax teacher's probabilities p become logits log p - log(1 - p) for a student with
    a sigmoid a class; the other way round there is no share for "no object", which is an error here.
    """

    student: Queries
    teacher: Queries
    columns: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.student.no_object and not self.teacher.no_object:
            raise HfDistillError(
                "The teacher has a sigmoid for each class and the student a softmax with a no-object class, which such "
                "a teacher says nothing of; expected a teacher of the DETR, YOLOS or Table Transformer kind, or a "
                "student with sigmoids (Conditional or Deformable DETR, RT-DETR, D-FINE)."
            )
        if len(self.student.fields) != len(self.teacher.fields):
            raise HfDistillError(
                f"The student gives {', '.join(self.student.fields)} and the teacher {', '.join(self.teacher.fields)}; "
                "expected the same of both, since queries are matched by it."
            )

    def __call__(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """`(examples, queries, classes)`, with the no-object class last if the student has one."""
        logits = self.teacher.logits(outputs, inputs)
        columns = None if self.columns is None else self.columns.to(logits.device)
        if not self.teacher.no_object:
            return logits if columns is None else logits.index_select(-1, columns)
        if columns is not None:
            lacking = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device).index_fill(0, columns, False)
            nothing = logits.masked_fill(~lacking, float("-inf")).logsumexp(-1, keepdim=True)
            logits = torch.cat([logits.index_select(-1, columns), nothing], dim=-1)
        if self.student.no_object:
            return logits
        log_shares = logits.float().log_softmax(-1)[..., :-1].clamp(max=-1e-6)
        return log_shares - torch.log(-torch.expm1(log_shares))


def resized(masks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Mask logits `(examples, n, height, width)` in the height and width of `like`."""
    if masks.shape[-2:] == like.shape[-2:]:
        return masks
    return functional.interpolate(masks.float(), size=like.shape[-2:], mode="bilinear", align_corners=False)
