"""Layouts and label losses of heads that say something about each pixel: segmentation and depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from hfdistill.errors import HfDistillError
from hfdistill.losses import bernoulli_kl
from hfdistill.rows import BatchRows, Rows
from hfdistill.tasks.label_losses import wide
from hfdistill.tasks.layouts import first_tensor, output_field

if TYPE_CHECKING:
    from hfdistill.tasks.task import Task

# A logarithm needs a depth above 0, and a root has no slope at 0.
SMALLEST = 1e-6


@dataclass(frozen=True)
class Pixels:
    """One distribution a pixel: `logits` of shape `(examples, classes, height, width)`.

    For the teacher a row is an example, the mean over its pixels at the resolution of the student's logits. Against
    labels a row is a pixel of the label map, `(examples, height, width)`, to whose size the logits are upsampled, as
    Transformers does. Labels below 0 and `ignored` do not count. `inside` says that the model itself has to be given
    the labels, because a second head of it takes part in the loss and shows in no output.
    """

    ignored: int = 255
    inside: bool = False
    classes: int | None = None
    labels_match: ClassVar[bool] = False

    def bound(self, model: nn.Module, task: Task) -> Task:
        """The row for a student: its ignored label, its auxiliary head, and one class as a yes or no."""
        if not isinstance(model, PreTrainedModel):
            return task
        config = model.config.to_dict()
        ignored = config.get("semantic_loss_ignore_index", config.get("loss_ignore_index", self.ignored))
        inside = any(name == "auxiliary_head" for name, _ in model.named_children())
        classes = model.config.num_labels
        task = replace(task, layout=replace(self, ignored=ignored, inside=inside, classes=classes))
        if inside:
            return replace(task, label_loss=None)
        if classes == 1:
            return replace(task, default_loss=bernoulli_kl, label_loss=pixel_binary_cross_entropy, integer_labels=False)
        return task

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """An example each for the teacher, a pixel each for the labels."""
        first = first_tensor(inputs, "pixel_values")
        size = first.shape[0]
        every = Rows(size, spread=True)
        labels = inputs.get(task.label_names[0])
        if labels is None:
            return BatchRows(every, Rows(size, torch.zeros(size, dtype=torch.bool, device=first.device)), None)
        if labels.dim() != 3 or len(labels) != size or labels.is_floating_point():
            raise HfDistillError(
                f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} came for {size} examples of "
                f"{task.name}; expected a class index (an integer) for each pixel, (examples, height, width), with "
                f"{self.ignored} where none counts."
            )
        counted = (labels >= 0) & (labels != self.ignored)
        if self.inside and labels.device.type == "cpu":
            self._check_readable(labels, counted)
        return BatchRows(every, Rows(labels.numel(), counted.flatten()), labels.long().masked_fill(~counted, 0))

    def _check_readable(self, labels: torch.Tensor, counted: torch.Tensor) -> None:
        """Refuse what the model's own loss would stumble over."""
        unreadable = labels[(labels < 0) & (labels != self.ignored)]
        if len(unreadable):
            raise HfDistillError(
                f"The label {int(unreadable[0])} came, and this model computes its loss itself, because it has an "
                f"auxiliary head; expected {self.ignored} for pixels that do not count. Replace the label, or set "
                "config.use_auxiliary_head=False."
            )
        if self.classes is not None and bool((counted & (labels >= self.classes)).any()):
            raise HfDistillError(
                f"There is label {int(labels[counted].max())}; expected class indices from 0 to {self.classes - 1}, or "
                f"{self.ignored} for a pixel that does not count. Check the label maps and the student's num_labels."
            )

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Classes last: `(examples, height, width, classes)`."""
        return output_field(outputs, "logits").movedim(1, -1)

    def matched(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """The teacher's logits at the resolution of the student's."""
        return resized(teacher.movedim(-1, 1), student.shape[1:3]).movedim(1, -1)

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """Upsampled to the label map, `(examples, classes, height, width)`."""
        assert rows.labels is not None
        return resized(logits.movedim(-1, 1), rows.labels.shape[-2:])


@dataclass(frozen=True)
class Depths:
    """One number a pixel: `predicted_depth` of shape `(examples, height, width)`.

    A row is an example, the mean over its pixels. Labels are depth maps `(examples, height, width)`, to whose size the
    prediction is resized; pixels that are not above 0 and finite do not count.
    """

    labels_match: ClassVar[bool] = False

    def bound(self, model: nn.Module, task: Task) -> Task:
        """The row for a student: GLPN, the one head that has a loss of its own, takes the scale-invariant one."""
        glpn = isinstance(model, PreTrainedModel) and model.config.model_type == "glpn"
        own = glpn and task.label_loss is squared_depth_error
        return replace(task, label_loss=scale_invariant_log_error) if own else task

    def rows(self, inputs: Mapping[str, Any], task: Task) -> BatchRows:
        """An example each; one without any valid pixel has no label."""
        first = first_tensor(inputs, "pixel_values")
        size = first.shape[0]
        every = Rows(size, spread=True)
        labels = inputs.get(task.label_names[0])
        if labels is None:
            return BatchRows(every, Rows(size, torch.zeros(size, dtype=torch.bool, device=first.device)), None)
        if labels.dim() != 3 or len(labels) != size:
            raise HfDistillError(
                f"Labels of shape {tuple(labels.shape)} came for {size} examples of {task.name}; expected a depth for "
                "each pixel, (examples, height, width), with 0 or NaN where it is not known."
            )
        counted = (labels > 0) & torch.isfinite(labels)
        return BatchRows(every, Rows(size, counted.flatten(1).any(1)), wide(labels).masked_fill(~counted, 0.0))

    def logits(self, outputs: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        """One number on the last axis: `(examples, height, width, 1)`."""
        return output_field(outputs, "predicted_depth").unsqueeze(-1)

    def matched(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        """The teacher's depths at the resolution of the student's."""
        return resized(teacher.movedim(-1, 1), student.shape[1:3]).movedim(1, -1)

    def label_logits(self, logits: torch.Tensor, rows: BatchRows) -> torch.Tensor:
        """Resized to the depth maps, `(examples, height, width)`."""
        assert rows.labels is not None
        return resized(logits.movedim(-1, 1), rows.labels.shape[-2:]).squeeze(1)


def resized(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Maps `(examples, channels, height, width)` brought bilinearly to another height and width."""
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def pixel_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Cross-entropy of each pixel, in nats: `(examples, classes, height, width)` and `(examples, height, width)`."""
    return functional.cross_entropy(wide(logits), labels, reduction="none", label_smoothing=label_smoothing).flatten()


def pixel_binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Binary cross-entropy of each pixel of a head with one class, in nats; smoothing does not apply."""
    own = wide(logits).squeeze(1)
    return functional.binary_cross_entropy_with_logits(own, labels.to(own.dtype), reduction="none").flatten()


def squared_depth_error(depths: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Mean squared error over the valid pixels of each example, in squared units of the labels."""
    return _mean_over_valid((wide(depths) - labels).square(), labels)


def scale_invariant_log_error(depths: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Scale-invariant error of each example: `sqrt(mean d^2 - (mean d)^2 / 2)`, `d = log label - log depth`.

    Over its own valid pixels, while GLPN's own loss pools those of the whole batch; the two agree for one example.
    Source: Eigen et al., arXiv 1406.2283, equation 4, with the root that GLPN takes of it.
    """
    difference = wide(labels).clamp(min=SMALLEST).log() - wide(depths).clamp(min=SMALLEST).log()
    squares, mean = _mean_over_valid(difference.square(), labels), _mean_over_valid(difference, labels)
    return (squares - mean.square() / 2).clamp(min=SMALLEST**2).sqrt()


def _mean_over_valid(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    valid = labels > 0
    return torch.where(valid, values, 0).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
