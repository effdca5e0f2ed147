"""Losses against labels: logits `(rows, classes)` and labels of those rows give one value a row."""

from __future__ import annotations

import torch
from torch.nn import functional


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Cross-entropy against class indices, in nats: logits `(rows, classes)`, labels `(rows,)`, one value a row.

    Smoothing spreads its share over the classes that are possible, not over those whose logit is -inf (padding).
    """
    logits = wide(logits)
    values = functional.cross_entropy(logits, labels, reduction="none")
    if label_smoothing == 0:
        return values
    possible = logits > -torch.inf
    surprise = -torch.where(possible, functional.log_softmax(logits, -1), 0.0).sum(-1) / possible.sum(-1)
    return (1 - label_smoothing) * values + label_smoothing * surprise


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


LABEL_LOSSES = {
    "single_label_classification": cross_entropy,
    "multi_label_classification": binary_cross_entropy,
    "regression": squared_error,
}
"""The loss against labels for each `config.problem_type` of a classifier."""
