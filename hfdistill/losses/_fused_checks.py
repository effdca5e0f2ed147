"""What a fused head refuses, with what came, what was expected and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from hfdistill.losses._checks import require_classes, require_floating, require_labels
from hfdistill.losses._fused_blocks import Kind
from hfdistill.losses._fused_inputs import Divergence, Head, Taught, TopK


def whole(tensor: Tensor) -> Tensor:
    """A tensor as one piece; every process has to ask for it."""
    if type(tensor) in (Tensor, torch.nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"fused_linear got a trainable DTensor of shape {tuple(tensor.shape)}, expected a head in one piece: how "
            "its gradients are added up depends on what the mesh shares. Pass weight.full_tensor(grad_placements=...)."
        )
    return tensor.full_tensor()


def compared_classes(head: Head, teacher: Taught | TopK | None) -> int:
    """How many of the student's classes a divergence compares."""
    if isinstance(teacher, TopK) and teacher.compared is not None:
        return teacher.compared
    if isinstance(teacher, Taught) and teacher.columns is not None:
        return teacher.columns.width
    return len(head.weight)


def checked_kind(
    hidden: Tensor, head: Head, labels: Tensor | None, teacher: Taught | TopK | None, divergence: Divergence | None
) -> Kind | None:
    """The divergence's kind; refuses what does not fit."""
    require_floating("hidden states", hidden)
    _require_product("student", hidden, head)
    if labels is not None:
        require_labels(labels, len(hidden))
    if (teacher is None) != (divergence is None):
        raise ValueError(
            f"fused_linear got teacher {type(teacher).__name__} and divergence {divergence}, expected both or neither."
        )
    if divergence is None or teacher is None:
        if labels is None:
            raise ValueError("fused_linear got neither labels nor a teacher, expected one of them: nothing to compare.")
        return None
    kind, compared = divergence.kind, compared_classes(head, teacher)
    require_classes("forward_kl", compared)
    if compared > len(head.weight):
        raise ValueError(
            f"fused_linear got {compared} classes to compare and a student's head of {len(head.weight)}, expected no "
            "more than it has."
        )
    if isinstance(teacher, TopK):
        _check_top_k(teacher, divergence, len(hidden), compared)
    else:
        _check_taught(teacher, divergence, kind, len(hidden), compared)
    return kind


def checked_threshold(threshold: float | None) -> float | None:
    """The share of a row's gradient below which classes are dropped; refuses one that drops none or all."""
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(
            f"gradient_threshold got {threshold}, expected a share above 0 and below 1, such as 2 ** -16, or None, "
            "which gives exact gradients."
        )
    return threshold


def _require_product(role: str, hidden: Tensor, head: Head) -> None:
    shapes = tuple(hidden.shape), tuple(head.weight.shape)
    if hidden.ndim != 2 or head.weight.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"fused_linear got the {role}'s hidden states {shapes[0]} and head {shapes[1]}, expected (rows, width) and "
            "(classes, width); flatten examples and tokens first."
        )


def _check_top_k(teacher: TopK, divergence: Divergence, rows: int, compared: int) -> None:
    shapes = tuple(teacher.indices.shape), tuple(teacher.log_probabilities.shape)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != rows or not 1 <= shapes[0][1] <= compared:
        raise ValueError(
            f"fused_linear got top-k indices {shapes[0]} and log-probabilities {shapes[1]} for {rows} rows, expected "
            f"(rows, k) twice, with k from 1 to the {compared} classes compared."
        )
    if divergence.name not in ("forward_kl", "top_k_kl"):
        raise ValueError(f"{divergence.name} got the top k of a teacher, expected all of its classes; use top_k_kl.")


def _check_taught(teacher: Taught, divergence: Divergence, kind: Kind, rows: int, compared: int) -> None:
    _require_product("teacher", teacher.hidden, teacher.head)
    if teacher.head.added:
        raise ValueError(
            "fused_linear got a teacher with products beside its weight, expected none; merge its adapters."
        )
    if len(teacher.hidden) != rows:
        raise ValueError(f"fused_linear got {rows} rows of the student and {len(teacher.hidden)} of the teacher's.")
    if divergence.name == "top_k_kl":
        raise ValueError("top_k_kl got a teacher's head, expected TopK(indices, log_probabilities); use forward_kl.")
    classes, columns = len(teacher.head.weight), teacher.columns
    if columns is None and classes != compared:
        raise ValueError(
            f"fused_linear got {compared} classes of the student and {classes} of the teacher, expected the same; say "
            "with columns=Columns(...) which are which."
        )
    if columns is not None and columns.last >= classes:
        raise ValueError(f"columns name the teacher's class {columns.last}, and its head has {classes}.")
    if columns is not None and columns.lacking is not None and kind.mixture is None and not kind.teacher_part:
        raise ValueError(
            f"{divergence.name} got {len(columns.lacking)} classes that the teacher lacks, expected none: it is "
            "infinite there; use forward_kl, jensen_shannon (beta below 1) or skew_kl (also with reverse=True)."
        )
