"""Refusals shared by the losses: every message says what came, what was expected and what to do instead."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ONE_CLASS = (
    "a softmax over one class is always 1, so the loss says nothing; use bernoulli_kl for a sigmoid head or logit_mse "
    "for a regression head"
)
_TWO_CLASSES = "one class beside the label carries no distribution, so that part is constant; use forward_kl"

STANDARDIZED_CLASSES = 3
_STANDARDIZED = (
    "two standardised logits are always +-0.7071, whatever was learnt; use the plain logits (no standardize)"
)

LEAST_CLASSES: dict[str, tuple[int, str]] = {
    "decoupled_kl": (3, _TWO_CLASSES),
    "dist": (3, "the correlation of two probabilities is always +-1, so its gradient is zero; use forward_kl"),
    "forward_kl": (2, _ONE_CLASS),
    "hard_label": (2, _ONE_CLASS),
    "jensen_shannon": (2, _ONE_CLASS),
    "normalized_kd": (3, _TWO_CLASSES),
    "reverse_kl": (2, _ONE_CLASS),
    "skew_kl": (2, _ONE_CLASS),
    "top_k_kl": (2, _ONE_CLASS),
}


def require_classes(loss: str, classes: int) -> None:
    """Refuse a number of classes for which the loss is identically zero or constant."""
    least, remedy = LEAST_CLASSES.get(loss, (1, "give the head at least one output"))
    if classes < least:
        raise ValueError(f"{loss} got {classes} class(es), expected at least {least}: {remedy}.")


def require_standardizable(classes: int) -> None:
    """Refuse to standardise so few logits that the result is constant."""
    if classes < STANDARDIZED_CLASSES:
        raise ValueError(
            f"logit standardisation got {classes} class(es), expected at least {STANDARDIZED_CLASSES}: {_STANDARDIZED}."
        )


def require_rows(loss: str, rows: int, least: int) -> None:
    """Refuse a batch in which rows that are compared with each other are too few to differ."""
    if rows < least:
        raise ValueError(
            f"{loss} got a batch of {rows} row(s), expected at least {least}: it compares rows with each other and is "
            "constant for fewer; use a larger per-device batch (and dataloader_drop_last=True for the last one)."
        )


def require_positive(option: str, value: float) -> None:
    """Refuse a value that is not a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{option} got {value}, expected a finite number above 0; use 1.0 to leave the scale alone.")


def require_weights(**weights: float) -> None:
    """Refuse weights of the parts of a loss that are negative or not finite."""
    for option, value in weights.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"{option} got {value}, expected a finite number, 0 or above; use 0 to leave the part out."
            )


def require_one_weight(**weights: float) -> None:
    """Refuse weights that are all zero."""
    if not any(weights.values()):
        raise ValueError(
            f"{' and '.join(weights)} got only 0, expected one above 0: the loss would be identically zero."
        )


def require_floating(role: str, values: Tensor) -> None:
    """Refuse tensors that carry no gradient-worthy numbers, such as class indices."""
    if not values.is_floating_point():
        raise TypeError(
            f"{role} got dtype {values.dtype}, expected a floating dtype; pass the model's outputs, not class indices "
            "(a class index goes to `labels=`)."
        )


def require_labels(labels: Tensor, rows: int) -> None:
    """Refuse labels that are absent or not one class index a row (their range is not read: that would stall a GPU)."""
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"labels got {type(labels).__name__}, expected a tensor of class indices, one a row; pass labels=."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"labels got dtype {labels.dtype}, expected integer class indices; for soft or multi-hot labels use a loss "
            "without labels, such as forward_kl or bernoulli_kl."
        )
    if labels.shape != (rows,):
        raise ValueError(
            f"labels got shape {tuple(labels.shape)}, expected ({rows},): select the same rows as the logits."
        )


def widened(values: Tensor) -> Tensor:
    """The values in float32, or as they are where they are wider."""
    return values if values.dtype == torch.float64 else values.float()


def logit_pair(loss: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Student and detached teacher logits, checked, of shape (rows, classes), in float32 or wider."""
    require_floating("student logits", student)
    require_floating("teacher logits", teacher)
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"{loss} got student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)}, expected two "
            "equal shapes (rows, classes); select the rows that count and the classes both models share first."
        )
    require_classes(loss, student.shape[1])
    return widened(student), widened(teacher.detach())
