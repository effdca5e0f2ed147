"""Divergence from a teacher of which only the most likely classes are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill.losses._checks import require_classes, require_floating, require_positive, widened
from hfdistill.losses._softmax import kl


def top_k_kl(student: Tensor, teacher: Tensor, *, indices: Tensor, temperature: float = 1.0) -> Tensor:
    """Forward KL over k kept classes and one bucket for all the rest.

    T^2 [sum_{j in k} p_t (log p_t - log p_s) + r_t (log r_t - log r_s)], r = 1 - the kept mass, p_s = softmax(z_s / T).
    `teacher` holds probabilities, taken at the same T: a truncated distribution cannot be re-tempered.
    Shapes: student logits (rows, classes), teacher probabilities (rows, k), indices (rows, k) -> (rows,); nats.
    Domain: 2 classes or more, 1 <= k <= classes, T > 0; indices differ within a row, except that entries of
    probability 0 may fill up a short row. Kept masses above 1 (low-precision storage) are scaled to 1.
    Errors: ValueError for shapes that do not fit or T <= 0; TypeError for dtypes that do not fit. An index outside the
    classes makes the device's index operation fail.
    Source: the rest bucket keeps the teacher's lost mass from being spread over the kept classes; no single paper.
    """
    require_positive("temperature", temperature)
    _require_top_k(student, teacher, indices)
    scaled, kept_t = widened(student) / temperature, widened(teacher.detach())
    indices = indices.long()
    log_s = scaled.gather(-1, indices)
    kept_t = kept_t / kept_t.sum(-1, keepdim=True).clamp(min=1.0)
    if indices.shape[1] < student.shape[1]:
        rest_s = scaled.scatter(-1, indices, -torch.inf).logsumexp(-1, keepdim=True)
        log_s = torch.cat([log_s, rest_s], -1)
        kept_t = torch.cat([kept_t, (1 - kept_t.sum(-1, keepdim=True)).clamp(min=0.0)], -1)
    return temperature**2 * kl(kept_t.log(), log_s - scaled.logsumexp(-1, keepdim=True))


def _require_top_k(student: Tensor, teacher: Tensor, indices: Tensor) -> None:
    """Refuse shapes and dtypes that do not fit student logits with kept teacher probabilities and their indices."""
    require_floating("student logits", student)
    require_floating("teacher probabilities", teacher)
    if not isinstance(indices, Tensor) or indices.dtype not in (torch.int16, torch.int32, torch.int64):
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"indices got {got}, expected a tensor of int16, int32 or int64 class indices; pass indices=.")
    shapes = tuple(student.shape), tuple(teacher.shape), tuple(indices.shape)
    if student.ndim != 2 or teacher.ndim != 2 or teacher.shape != indices.shape or len(teacher) != len(student):
        raise ValueError(
            f"top_k_kl got student {shapes[0]}, teacher {shapes[1]}, indices {shapes[2]}, expected (rows, classes), "
            "(rows, k) and (rows, k); select the same rows from all three."
        )
    require_classes("top_k_kl", student.shape[1])
    if not 1 <= teacher.shape[1] <= student.shape[1]:
        raise ValueError(
            f"top_k_kl got k = {teacher.shape[1]} kept classes, expected 1 to the student's {student.shape[1]}; "
            "keep fewer, or map the teacher's classes to the student's."
        )
