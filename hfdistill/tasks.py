"""Tasks: what a head's logits mean, which rows have a label, and the loss against labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from hfdistill.errors import HfDistillError
from hfdistill.losses import bernoulli_kl, forward_kl, logit_mse
from hfdistill.rows import BatchRows, Rows

UNLABELLED = -100

LabelLoss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class Task:
    """One kind of head: one row of `TASKS`.

    `default_loss` is the divergence that fits the head's outputs; `label_loss(logits, labels, label_smoothing)` gives
    one value a row in nats (or squared units); `integer_labels` says whether a label is a class index.
    """

    name: str
    default_loss: Callable[..., torch.Tensor]
    label_loss: LabelLoss
    integer_labels: bool
    label_names: tuple[str, ...] = ("labels",)

    def rows(self, inputs: Mapping[str, Any]) -> BatchRows:
        """Rows of a micro-batch: an example each; labels of -100 (class index) or NaN (float) mark unlabelled ones."""
        first = first_tensor(inputs)
        size = first.shape[0]
        labels = inputs.get(self.label_names[0])
        every = Rows(size)
        if labels is None:
            nothing = torch.zeros(size, dtype=torch.bool, device=first.device)
            return BatchRows(every, Rows(size, nothing), None)
        if self.integer_labels:
            labels = self._class_indices(labels, size)
            valid = labels != UNLABELLED
            return BatchRows(every, Rows(size, valid), labels.clamp(min=0))
        labels = every(labels.float())
        missing = torch.isnan(labels)
        return BatchRows(every, Rows(size, ~missing.any(dim=-1)), labels.masked_fill(missing, 0.0))

    def _class_indices(self, labels: torch.Tensor, size: int) -> torch.Tensor:
        if labels.is_floating_point() or labels.numel() != size:
            raise HfDistillError(
                f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} came for {size} rows of {self.name}; "
                "expected one class index (an integer) a row. For several labels a row set "
                'config.problem_type = "multi_label_classification", for real numbers "regression".'
            )
        return labels.reshape(size)


def first_tensor(inputs: Mapping[str, Any]) -> torch.Tensor:
    """The first tensor of a micro-batch that has a row for each example."""
    for value in inputs.values():
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return value
    raise HfDistillError(f"A batch without tensors came (keys: {', '.join(inputs) or 'none'}); is the dataset empty?")


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Cross-entropy against class indices, in nats: logits `(rows, classes)`, labels `(rows,)`, one value a row."""
    return functional.cross_entropy(wide(logits), labels, reduction="none", label_smoothing=label_smoothing)


def binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Mean over classes of the binary cross-entropy, in nats, one value a row; smoothing does not apply."""
    return functional.binary_cross_entropy_with_logits(
        wide(logits), labels.to(wide(logits).dtype), reduction="none"
    ).mean(-1)


def squared_error(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Mean over outputs of the squared error, one value a row; label smoothing does not apply to real numbers."""
    return functional.mse_loss(wide(logits), labels.to(wide(logits).dtype), reduction="none").mean(-1)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 or wider, whatever the model's dtype."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("single_label_classification", forward_kl, cross_entropy, integer_labels=True),
        Task("multi_label_classification", bernoulli_kl, binary_cross_entropy, integer_labels=False),
        Task("regression", logit_mse, squared_error, integer_labels=False),
    )
}


def task_for(problem_type: str | None, num_labels: int | None, example_label: Any) -> Task:
    """The task of a classifier head, by `config.problem_type` or else by Transformers' own rule.

    That rule: one output is a regression, class indices are single-label, vectors of floats are multi-label. A module
    that does not say how many outputs it has (`num_labels` is None) is a regression if its labels are single floats.
    `example_label` is any label of the data set, or None where there is none to look at.
    """
    if problem_type is None:
        if num_labels == 1 or (num_labels is None and _is_real_number(example_label)):
            problem_type = "regression"
        elif isinstance(example_label, (list, tuple)) or (
            isinstance(example_label, torch.Tensor) and example_label.is_floating_point()
        ):
            problem_type = "multi_label_classification"
        else:
            problem_type = "single_label_classification"
    if problem_type not in TASKS:
        raise HfDistillError(f"problem_type is {problem_type!r}; expected one of {', '.join(sorted(TASKS))} or None.")
    return TASKS[problem_type]


def _is_real_number(label: Any) -> bool:
    single = isinstance(label, torch.Tensor) and label.dim() == 0 and label.is_floating_point()
    return single or isinstance(label, float)
